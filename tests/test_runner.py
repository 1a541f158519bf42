"""One trial: what it records, and what becomes of a method that misbehaves."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import small_model
from plugins import Replaced, supervisor
from torch import Tensor

from tta_bench import suite
from tta_bench.adapter import Adapter, Config, Declared, Needs, SourceRequest
from tta_bench.data.cache import Images
from tta_bench.methods.eta import Eta
from tta_bench.methods.norm import Norm
from tta_bench.methods.sar import Sar
from tta_bench.methods.tent import Tent
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run import metrics
from tta_bench.run.grading import _timing
from tta_bench.run.meters import Stopwatch
from tta_bench.run.runner import TrialResult, _fill
from tta_bench.streams import derived_seed
from tta_bench.suite import plan

Runner = Callable[..., TrialResult]


@pytest.fixture
def run(suite_file: Callable[..., pathlib.Path], cache: pathlib.Path) -> Runner:
    """Run ``cls`` on the small digits suite; text replaced in the suite as ``suite_file`` does."""

    def call(
        cls: type[Adapter], *replacements: tuple[str, str], trial: int = 1, bench: dict[str, Any] | None = None
    ) -> TrialResult:
        made = plan.make(suite.load(str(suite_file(*replacements))))
        materials = dataclasses.replace(made.materials, registry=Replaced(source=cls))
        store = bench if bench is not None else {}
        if "bench" not in store:
            store["bench"] = supervisor(materials, cache)
        store["trial"] = made.trials[trial]
        result: TrialResult = store["bench"].run(made.trials[trial])
        if bench is None:
            store["bench"].end_child()
        return result

    return call


class Plain(Adapter):
    """The source model."""

    def step(self, x: Tensor) -> Tensor:
        return self.predict(x)


class Counting(Adapter):
    """The source model; says how many batches it has adapted on."""

    def setup(self) -> None:
        self.count = 0

    def step(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.predict(x)

    def stats(self) -> dict[str, float]:
        return {"count": float(self.count)}


def test_adapt_images_adapts_on_the_first_and_grades_the_rest_apart(run: Runner) -> None:
    protocol = "batch_size: 20\nprotocol: {kind: reset, adapt_images: [40, 60, all]}"
    rows, costs, results = [], [], []
    for trial in (1, 3, 5):  # contrast, for each number
        results.append(run(Counting, ("batch_size: 40", protocol), trial=trial))
        rows += results[-1].shifts
        costs += results[-1].segments
    counts = [result.batches["stat_count"].tolist() for result in results]
    np.testing.assert_array_equal(counts, [[1, 2, *[np.nan] * 3], [1, 2, 3, np.nan, np.nan], [1, 2, 3, 4, 5]])
    assert [row["stat_count"] for row in costs] == [1.5, 2, 3], "over the batches that were adapted on"
    wrong = ~results[0].images["correct"]
    assert {row["error_pct"] for row in rows} == {wrong.mean() * 100}
    assert {row["error_after_pct"] for row in rows} == {wrong[60:].mean() * 100}, (
        "the same images whatever was adapted on"
    )
    [plain] = run(Counting).shifts
    assert (plain["error_after_pct"], plain["images_adapted"], plain["error_skipped_pct"]) == (None, None, None)
    adapted = [(row["images_adapted"], row["images_skipped"]) for row in rows]
    assert adapted == [(40, 60), (60, 40), (None, None)]
    assert [row["error_adapted_pct"] for row in rows[:2]] == [wrong[:40].mean() * 100, wrong[:60].mean() * 100]
    assert [row["error_skipped_pct"] for row in rows[:2]] == [wrong[40:].mean() * 100, wrong[60:].mean() * 100]


def test_what_is_graded_after_stands_after_the_first_images_of_the_segment_whatever_its_shift(run: Runner) -> None:
    protocol = "batch_size: 50\nprotocol: {kind: mixed, adapt_images: [50, all]}"
    some, whole = (run(Plain, ("batch_size: 40", protocol), trial=trial) for trial in (0, 1))
    rest = np.arange(200) >= 50
    for number, (row, other) in enumerate(zip(some.shifts, whole.shifts, strict=True)):
        wrong = ~some.images["correct"][rest & (some.images["shift"] == number)]
        assert row["images_skipped"] == len(wrong)
        assert row["images_adapted"] == 100 - len(wrong) != 50
        assert row["error_after_pct"] == pytest.approx(wrong.mean() * 100)
        assert row["error_skipped_pct"] == pytest.approx(row["error_after_pct"])
        assert other["error_after_pct"] == row["error_after_pct"], "the same images whatever was adapted on"
        assert other["error_skipped_pct"] is None


def test_a_row_says_what_was_measured(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    store: dict[str, Any] = {}
    monkeypatch.setattr(Stopwatch, "read_ms", lambda self: np.array([100.0, 50.0, 20.0]))
    result = run(Plain, bench=store)
    assert (result.status, result.reason) == ("ok", "")
    [segment], [row] = result.segments, result.shifts
    assert (row["shift"], row["segment"], row["role"]) == ("contrast-5", "contrast-5", "stream")
    assert (segment["images"], segment["batches"], segment["images_forwarded"], segment["updates"]) == (100, 3, 100, 0)
    images, labels = result.images, store["bench"].materials.datasets["resnet_bn"].labels
    stream = store["bench"].streams.build(store["trial"].model, store["trial"].stream)
    assert np.array_equal(images["image"], stream.image), "in stream order"
    assert np.array_equal(images["correct"], images["predicted"] == labels[stream.image])
    assert row["correct"] == images["correct"].sum()
    assert row["error_pct"] == pytest.approx(100 - row["correct"])
    assert row["confidence_mean"] == pytest.approx(images["confidence"].mean(), abs=1e-6)
    assert result.batches["images"].tolist() == [40, 40, 20]
    assert (segment["warmup_ms"], segment["step_ms_median"], segment["images_per_s"]) == (150.0, 20.0, 1000.0)
    assert segment["peak_memory_mib"] is None
    assert segment["most_predicted_pct"] == np.bincount(images["predicted"]).max()
    errors = [~images["correct"][labels[stream.image] == c] for c in np.unique(labels[stream.image])]
    assert row["class_mean_error_pct"] == pytest.approx(100 * np.mean([wrong.mean() for wrong in errors]))
    assert result.environment["threads"] == 1


def test_scores_are_the_models_own(run: Runner) -> None:
    store: dict[str, Any] = {}
    result = run(Plain, trial=0, bench=store)  # clean: under contrast all images look alike to it
    bench, trial = store["bench"], store["trial"]
    model = bench.materials.models[trial.model].load()
    images = bench.cache.images(bench.materials.cache_entry(trial.model, trial.stream, trial.stream.shifts[0]))
    stream = bench.streams.build(trial.model, trial.stream)
    x = torch.from_numpy(images.take(stream.image)).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        assert np.array_equal(model(x).argmax(1).numpy(), result.images["predicted"])


def test_probabilities_are_not_softmaxed_again(run: Runner) -> None:
    class Probabilities(Plain):
        outputs = "probabilities"

        def step(self, x: Tensor) -> Tensor:
            return self.model(x).softmax(1)  # type: ignore[no-any-return]

    class Predicted(Plain):
        outputs = "probabilities"

    assert np.array_equal(run(Predicted).images["confidence"], run(Probabilities).images["confidence"])
    assert np.allclose(run(Probabilities).images["confidence"], run(Plain).images["confidence"], atol=1e-6)


def test_precision_reaches_the_method(run: Runner) -> None:
    class Checks(Plain):
        def step(self, x: Tensor) -> Tensor:
            assert x.dtype == self.model(x).dtype == torch.float64
            return self.predict(x)

    assert run(Checks, ("seeds: [0]", "seeds: [0]\nprecision: float64")).status == "ok"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [(lambda z: z * float("nan"), "FloatingPointError: the scores of batch 0"), (lambda z: z[:, :3], "must return scores of shape"),
     (lambda z: z.argmax(1), "must return scores of shape"), (lambda z: None, "it returned NoneType"),
     (lambda z: 1 / 0, "ZeroDivisionError")],
)  # fmt: skip
def test_a_method_that_misbehaves_is_a_failed_row(run: Runner, scores: Callable[[Tensor], Any], reason: str) -> None:
    class Bad(Plain):
        def step(self, x: Tensor) -> Tensor:
            return scores(self.predict(x))  # type: ignore[no-any-return]

    result = run(Bad)
    assert result.status == "failed"
    assert reason in result.reason
    assert ("Traceback" in result.traceback) == (not reason.startswith("FloatingPoint")), "those are found in grading"
    assert result.segments == []


@pytest.mark.parametrize("image", [0, 19])
def test_one_image_without_finite_scores_fails_the_trial_and_names_its_batch(run: Runner, image: int) -> None:
    class OneBad(Plain):
        def step(self, x: Tensor) -> Tensor:
            scores = self.predict(x)
            if len(x) == 20:  # the last batch
                scores[image, 3] = float("nan")
            return scores

    reason = "FloatingPointError: the scores of batch 2 (segment contrast-5) are not finite"
    assert (run(OneBad).status, run(OneBad).reason) == ("failed", reason)


def test_a_method_may_decline_before_it_runs(run: Runner) -> None:
    class Declines(Plain):
        needs = Needs(norm_kinds=("layer",))

        def setup(self) -> None:
            raise AssertionError("it was set up")

    result = run(Declines)
    assert (result.status, result.reason) == ("skipped", "the model has no layer normalisation layer")


def test_a_method_that_asks_for_stages_where_there_are_none_is_skipped(run: Runner) -> None:
    class Staged(Plain):
        def setup(self) -> None:
            for layer in range(1, 5):  # as a network without them
                self.model.net.add_module(f"part{layer}", self.model.net._modules.pop(f"layer{layer}"))
            self.model.stages()

    result = run(Staged)
    assert (result.status, result.reason) == ("skipped", "ResNet has neither blocks nor stages")


def test_a_last_batch_of_one_image_is_foreseen_where_maps_are_of_one_pixel(run: Runner, tmp_path: pathlib.Path) -> None:
    small = ("batch_size: 40", "batch_size: 33")  # 100 images: 33, 33, 33, 1
    options = {"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    torch.save(
        build_network(ModelSpec(name="m", architecture="resnet18", options=options)).state_dict(), tmp_path / "w.pth"
    )
    shipped = "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    whole = (("    stem: cifar\n", ""), (shipped, str(tmp_path / "w.pth")))  # 32x32 images are 1x1 maps in the end
    ones = [run(Norm, small), run(Norm, small, *whole), run(Plain, small, *whole), run(Norm, *whole)]
    assert [result.status for result in ones] == ["ok", "skipped", "ok", "ok"]
    assert ones[1].reason.startswith("a batch of the stream has 1 of 33 images: ")


@pytest.mark.parametrize(("min_batch", "last"), [(20, "step"), (21, "predict")])
def test_batches_below_min_batch_are_predicted(run: Runner, min_batch: int, last: str) -> None:
    class Counts(Plain):
        needs = Needs(min_batch=min_batch)

        def step(self, x: Tensor) -> Tensor:
            print("step", len(x))
            return self.model(x)  # type: ignore[no-any-return]

        def predict(self, x: Tensor) -> Tensor:
            print("predict", len(x))
            return super().predict(x)

    assert run(Counts).log.splitlines() == ["step 40", "step 40", f"{last} 20"]


@pytest.mark.parametrize(("min_batch", "status"), [(40, "ok"), (41, "skipped")])
def test_a_batch_size_below_min_batch_is_declined(run: Runner, min_batch: int, status: str) -> None:
    class Needy(Plain):
        needs = Needs(min_batch=min_batch)

    result = run(Needy)
    assert result.status == status
    assert result.reason == ("" if status == "ok" else "batch size 40 is below the 41 that the method needs")


@pytest.mark.parametrize(
    ("needs", "reason"),
    [(Needs(class_token=True), "the model has no class token"), (Needs(linear_head=True), ""), (Needs(packages=("torch",)), ""),
     (Needs(packages=("torch", "tta-none", "tta-no.ne")), "not installed: pip install tta-none tta-no.ne")],
)  # fmt: skip
def test_what_a_method_needs_and_lacks_is_its_reason_to_be_skipped(run: Runner, needs: Needs, reason: str) -> None:
    class Needing(Plain):
        pass

    Needing.needs = needs
    result = run(Needing)
    assert (result.status, result.reason) == ("skipped" if reason else "ok", reason)
    if not reason:
        assert result.facts["needs_packages"] == ",".join(needs.packages)
        assert (result.facts["needs_class_token"], result.facts["needs_linear_head"]) == (False, needs.linear_head)


def test_class_tokens_and_linear_heads_are_recognised() -> None:
    vit, resnet = small_model("layer"), small_model("batch")
    assert [Needs(class_token=True).lacking(m, 8) for m in (vit, resnet)] == [None, "the model has no class token"]
    vit.net.reset_classifier(0)  # type: ignore[operator]
    assert Needs(linear_head=True).lacking(resnet, 8) is None
    assert Needs(linear_head=True).lacking(vit, 8) == "the model's classifier is no linear layer but Identity"


class Prepared(Plain):
    """Asks for source images."""

    class Config(Config):
        """What it asks for."""

    needs = Needs(source_images=True)

    def source_request(self) -> SourceRequest:
        return SourceRequest(images=30, batch_size=8)

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        print("preparing")
        seen = list(source)
        assert [len(x) for x in seen] == [8, 8, 8, 6]
        self.model.classifier().bias.data.add_(100)  # a side effect, which must not outlive prepare()
        return {"mean": torch.cat(seen).mean()}

    def step(self, x: Tensor) -> Tensor:
        assert float(self.prepared["mean"]) > 0
        self.prepared["mean"].zero_().add_(1)
        return self.predict(x)


def test_prepare_is_reused_and_leaves_nothing_but_what_it_returned(run: Runner) -> None:
    store: dict[str, Any] = {}
    first, second = run(Prepared, trial=1, bench=store), run(Prepared, trial=0, bench=store)
    assert (first.status, second.status) == ("ok", "ok"), first.traceback
    assert (first.log, second.log) == ("preparing\n", "")
    assert first.facts["source_images"] == second.facts["source_images"] == 30
    assert np.array_equal(first.images["confidence"], run(Plain, trial=1).images["confidence"])


class DrawsInPrepare(Prepared):
    """Draws in setup, prepare and step, from its generator and from the global one; writes down each draw."""

    def draw(self, where: str) -> None:
        own = float(torch.rand(1, generator=self.context.generator))
        print("\n", where, own, float(torch.rand(1)))

    def setup(self) -> None:
        self.draw("setup")

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        self.draw("prepare")
        return super().prepare(source)

    def step(self, x: Tensor) -> Tensor:
        self.draw("step")
        return super().step(x)


def draws(result: TrialResult, where: str) -> list[list[str]]:
    lines = [line.split() for line in result.log.splitlines()]
    return [line for line in lines if line and line[0] == where]


def test_what_prepare_draws_is_the_same_for_all_streams_and_moves_no_later_draw(run: Runner) -> None:
    together: dict[str, Any] = {}
    shared = [run(DrawsInPrepare, trial=trial, bench=together) for trial in (0, 1)]
    alone = [run(DrawsInPrepare, trial=trial) for trial in (0, 1)]
    prepared = [draws(result, "prepare") for result in alone]
    assert len(prepared[0]) == 1
    assert prepared[0] == prepared[1] == draws(shared[0], "prepare")
    assert draws(shared[1], "prepare") == []
    steps = [draws(result, "step") for result in alone]
    assert steps == [draws(result, "step") for result in shared], "alike whether prepare() ran or not"
    assert len(steps[0]) == 3
    assert not {tuple(draw) for draw in steps[0]} & {tuple(draw) for draw in steps[1]}, "streams draw apart"


def test_a_continual_stream_is_one_trial_of_many_segments(run: Runner) -> None:
    class Watches(Plain):
        def reset(self) -> None:
            print("reset")
            super().reset()

    result = run(Watches, ("batch_size: 40", "batch_size: 40\nprotocol: {kind: continual}"), trial=0)
    assert [row["segment"] for row in result.segments] == ["clean", "contrast-5"]
    assert result.log == "reset\n", "after prepare(), never again"


def test_global_draws_do_not_depend_on_what_ran_before(run: Runner) -> None:
    class Noisy(Plain):
        def step(self, x: Tensor) -> Tensor:
            return self.predict(x) + torch.rand(10) + torch.rand(10, generator=self.context.generator)

    first = run(Noisy)
    torch.rand(7)
    assert np.array_equal(first.images["confidence"], run(Noisy).images["confidence"])


class SeesSource(Plain):
    """Keeps the source images that it was prepared with."""

    needs = Needs(source_images=True)
    scale = 1.0

    def source_request(self) -> SourceRequest:
        return SourceRequest(images=12, batch_size=12)

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        return {"seen": self.scale * torch.cat(list(source))}

    def stats(self) -> dict[str, Tensor]:
        return {"seen": self.prepared["seen"].double().sum()}


class SeesSourceTwice(SeesSource):
    """The same, with other prepared statistics; its hyperparameters are Tent's."""

    Config = Tent.Config
    scale = 2.0


