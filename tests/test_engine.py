"""Precisions and compiled passes: the same method, other arithmetic; what is compiled, counted, timed and said."""

from __future__ import annotations

import copy
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from networks import batches, small_model
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from tta_bench import suite
from tta_bench.adapter import Adapter, context_for
from tta_bench.methods import alignment
from tta_bench.models import SourceModel, as_written
from tta_bench.precision import Mode
from tta_bench.registry import Registry
from tta_bench.run import child, engine, metrics
from tta_bench.run.engine import Engine
from tta_bench.run.global_state import function_snapshot
from tta_bench.run.grading import Grader
from tta_bench.run.messages import BlockMeasurements
from tta_bench.run.meters import PassCounter
from tta_bench.setting import Setting
from tta_bench.store.results import load
from tta_bench.suite import plan
from tta_bench.testing.replay import prepared

COMPILED, HALF = Mode("float32", "on"), Mode("bfloat16")
CPU = torch.device("cpu")
CONFIGS: dict[str, dict[str, Any]] = {
    "eata": {"entropy_margin": 10.0, "d_margin": 2.0, "fisher_images": 16},
    "memo": {"num_views": 2},
    "foa": {"num_prompts": 2, "popsize": 7, "source_images": 16},
    "rotta": {"memory_size": 1, "update_frequency": 8},
    "note": {"memory_size": 6, "update_interval": 8},
    "mgg": {"checkpoint": "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors", "source_images": 16},
}

ONLY_ON = {"norm": ("batch",), "note": ("batch",), "foa": ("layer",)}


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passes are traced as for a compiler, and then run as they are: compiling takes a minute on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    function_snapshot.cache_clear()  # the compiler replaces functions of torch, for good


class Bench:
    """A method on a small network under an engine."""

    def __init__(self, method: str, kind: str, mode: Mode, model: SourceModel | None = None):
        self.model = model or small_model(kind)
        self.counter = PassCounter(self.model)
        self.engine = Engine(mode, CPU, self.counter)
        if self.engine.is_needed:
            self.model.engine = self.engine
        self.adapter = self.new(method)

    def new(self, method: str) -> Adapter:
        """The method on a copy of the network, set up as a trial does it."""
        cls = Registry().load(method)
        model = copy.deepcopy(self.model)
        self.engine.begin(8)
        config = cls.Config.model_validate(CONFIGS.get(method, {}))
        made = prepared(
            cls(model, config, context_for(model, 8, 32, CPU, 0)), iter(batches(2, seed=9)), self.engine.adjust
        )
        self.counter.read()
        self.engine.was_cold()
        return made

    def scores(self, steps: int = 3, size: int = 8) -> Tensor:
        """The scores of some batches, (steps, B, C)."""
        return torch.stack([self.adapter.step(x) for x in batches(steps, size=size)])


# -- compiled ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [("source", "batch"), ("tent", "layer"), ("eata", "group"), ("sar", "batch"), ("mgg", "layer"), ("cotta", "batch"),
     ("t3a", "layer"), ("shot", "group"), ("deyo", "layer"), ("memo", "batch"), ("foa", "layer"), ("rotta", "batch"),
     ("note", "batch"), ("lame", "layer"), ("roid", "group")],
)  # fmt: skip
def test_a_compiled_method_computes_and_counts_as_the_one_that_is_not(method: str, kind: str) -> None:
    plain, compiled = Bench(method, kind, Mode()), Bench(method, kind, COMPILED)
    assert torch.equal(plain.scores(), compiled.scores())
    counts = plain.counter.read()
    assert counts == compiled.counter.read()
    assert counts[0] >= 24
    assert compiled.engine.facts() == {}


@pytest.mark.parametrize("method", ["tent", "mgg", "foa"])
def test_all_is_compiled_once_for_all_trials_of_a_child(method: str) -> None:
    bench = Bench(method, "layer", COMPILED)
    bench.scores()
    before = engine._graphs()
    assert before > 0
    bench.adapter = bench.new(method)
    bench.scores()
    assert engine._graphs() == before


def test_a_short_batch_runs_as_written() -> None:
    bench = Bench("source", "batch", COMPILED)
    bench.scores(1)
    before = engine._graphs()
    assert bench.scores(1, size=5).shape == (1, 5, 10)
    assert engine._graphs() == before
    assert bench.counter.read() == (13, 0)


def test_the_batch_that_compiles_is_cold_and_the_next_trial_has_none() -> None:
    bench = Bench("tent", "layer", COMPILED)
    cold = [(bench.adapter.step(x), bench.engine.was_cold())[1] for x in batches(5)]
    assert cold == [True, False, False, False, False]
    bench.adapter = bench.new("tent")
    bench.scores()
    assert not bench.engine.was_cold()


