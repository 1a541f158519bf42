"""Published classes as methods: counted, reset and isolated like any other, and caught where they break a rule."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from networks import batches, ready, small_model
from torch import Tensor, nn

from tta_bench import load_results
from tta_bench.adapter import Adapter, Config, SourceRequest, wrap
from tta_bench.code import closure_sha256, plugin_closure
from tta_bench.methods.tent import Tent
from tta_bench.registry import Registry
from tta_bench.run.meters import PassCounter, StepCounter
from tta_bench.testing import check_method, conformance, prepared

WRAPPED = pathlib.Path(__file__).parent / "wrapped"


def wrapped(name: str) -> Any:
    """A method of the folder ``wrapped``."""
    return Registry([WRAPPED / f"{name.replace('-', '_')}.py"]).load(name)


@pytest.fixture
def on_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have methods checked on one network only."""
    monkeypatch.setattr(conformance, "NETWORKS", {"batch": conformance.NETWORKS["batch"]})


# -- published classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("name", ["tent-authors", "cfg-tent"])
def test_a_wrapped_tent_is_the_built_in_one_bit_for_bit(name: str, kind: str) -> None:
    theirs, ours = ready(wrapped(name), small_model(kind), lr=1e-2), ready(Tent, small_model(kind), lr=1e-2)
    for number, x in enumerate(batches(5)):
        if number == 3:
            theirs.reset(), ours.reset()
        assert torch.equal(theirs.step(x.clone()), ours.step(x.clone()))


@pytest.mark.parametrize("name", ["tent-authors", "cfg-tent"])
def test_its_passes_and_updates_are_counted(name: str) -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(wrapped(name), pristine)
    with steps.watching():
        for x in batches(3):
            adapter.step(x)
    assert counter.read() == (24, 24)
    assert steps.read() == 3


@pytest.mark.faults
@pytest.mark.parametrize("name", ["tent-authors", "cfg-tent", "torch-ttt-tent"])
def test_they_keep_every_rule(name: str) -> None:
    if name == "torch-ttt-tent":
        pytest.importorskip("torch_ttt")
    assert check_method(wrapped(name)).findings == []


def test_torch_ttts_tent_adapts_a_copy_to_each_batch_and_the_running_statistics_stay() -> None:
    """Its engine in evaluation mode: three steps of Adam on a deep copy, then a forward pass of that copy."""
    pytest.importorskip("torch_ttt")
    first, second = batches(2)
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(wrapped("torch-ttt-tent"), pristine)
    with steps.watching():
        scores = adapter.step(first)
    assert counter.read() == (4 * 8, 3 * 8)
    assert steps.read() == 3
    assert not torch.allclose(adapter.step(second), adapter.predict(second))
    assert torch.equal(adapter.step(first), scores), "nothing is kept from batch to batch"
    assert torch.equal(adapter.predict(first), small_model("batch")(first)), "the source's scores"


def test_the_digest_covers_the_files_that_a_plugin_imports(tmp_path: pathlib.Path) -> None:
    digests = []
    for edit in ("", "# edited\n"):
        folder = tmp_path / f"edit{len(digests)}"
        folder.mkdir()
        for name in ("cfg_tent.py", "tent_authors.py"):
            (folder / name).write_text((WRAPPED / name).read_text() + (edit if name == "tent_authors.py" else ""))
        digests.append(closure_sha256(plugin_closure(folder / "cfg_tent.py")))
    assert digests[0] != digests[1]


# -- caught ------------------------------------------------------------------------------------------------------------


class Shifter(nn.Module):
    """Adds to the classifier's bias at every batch."""

    def __init__(self, net: Any):
        super().__init__()
        self.net, self.bias = net, net.get_classifier().bias

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.bias[0] += 0.5
        scores: Tensor = self.net(x)
        return scores

    def reset(self) -> None:
        """Forgets the weights."""


class NoGradients(Shifter):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return self.net(x)  # type: ignore[no-any-return]


def rules_broken(cls: type[Adapter]) -> set[str]:
    return {finding.rule for finding in check_method(cls).findings}