def test_prepared_statistics_belong_to_one_seed_and_one_method(
    suite_file: Callable[..., pathlib.Path], cache: pathlib.Path
) -> None:
    made = plan.make(suite.load(str(suite_file(("seeds: [0]", "seeds: [0, 1]"), ("[clean, contrast]", "[contrast]")))))
    materials = dataclasses.replace(made.materials, registry=Replaced(source=SeesSource, tent=SeesSourceTwice))
    bench = supervisor(materials, cache)
    seen = {(t.method, t.seed): bench.run(t).batches["stat_seen"][0] for t in made.trials}
    bench.end_child()
    source = made.materials.datasets["resnet_bn"].source
    assert source is not None
    for (method, seed), found in seen.items():
        order = np.random.default_rng(derived_seed("source", seed)).permutation(len(source.ids))[:12]
        pixels = np.stack([source.decode(int(i)) for i in order]).astype(np.float64)
        assert found == pytest.approx((2.0 if method == "tent" else 1.0) * pixels.sum() / 255, rel=1e-6), (method, seed)


def test_a_methods_seed_is_that_of_its_trial_and_stream(
    suite_file: Callable[..., pathlib.Path], cache: pathlib.Path
) -> None:
    class Seeded(Plain):
        def step(self, x: Tensor) -> Tensor:
            print(self.context.generator.initial_seed(), torch.initial_seed())
            return self.predict(x)

    made = plan.make(suite.load(str(suite_file(("seeds: [0]", "seeds: [0, 1]"), ("[source, tent]", "[source]")))))
    bench = supervisor(dataclasses.replace(made.materials, registry=Replaced(source=Seeded)), cache)
    for trial in made.trials:
        seed = derived_seed("method", trial.seed, bench.streams.build(trial.model, trial.stream).sha256)
        assert bench.run(trial).log.splitlines() == [f"{seed} {seed}"] * 3
    bench.end_child()


SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"


@pytest.mark.parametrize(("cls", "own"), [(Tent, []), (Eta, ["kept"]), (Sar, ["kept", "recoveries"])])
def test_a_learned_optimizer_is_found_whatever_the_method(run: Runner, cls: type[Adapter], own: list[str]) -> None:
    class Learned(cls):  # type: ignore[misc,valid-type]
        class Config(cls.Config):  # type: ignore[misc,name-defined]
            optimizer: str = "mgg"
            optimizer_options: dict[str, Any] = {"checkpoint": SHIPPED}

    learned, plain = run(Learned), run(cls)
    assert learned.facts["checkpoint"].endswith("; made for another source model")
    assert (learned.facts["needs_checkpoint"], learned.facts["needs_norm_kinds"]) == (True, "batch,group,layer")
    assert [k for k in learned.batches if k.startswith("stat_")] == [f"stat_{name}" for name in [*own, "refused"]]
    assert learned.batches["stat_refused"].tolist() == [0, 0, 0]
    assert (plain.facts["checkpoint"], plain.facts["needs_checkpoint"]) == ("", False)
    assert "stat_refused" not in plain.batches


class Speaking(torch.optim.SGD):
    """Says how often it stepped, and needs batches of 30."""

    needs = Needs(min_batch=30)
    count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1

    def stats(self) -> dict[str, float]:
        return {"count": float(self.count)}