def test_where_nothing_can_be_compiled_all_runs_as_written() -> None:
    model = small_model("layer")
    unable = Engine(COMPILED, CPU, PassCounter(model), "no C++ compiler")
    assert (unable.is_needed, unable.facts()) == (False, {"not_compiled": "no C++ compiler"})


def test_a_network_that_cannot_be_compiled_runs_as_written_and_the_row_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*_: Any) -> Any:
        raise NotImplementedError("no such kernel")

    plain = Bench("tent", "layer", Mode()).scores()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=breaks))  # type: ignore[attr-defined]
    bench = Bench("tent", "layer", COMPILED)
    assert torch.equal(bench.scores(), plain)
    assert bench.counter.read() == (24, 24)
    reason = bench.engine.facts()["not_compiled"]
    assert reason.startswith("logits: ")
    assert "no such kernel" in reason
    assert "TORCHDYNAMO_VERBOSE" not in reason
    assert reason.count("logits") == 1


@pytest.mark.skipif(
    not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"),
    reason="this torch compiles backward passes later",
)
def test_a_network_whose_backward_pass_cannot_be_compiled_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise NotImplementedError("no such backward kernel")

    plain = Bench("tent", "layer", Mode()).scores()
    as_traced = functools.partial(aot_autograd, fw_compiler=lambda graph, _: make_boxed_func(graph.forward))
    compiled = functools.partial(torch.compile.func, backend=as_traced(bw_compiler=breaks))  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "compile", compiled)
    bench = Bench("tent", "layer", COMPILED)
    assert torch.equal(bench.scores(), plain)
    assert bench.counter.read() == (24, 24)
    assert "no such backward kernel" in bench.engine.facts()["not_compiled"]


def test_a_hook_that_a_method_adds_or_removes_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("source", "layer", COMPILED)
    model, [x] = bench.adapter.model, batches(1)
    before = model(x)
    for number in (1.0, 2.0):
        hook = model.net.norm.register_forward_hook(lambda _module, _inputs, output, by=number: output * by * 3)
        logits = model(x)
        assert torch.equal(logits, as_written(model, SourceModel._logits, x))
        assert not torch.equal(logits, before)
        hook.remove()
    assert torch.equal(model(x), before)
    assert bench.engine.facts() == {}


@pytest.mark.parametrize("passes", ["features", "embeddings", "normed_tokens", "stage_features"])
def test_gradients_of_features_count_as_those_of_hooks(passes: str) -> None:
    counts = []
    for bench in (Bench("tent", "layer", Mode()), Bench("tent", "layer", COMPILED)):
        model, [x] = bench.adapter.model, batches(1)
        given = (alignment.following_norms(model),) if passes == "normed_tokens" else ()
        outputs = getattr(model, passes)(x, *given)
        features = outputs if passes == "features" else outputs[1]
        (features[0] if passes == "stage_features" else features)[:3].sum().backward()
        counts.append(bench.counter.read())
    assert counts[0] == counts[1]
    assert counts[0][0] == 8


@pytest.mark.parametrize(
    ("method", "kind", "sizes"),
    [("memo", "layer", {1, 2}), ("foa", "layer", {8, 64}), ("note", "batch", {8, 6}), ("rotta", "layer", {8, 1})],
)
def test_numbers_of_images_that_a_method_names_are_compiled_too(method: str, kind: str, sizes: set[int]) -> None:
    bench = Bench(method, kind, COMPILED)
    bench.scores(2)
    assert {key[1][0] for key in bench.engine._compilations} == sizes
    before = engine._graphs()
    bench.adapter.model(torch.rand(3, 3, 32, 32))
    assert engine._graphs() == before