def test_a_broken_reset_is_caught(on_batch_norm: None) -> None:
    broken = wrap("shifter", lambda net, _config: Shifter(net))
    assert {"reset_restores", "nan_is_healed_by_reset"} <= rules_broken(broken)
    assert not rules_broken(wrap("shifter", lambda net, _config: Shifter(net), reset="rebuild"))


def test_gradients_switched_off_for_everyone_are_caught(on_batch_norm: None) -> None:
    off = wrap("no-gradients", lambda net, _config: NoGradients(net), reset="rebuild")
    try:
        assert "global_state_is_left_alone" in rules_broken(off)
    finally:
        torch.set_grad_enabled(True)


class Counter(nn.Module):
    """A module without reset, which adapts nothing; returns what it is asked to."""

    def __init__(self, net: nn.Module, returned: Any):
        super().__init__()
        self.net, self.returned = net, returned

    def forward(self, x: Tensor) -> Any:
        return self.returned(self.net(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda net, _: Counter(net, lambda scores: scores),
            r"Counter has no reset\(\): write wrap\('odd', …, reset='rebuild'\)",
        ),
        (lambda net, _: Shifter, r"build\(\) of 'odd' returned type, not a torch.nn.Module"),
        (lambda net, _: None, r"build\(\) of 'odd' returned NoneType"),
    ],
)
def test_what_cannot_be_a_method_is_refused_when_it_is_built(build: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ready(wrap("odd", build), small_model("batch"))


def test_scores_that_are_no_tensor_are_named() -> None:
    pair = wrap("pair", lambda net, _config: Counter(net, lambda scores: (scores, 0.0)), reset="rebuild")
    with pytest.raises(TypeError, match=r"forward\(\) of Counter returned tuple, not a tensor of scores"):
        ready(pair, small_model("batch")).step(batches(1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset": "mine"}, "reset must be 'own' or 'rebuild', it is 'mine'"),
        ({"hyperparameters": {"keyed": 1}}, "a hyperparameter cannot be called 'keyed'"),
        ({"hyperparameters": {"optimizer": torch.optim.SGD}}, "must be numbers, texts, lists or mappings"),
    ],
)
def test_wrap_refuses_what_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap("odd", lambda net, _config: Shifter(net), **options)


# -- hyperparameters, randomness, source images -------------------------------------------------------------------------


def test_hyperparameters_have_the_types_of_their_defaults() -> None:
    cls = wrap("typed", lambda net, _config: Shifter(net), hyperparameters={
        "lr": 1e-3, "steps": 1, "nesterov": False, "kind": "mean", "layers": [3, 4], "margin": None})  # fmt: skip
    config: Any = cls.Config(lr="2e-3", layers=[1])
    assert (config.lr, config.steps, config.nesterov, config.kind, config.layers, config.margin) == (
        2e-3, 1, False, "mean", [1], None)  # fmt: skip
    assert config.keyed() == {"lr": 2e-3, "layers": [1]}
    assert cls.Config(margin=0.5).margin == 0.5  # type: ignore[attr-defined]
    for wrong in ({"steps": 1.5}, {"lr": "fast"}, {"moment": 0.9}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cls.Config(**wrong)


def test_a_config_of_ones_own_is_used_as_it_is() -> None:
    class Mine(Config):
        lr: float = 1.0

    assert wrap("mine", lambda net, _config: Shifter(net), hyperparameters=Mine).Config is Mine


class Noisy(Shifter):
    """Draws from every global generator."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(1) + float(np.random.rand()) + random.random()
        return self.net(x) + noise  # type: ignore[no-any-return]


def test_global_random_numbers_follow_the_trials_seed() -> None:
    noisy = wrap("noisy", lambda net, _config: Noisy(net))
    x = batches(1)[0]

    def scores(seed: int, other: int) -> list[Tensor]:
        adapter = ready(noisy, small_model("batch"), seed=seed)
        torch.manual_seed(other), np.random.seed(other), random.seed(other)
        return [adapter.step(x) for _ in range(2)]

    first, second = scores(1, 5)
    assert not torch.equal(first, second), "batches differ"
    assert torch.equal(first, scores(1, 6)[0]), "whatever has been drawn outside"
    assert torch.equal(second, scores(1, 6)[1])
    assert not torch.equal(first, scores(2, 5)[0]), "seeds differ"


@pytest.mark.parametrize(("normalised", "lowest"), [(True, -1.0), (False, 0.0)])
@pytest.mark.parametrize("reset", ["own", "rebuild"])
def test_the_builder_gets_the_source_images_as_the_network_takes_them(
    normalised: bool, lowest: float, reset: Any
) -> None:
    seen = list[list[Tensor]]()

    def build(net: Any, _config: Any, source: list[Tensor]) -> nn.Module:
        seen.append(source)
        for x in source:
            net(x)
        assert all(parameter.requires_grad for parameter in net.parameters())
        return Shifter(net if normalised else net.net)

    cls = wrap("with-source", build, normalised=normalised, reset=reset, source=SourceRequest(16, 8))
    assert cls.needs.source_images
    pristine = small_model("batch")
    counter = PassCounter(pristine)
    source = [torch.zeros(8, 3, 32, 32), torch.ones(8, 3, 32, 32)]
    adapter = cls(pristine, cls.Config(), ready(Tent, small_model("batch")).context)
    prepared(adapter, iter(source))
    assert counter.read() == (16, 0), "prepare's passes are its own"
    assert [(float(x.min()), float(x.max())) for x in seen[0]] == [(lowest, lowest), (1.0, 1.0)]
    [x] = batches(1)
    before = adapter.step(x)
    adapter.step(x)
    adapter.reset()
    assert len(seen) == (1 if reset == "own" else 2)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[-1], strict=True)), "built again with the same images"
    assert torch.equal(adapter.step(x), before) == (reset == "rebuild"), "this module's own reset forgets the weights"


# -- through the command line ------------------------------------------------------------------------------------------

CALIBRATED = """
class Watched(nn.Module):
    def __init__(self, net, source):
        super().__init__()
        self.net, self.images = net, sum(len(x) for x in source)

    def forward(self, x):
        assert self.images == 32
        return self.net(x)

watched = wrap("watched", lambda net, config, source: Watched(net, source), reset="rebuild",
               source=SourceRequest(32, 16), predict=lambda module, x: module.net(x))
"""


@pytest.mark.faults
def test_a_suite_runs_wrapped_methods_beside_ours(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    text = (WRAPPED / "tent_authors.py").read_text()
    (tmp_path / "tent_authors.py").write_text(text)
    head = "from torch import nn\nfrom tta_bench.adapter import SourceRequest, wrap\n"
    (tmp_path / "watched.py").write_text(head + CALIBRATED)
    suite = suite_file(
        ("[source, tent]", "[tent, {name: tent-authors}, watched, {name: tent, label: part, config: {lr: 1.0e-3}}]"),
        ("name: small", "name: small\nplugins: [tent_authors.py, watched.py]"),
    )
    out = tmp_path / "out"
    assert run_cli("run", suite, "--executor", "local", "--out", out).code == 0
    rows = load_results(out).set_index(["label", "shift"])
    assert set(rows["status"]) == {"ok"}
    assert rows.loc["tent-authors", "error_pct"].tolist() == rows.loc["tent", "error_pct"].tolist()
    segments = load_results(out, table="segments").set_index("label")
    assert segments.loc["tent-authors", "updates"].tolist() == segments.loc["tent", "updates"].tolist() == [3, 3]
    assert segments.loc["watched", "prepare_images_forwarded"].tolist() == [0, 0]
    assert set(segments.loc["watched", "source_images"]) == {32}

    limited = tmp_path / "limited"
    part = ("--set", "protocol={kind: reset, adapt_images: 40}")
    assert run_cli("run", suite, "--executor", "local", "--out", limited, *part).code == 0
    rows = load_results(limited).set_index("label")
    assert set(rows.loc["tent-authors", "status"]) == {"skipped"}
    [reason] = set(rows.loc["tent-authors", "reason"])
    assert reason == "the method cannot predict without adapting, and the stream has batches that are not adapted on"
    assert set(rows.loc[["tent", "watched"], "status"]) == {"ok"}