class Optimizing(Plain):
    """Steps every optimizer that a subclass's ``setup`` puts into ``optimizers``."""

    optimizers: Any

    def step(self, x: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.step()
        return self.predict(x)

    def speaking(self) -> Speaking:
        return Speaking([torch.nn.Parameter(torch.ones(1))], lr=1.0)


def test_optimizers_in_a_list_are_told_apart_and_their_needs_count(run: Runner) -> None:
    class Two(Optimizing):
        def setup(self) -> None:
            self.optimizers = [self.speaking(), self.speaking()]
            self.again = {"first": self.optimizers[0]}  # counts once

    found = run(Two)
    assert [k for k in found.batches if k.startswith("stat_")] == ["stat_optimizers_0_count", "stat_optimizers_1_count"]
    assert found.facts["needs_min_batch"] == 30
    np.testing.assert_array_equal(found.batches["stat_optimizers_1_count"], [1, 2, np.nan])  # 20 images are predicted


def test_a_statistic_that_method_and_optimizer_both_have_is_refused(run: Runner) -> None:
    class Clashing(Optimizing):
        def setup(self) -> None:
            self.optimizers = (self.speaking(),)

        def stats(self) -> dict[str, float]:
            return {"count": 0.0}

    assert run(Clashing).reason.startswith("ValueError: Clashing.stats() and its optimizer Speaking both say 'count'")


class Choosing(SeesSource):
    """Everything that it declares is one hyperparameter's doing."""

    class Config(Config):
        sees: bool = True

    outputs = "probabilities"
    reset_keeps = ("count",)

    @classmethod
    def declared(cls, config: Any) -> Declared:
        return super().declared(config) if config.sees else Declared(Needs(), "logits", ())

    def source_request(self) -> SourceRequest | None:  # type: ignore[override]
        return super().source_request() if self.config.sees else None

    def step(self, x: Tensor) -> Tensor:
        scores = torch.full((len(x), 10), 0.05)
        scores[:, 0] = 0.55
        return scores

    def stats(self) -> dict[str, Tensor]:
        return {}


class NotChoosing(Choosing):
    class Config(Choosing.Config):
        sees: bool = False


def test_what_is_declared_may_depend_on_the_hyperparameters(run: Runner) -> None:
    sees, other = run(Choosing), run(NotChoosing)
    assert [r.facts["needs_source_images"] for r in (sees, other)] == [True, False]
    assert [r.facts["reset_keeps"] for r in (sees, other)] == ["count", ""]
    assert [r.facts.get("source_images") for r in (sees, other)] == [12, None]
    graded_as = {"probabilities": 0.55, "logits": 1 / (1 + 9 * np.exp(-0.5))}
    assert sees.images["confidence"] == pytest.approx(graded_as["probabilities"])
    assert other.images["confidence"] == pytest.approx(graded_as["logits"])
    assert Choosing.needs.source_images, "a listing says the most"


def test_source_images_that_are_not_declared_are_refused(run: Runner) -> None:
    class Undeclared(SeesSource):
        needs = Needs()

    assert run(Undeclared).reason.startswith("TypeError: source_request() asks for images, but the method's needs")


def test_a_method_may_say_itself_where_its_checkpoint_comes_from(run: Runner) -> None:
    class Says(Plain):
        def checkpoint_origin(self) -> str:
            return "from elsewhere"

    assert run(Says).facts["checkpoint"] == "from elsewhere"


SAID = "the method says what no record can hold: "


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"checkpoint_origin": lambda self: pathlib.Path("/a/b")}, SAID + "checkpoint is PosixPath('/a/b'), no str"),
        ({"checkpoint_origin": lambda self: 3}, SAID + "checkpoint is 3, no str"),
        ({"needs": Needs(min_batch=2.5)}, SAID + "needs_min_batch is 2.5, no int"),  # type: ignore[arg-type]
        ({"reset_keeps": "count"}, "TypeError: reset_keeps must be a tuple of names, it is 'count'"),
        ({"reset_keeps": (1,)}, "TypeError: reset_keeps must be a tuple of names, it is (1,)"),
        ({"outputs": "scores"}, "outputs must be logits or probabilities, it is 'scores'"),
    ],
)
def test_a_fact_of_another_type_is_a_failed_row(run: Runner, attributes: dict[str, Any], reason: str) -> None:
    result = run(type("Odd", (Plain,), attributes))
    assert (result.status, result.reason, result.facts["failure"]) == ("failed", reason, "method")