def test_cuda_graphs_begin_anew_unless_a_backward_pass_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch records a graph anew in each batch of which a method keeps nothing for its loss."""
    begun = list[int]()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(len(passes)))
    model, passes = Bench("tent", "layer", COMPILED).adapter.model, list[Tensor]()
    for x in batches(2):
        passes.append(model(x))
    assert begun == [0]  # the second pass comes while the first one's gradients are awaited
    with torch.no_grad():
        model(x)
    assert begun == [0]
    passes[1].sum().backward()
    model(x)
    assert begun == [0, 2]  # both are kept, but there was a backward pass
    passes.clear()
    model(x)
    with torch.no_grad():
        model(x)
    assert begun == [0, 2, 0, 0]  # nothing is left of the passes before


def test_a_statistic_that_is_read_later_keeps_no_pass_waiting() -> None:
    entropy = torch.ones(3, requires_grad=True).log().mean()
    assert child._cloned({"entropy": entropy})["entropy"].grad_fn is None  # type: ignore[union-attr]


def test_parts_of_a_method_run_as_written_in_a_short_batch() -> None:
    bench, plain = Bench("mgg", "layer", COMPILED), Bench("mgg", "layer", Mode())
    graphs = [engine._graphs()]
    for size in (5, 8, 5):
        assert torch.equal(bench.scores(1, size=size), plain.scores(1, size=size))
        graphs.append(engine._graphs())
    assert [after - before for before, after in itertools.pairwise(graphs)] == [0, 3, 0]  # pass, loss, optimizer


def test_a_network_that_changes_in_every_call_is_not_compiled_for_ever() -> None:
    bench = Bench("source", "batch", COMPILED)
    layer, before = bench.adapter.model.net.bn1, engine._graphs()
    layer.register_forward_hook(lambda module, _inputs, output: output * len(module.word))
    for number, x in enumerate(batches(8)):
        layer.word = "x" * number
        bench.adapter.step(x)
    assert bench.engine.facts() == {"not_compiled": "logits: compiled anew at each call"}
    assert engine._graphs() - before == 5


def test_an_error_of_the_method_stays_its_error() -> None:
    bench = Bench("source", "batch", COMPILED)
    with pytest.raises(RuntimeError, match="must match"):
        bench.adapter.step(torch.rand(8, 4, 32, 32))


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def dtypes(model: SourceModel) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.net.named_parameters()}


def test_frozen_weights_are_stored_in_bfloat16_and_what_is_adapted_is_not() -> None:
    bench = Bench("tent", "layer", HALF)
    found = dtypes(bench.adapter.model)
    assert found["blocks.0.attn.qkv.weight"] == found["pos_embed"] == torch.bfloat16
    kept = {name for name, dtype in found.items() if dtype == torch.float32}
    assert {"blocks.0.norm1.weight", "norm.bias", "head.weight"} <= kept
    assert all("norm" in name or name.startswith("head") for name in kept)
    [optimizer] = [bench.adapter.optimizer]  # type: ignore[attr-defined]
    scores = bench.scores()
    assert scores.dtype == torch.float32
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


def test_a_teacher_that_follows_its_student_keeps_its_digits_and_a_constant_network_does_not() -> None:
    adapter: Any = Bench("cotta", "batch", HALF).adapter
    assert set(dtypes(adapter.teacher).values()) == {torch.float32}
    assert dtypes(adapter.anchor)["conv1.weight"] == torch.bfloat16


@pytest.mark.parametrize(("method", "kind"), [("tent", "batch"), ("sar", "group"), ("mgg", "layer"), ("foa", "layer")])
def test_bfloat16_is_near_float32_and_reset_brings_it_back(method: str, kind: str) -> None:
    plain, half = Bench(method, kind, Mode()), Bench(method, kind, HALF)
    [x] = batches(1)
    first = half.adapter.step(x)
    difference = (plain.adapter.step(x) - first).abs().max()
    assert 0 < difference < 0.1
    if method != "foa":  # whose draws are not rewound
        half.adapter.reset()
        assert torch.equal(half.adapter.step(x), first)


@pytest.mark.parametrize(
    ("method", "kind"),
    [(entry.name, kind) for entry in Registry().entries() if entry.target.startswith("tta_bench.")
     for kind in ONLY_ON.get(entry.name, ("batch", "layer"))],
)  # fmt: skip
def test_every_method_computes_in_bfloat16(method: str, kind: str) -> None:
    plain, half = Bench(method, kind, Mode()), Bench(method, kind, HALF)
    for x in batches(3, size=2 if method == "memo" else 8):
        difference = plain.adapter.step(x) - half.adapter.step(x)
    assert 0 < difference.abs().max() < 0.5


def test_features_that_are_normed_have_the_digits_of_float32() -> None:
    model = Bench("mgg", "layer", HALF).adapter.model
    _, features = model.normed_tokens(batches(1)[0], alignment.following_norms(model))
    assert (features != features.bfloat16()).float().mean() > 0.9


def test_normalisation_has_the_statistics_of_float32() -> None:
    model = small_model("batch")
    with torch.no_grad():
        model.net.bn1.running_mean.add_(1e-4)
    bench = Bench("source", "batch", HALF, model)
    assert torch.equal(bench.adapter.model.net.bn1.running_mean, model.net.bn1.running_mean)


# -- modes of a suite --------------------------------------------------------------------------------------------------


def test_modes_are_axes_with_keys_of_their_own(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(("[source, tent]", "[source]"), ("[clean, contrast]", "[contrast]"))
    plain = plan.make(suite.load(str(file)))
    sets = ["precision=[float32, bfloat16]", "compile=[off, on]", "deterministic=[true, false]"]
    made = plan.make(suite.load(str(file), sets=sets))
    assert len(made.trials) == 8 * len(plain.trials)
    assert len({trial.key for trial in made.trials}) == len(made.trials)
    assert {t.key for t in plain.trials} == {t.key for t in made.trials if t.mode == Mode()}
    assert "compile" not in plain.trials[0].asked
    assert {t.setting.id for t in plain.trials} < {t.setting.id for t in made.trials}
    told = {t.setting.mode_told for t in made.trials}
    assert {"float32", "bfloat16, compiled", "float32, compiled, any convolution algorithm"} < told


def test_a_setting_reads_back_its_mode_and_leaves_the_default_out() -> None:
    fast = Setting("D", "reset", precision="bfloat16", compile="on", deterministic=False)
    assert Setting.of(fast.values()) == fast
    assert fast.text.endswith("bfloat16, compiled, any convolution algorithm")
    assert not {"compile", "deterministic"} & Setting("D", "reset").values().keys()
    assert fast.without("compile").without("deterministic").without("precision") == Setting("D", "reset").without(
        "precision"
    )


@pytest.mark.faults  # takes half a minute
def test_a_run_without_the_default_mode_is_reported_and_read_again(
    suite_file: Callable[..., pathlib.Path], run_cli: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    modes = "batch_size: 40\ncompile: [off, on]\ndeterministic: false"
    file = suite_file(("[source, tent]", "[source]"), ("[clean, contrast]", "[contrast]"), ("batch_size: 40", modes))
    options = (
        "--executor",
        "local",
        "--cpus-per-trial",
        1,
        "--limit",
        20,
        "--out",
        "run",
    )  # of less than a batch: as written
    for _ in range(2):
        outcome = run_cli("run", file, *options)
        assert outcome.code == 0, outcome.err
    assert "0 to run" in outcome.err
    assert run_cli("report", "run", "--format", "md").code == 0
    rows = load(tmp_path / "run").segments
    assert (sorted(set(rows["compile"])), rows["deterministic"].any()) == (["off", "on"], False)


def test_a_run_in_bfloat16_is_near_one_in_float32(
    suite_file: Callable[..., pathlib.Path], run_cli: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    file = suite_file(
        ("[clean, contrast]", "[contrast]"), ("batch_size: 40", "batch_size: 40\nprecision: [float32, bfloat16]")
    )
    outcome = run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "run")
    assert outcome.code == 0, outcome.err
    rows = load(tmp_path / "run").segments
    by_mode = dict(list(rows.groupby("precision")))
    assert set(by_mode) == {"float32", "bfloat16"}
    assert (by_mode["float32"]["images_forwarded"].tolist(), by_mode["float32"]["updates"].tolist()) == (
        by_mode["bfloat16"]["images_forwarded"].tolist(), by_mode["bfloat16"]["updates"].tolist())  # fmt: skip
    assert rows["deterministic"].all()
    assert set(rows["compile"]) == {"off"}
    assert rows["compile_s"].isna().all()


def test_the_switches_follow_the_mode() -> None:
    from tta_bench.run.global_state import set_global_state

    try:
        set_global_state(1, Mode("tf32", deterministic=False))
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.deterministic
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        set_global_state(1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_cold_batches_are_no_part_of_the_times(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(
        ("[source, tent]", "[source]"), ("[clean, contrast]", "[contrast]"), ("batch_size: 40", "batch_size: 10")
    )
    made = plan.make(suite.load(str(file)), limit=50)
    trial, dataset = made.trials[0], made.materials.datasets[made.trials[0].model]
    stream = made.materials.streams().build(trial.model, trial.stream)
    grader = Grader(stream, dataset, per_image=1000)
    scores = np.eye(dataset.num_classes, dtype=np.float32)[:1].repeat(10, 0) * 5
    verdicts = [metrics.grade(scores, grader.labels(number), "logits") for number in range(5)]
    step_ms, cold = np.array([50.0, 40.0, 900.0, 10.0, 30.0]), np.array([False, False, True, False, False])
    grader.add(0, verdicts, BlockMeasurements(50, 0, 0, None, np.ones(5, bool), step_ms, np.zeros(5), cold, {}))
    grader.end_segment(0)
    [row] = grader.results()["segments"]
    assert (row["step_ms_median"], row["images_per_s"], row["warmup_ms"]) == (20.0, 500.0, 990.0)
    assert grader.facts() == {"compile_s": 0.9}
