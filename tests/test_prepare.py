"""Source images, what `prepare` makes of them, and the seeds that it draws with."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from plugins import Replaced, supervisor
from torch import Tensor
from trials import Plain, Runner

from tta_bench import suite
from tta_bench.adapter import Config, Declared, Needs, SourceRequest
from tta_bench.methods.tent import Tent
from tta_bench.run.runner import TrialResult
from tta_bench.streams import derived_seed
from tta_bench.suite import plan


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
        return scores if self.config.sees else scores + 1  # logits that are no probabilities

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