def test_a_row_of_another_type_is_a_failed_row(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tta_bench.run.child.peak_memory_mib", lambda device: "much")
    assert run(Plain).reason == SAID + "segments[0].peak_memory_mib is 'much', no float"


def test_a_fact_no_table_could_take_is_shown_as_one_can(run: Runner) -> None:
    class Odd(Plain):
        def checkpoint_origin(self) -> str:
            return "\ud800 here\x00"

    assert run(Odd).facts["checkpoint"] == "\\ud800 here\\x00"


def test_a_batch_that_mixes_shifts_has_each_images_own_pixels() -> None:
    """Image i under shift s is grey 10·s + i; shift 1 holds only some images."""

    def held(shift: int, rows: list[int]) -> Images:
        pixels = np.stack([np.full((2, 2, 3), 10 * shift + row, dtype=np.uint8) for row in rows])
        return Images(np.array(rows), pixels)

    images: list[Any] = [held(0, [0, 1, 2, 3]), held(1, [1, 3, 7]), held(2, [0, 1, 2, 3])]
    slot = np.zeros((6, 2, 2, 3), dtype=np.uint8)
    _fill(slot[:5], images, np.array([2, 0, 1, 2, 1]), np.array([3, 1, 7, 0, 1]))
    assert slot[:, 0, 0, 0].tolist() == [23, 1, 17, 20, 11, 0]
    _fill(slot[:2], images, np.array([1, 1]), np.array([7, 3]))
    assert slot[:, 1, 1, 2].tolist() == [17, 13, 17, 20, 11, 0]


def test_warm_up_batches_are_timed_apart() -> None:
    times = _timing(np.array([100.0, 50.0, 10.0, 20.0, 30.0]), np.array([8, 8, 4, 4, 2]), np.arange(5))
    assert times == pytest.approx(
        {"step_ms_median": 20.0, "step_ms_p95": 29.0, "images_per_s": 10 / 60e-3, "warmup_ms": 150.0}
    )
    later = _timing(np.array([10.0, 20.0]), np.array([4, 4]), np.array([5, 6]))
    assert later == pytest.approx(
        {"step_ms_median": 15.0, "step_ms_p95": 19.5, "images_per_s": 8 / 30e-3, "warmup_ms": None}
    )
    short = _timing(np.array([10.0, 20.0]), np.array([4, 4]), np.array([0, 1]))
    assert short == {"step_ms_median": None, "step_ms_p95": None, "images_per_s": None, "warmup_ms": 30.0}


def test_the_mean_over_classes_is_over_those_that_occur_and_weighs_them_alike() -> None:
    labels = np.array([0, 0, 0, 0, 3, 3, 7])
    correct = np.array([True, True, True, False, False, False, True])
    assert metrics.class_mean_error_pct(correct, labels) == pytest.approx((25 + 100 + 0) / 3)
    assert metrics.most_predicted_pct(np.array([5, 5, 5, 1])) == 75.0
    assert metrics.most_predicted_pct(np.array([], dtype=np.int32)) is None


def test_images_that_were_adapted_on_are_counted_apart_from_others() -> None:
    correct, adapted = np.array([True, False, False, True]), np.array([True, True, True, False])
    assert metrics.apart(correct, adapted) == {
        "images_adapted": 3, "error_adapted_pct": pytest.approx(200 / 3), "images_skipped": 1, "error_skipped_pct": 0.0
    }  # fmt: skip
    assert metrics.apart(correct, ~np.zeros(4, dtype=bool))["error_skipped_pct"] is None
