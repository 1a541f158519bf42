"""The contract: reset restores everything, predict changes nothing, a method can reach no secret."""

from __future__ import annotations

import copy
import functools
import pathlib
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from torch import Tensor

from tta_bench.adapter import Adapter, Config, FilePath, constant
from tta_bench.methods.eta import Eta
from tta_bench.methods.mgg import Mgg
from tta_bench.methods.norm import Norm
from tta_bench.methods.sar import Sar
from tta_bench.methods.source import Source
from tta_bench.methods.tent import Tent
from tta_bench.registry import Registry

SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"
METHODS = [(Source, kind, {}) for kind in ("batch", "group", "layer")] + [(Norm, "batch", {})]
METHODS += [(Norm, "batch", {"statistics": form}) for form in ("blend", "running")]
METHODS += [
    (cls, kind, {"lr": 0.01, "entropy_margin": 2.3, "variant": "paper"})
    for cls in (Eta, Sar)
    for kind in ("batch", "group", "layer")
]
METHODS += [(Tent, kind, config) for kind in ("batch", "group", "layer")
            for config in ({"lr": 0.05}, {"optimizer": "adam", "lr": 0.01})]  # fmt: skip
METHODS += [
    (Mgg, kind, {"lr": 0.05, "objective": "entropy", "checkpoint": SHIPPED}) for kind in ("batch", "group", "layer")
]


class Hoarder(Adapter):
    """Keeps state of every kind that a reset must restore."""

    reset_keeps = ("kept", "nested.kept")

    def setup(self) -> None:
        self.running = torch.zeros(3)
        self.scalars = [0, {"seen": 0}]
        self.queue: deque[int] = deque(maxlen=3)
        self.array = np.zeros(2)
        self.kept = 0
        self.nested = Nested()
        self.parameter = torch.nn.Parameter(torch.ones(2))
        self.optimizer = torch.optim.Adam([self.parameter], lr=0.1)

    def step(self, x: Tensor) -> Tensor:
        noise = torch.rand(1, generator=self.context.generator)
        self.running += x.mean() + noise
        self.scalars[0] += 1
        self.scalars[1]["seen"] += len(x)
        self.scalars[1][f"new{self.scalars[0]}"] = 1
        self.queue.append(len(self.queue))
        self.array += 1
        self.kept += 1
        self.nested.kept += 1
        self.nested.lost += 1
        self.late = "set after setup"
        self.optimizer.param_groups[0]["lr"] *= 0.5
        (self.parameter.sum() * self.running.sum()).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.classifier().bias.add_(1)
            return self.model(x) + self.running.sum() + self.parameter.sum().detach() + self.scalars[0]


class Holder:
    """An object that holds a generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng


class Nested:
    """An object of a method's own."""

    def __init__(self) -> None:
        self.kept = self.lost = 0


@pytest.mark.parametrize(("cls", "kind", "config"), METHODS)
def test_after_reset_predictions_equal_a_fresh_adapters(cls: type[Adapter], kind: str, config: dict[str, Any]) -> None:
    used, fresh = (ready(cls, small_model(kind), **config) for _ in range(2))
    first = [used.step(x) for x in batches(4)]
    used.reset()
    again = [used.step(x) for x in batches(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, fresh.step(x)) for a, x in zip(again, batches(4), strict=True))
    if cls is Tent:
        assert not torch.equal(first[-1], Source.step(fresh, batches(4)[-1])), "it adapts at all"


def test_reset_restores_every_kind_of_state_but_what_it_keeps() -> None:
    used, fresh = (ready(Hoarder, small_model("batch")) for _ in range(2))
    parameters = [id(p) for p in used.model.parameters()]
    for _ in range(2):  # a second reset works as the first did
        used.context.generator.manual_seed(0)
        first = [used.step(x) for x in batches(3)]
        used.reset()
    used.context.generator.manual_seed(0)
    assert all(torch.equal(a, used.step(x)) for a, x in zip(first, batches(3), strict=True))
    used.reset()
    assert (used.kept, used.nested.kept) == (9, 9)  # type: ignore[attr-defined]
    assert used.nested.lost == 0  # type: ignore[attr-defined]
    assert not hasattr(used, "late")
    assert used.scalars == [0, {"seen": 0}]  # type: ignore[attr-defined]
    assert used.optimizer.state == {}  # type: ignore[attr-defined]
    assert used.optimizer.param_groups[0]["lr"] == 0.1  # type: ignore[attr-defined]
    assert [id(p) for p in used.model.parameters()] == parameters, "in place"
    used.context.generator.manual_seed(0)
    assert torch.equal(used.step(batches(1)[0]), fresh.step(batches(1)[0]))


def test_reset_leaves_the_contexts_generator_under_any_name_and_restores_a_methods_own() -> None:
    class Random(Source):
        def setup(self) -> None:
            generator = self.context.generator
            self.rng, self.nested = generator, {"list": [generator, (generator,)]}
            self.draws = [
                functools.partial(torch.rand, 1, generator=generator),
                lambda: torch.rand(1, generator=generator),
            ]
            self.own = torch.Generator().manual_seed(3)
            self.spare = np.random.default_rng(3)

    adapter: Any = ready(Random, small_model("batch"))
    expected = torch.rand(6, generator=torch.Generator().manual_seed(adapter.context.generator.initial_seed()))
    found, own = [], []
    for draw in [lambda: torch.rand(1, generator=adapter.rng), *adapter.draws] * 2:
        found.append(draw())
        own.append((float(torch.rand(1, generator=adapter.own)), adapter.spare.random()))
        adapter.reset()
    assert torch.equal(torch.cat(found), expected), "it goes on"
    assert len(set(own)) == 1, "they go back"


def test_reset_restores_numpys_generators_and_copes_with_read_only_arrays() -> None:
    class Numpy(Source):
        def setup(self) -> None:
            self.state = np.random.RandomState(1)
            self.nested = {"list": [np.random.default_rng(2), (np.random.PCG64(3), Holder(np.random.default_rng(4)))]}
            self.table = np.arange(3.0)
            self.fixed = np.broadcast_to(self.table, (2, 3))

    adapter: Any = ready(Numpy, small_model("batch"))
    first, (bits, holder) = adapter.nested["list"]
    fixed = adapter.fixed

    def draws() -> list[float]:  # an odd number of normal draws, of which RandomState holds one back
        return [*adapter.state.randn(3), first.random(), float(bits.random_raw()), holder.rng.normal()]

    before = draws()
    assert draws() != before
    adapter.reset()
    assert draws() == before
    adapter.table += 1
    adapter.fixed = None
    adapter.reset()
    assert adapter.fixed is fixed
    assert fixed.tolist() == [[0, 1, 2]] * 2


def test_reset_restores_arrays_whatever_may_be_written_to_now_or_then() -> None:
    class Arrays(Source):
        def setup(self) -> None:
            self.locked_later, self.locked = np.arange(3.0), np.arange(3.0)
            whole, of_base = np.arange(6.0), np.arange(4.0)
            self.view, self.shown, self.nested = whole[2:4], of_base[:2], of_base[1:][1:]
            self.of_tensor = torch.arange(3.0).numpy()
            self.constant = np.frombuffer(b"ab", dtype=np.uint8)
            for array in (self.locked, self.shown, self.of_tensor):
                array.flags.writeable = False
            self.bases = lambda: (whole, of_base)  # not looked into

    adapter: Any = ready(Arrays, small_model("batch"))
    whole, of_base = adapter.bases()
    names = ("locked_later", "locked", "view", "shown", "nested", "of_tensor", "constant")
    arrays = [getattr(adapter, name) for name in names]
    before = [(array.tolist(), array.flags.writeable) for array in arrays]
    for array in (adapter.locked_later, adapter.locked, whole, of_base):
        array.flags.writeable = True
        array += 1
    torch.from_numpy(adapter.of_tensor.base.numpy()).add_(1)
    for array in (adapter.locked_later, adapter.view, whole):
        array.flags.writeable = False
    assert [array.tolist() for array in arrays[:-1]] != [values for values, _ in before[:-1]]
    adapter.reset()
    assert [(array.tolist(), array.flags.writeable) for array in arrays] == before
    assert not whole.flags.writeable, "what is not the method's is left as it is"


def test_reset_restores_buffers_that_a_method_deleted() -> None:
    class Deletes(Adapter):
        def step(self, x: Tensor) -> Tensor:
            self.model.net.bn1.running_mean = None  # type: ignore[union-attr,assignment]
            self.model.net.bn1.running_var = None  # type: ignore[union-attr,assignment]
            return self.predict(x)

    adapter, [x] = ready(Deletes, small_model("batch")), batches(1)
    before = adapter.predict(x)
    assert not torch.equal(adapter.step(x), before)
    adapter.reset()
    assert torch.equal(adapter.predict(x), before)


def test_reset_forms_no_text_of_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of an optimizer's state are parameters; a text of one makes a GPU wait for each of its values."""
    adapter = ready(Tent, small_model("layer"))
    adapter.step(batches(1)[0])
    texts = list[Tensor]()
    for name in ("__repr__", "__format__", "__str__"):
        monkeypatch.setattr(Tensor, name, lambda tensor, *_: texts.append(tensor) or "text")
    monkeypatch.setattr(torch.nn.Parameter, "__repr__", Tensor.__repr__)
    adapter.reset()
    assert len(texts) == 0


@pytest.mark.parametrize(("outputs", "sums_to_1"), [("probabilities", True), ("logits", False)])
def test_the_default_predict_returns_what_outputs_says(outputs: Any, sums_to_1: bool) -> None:
    class Returns(Source):
        pass

    Returns.outputs = outputs
    rows = ready(Returns, small_model("layer")).predict(batches(1)[0]).sum(1)
    assert torch.allclose(rows, torch.ones(8)) is sums_to_1


def test_a_constant_network_is_neither_kept_nor_restored_but_a_copy_of_it_is() -> None:
    class Constant(Source):
        def setup(self) -> None:
            self.frozen = [constant(copy.deepcopy(self.model))]
            self.teacher = copy.deepcopy(self.frozen[0])

    adapter: Any = ready(Constant, small_model("batch"))
    networks = [*adapter.frozen, adapter.teacher]
    assert [n.training or any(p.requires_grad for p in n.parameters()) for n in networks] == [False, False]
    biases = [n.classifier().bias for n in networks]
    seen = adapter._initial._seen
    assert [id(bias) in seen for bias in biases] == [False, True], "no copy is made"
    before = biases[1].clone()
    for bias in biases:
        bias.data.add_(1)
    adapter.reset()
    assert torch.equal(biases[0], before + 1)
    assert torch.equal(biases[1], before)


@pytest.mark.parametrize(("cls", "kind", "config"), METHODS)
def test_predict_changes_nothing(cls: type[Adapter], kind: str, config: dict[str, Any]) -> None:
    asked, left = (ready(cls, small_model(kind), **config) for _ in range(2))
    *first, last = batches(4)
    for x in first:
        asked.predict(last)
        assert torch.equal(asked.step(x), left.step(x))
    asked.predict(x)
    state, other = asked.model.state_dict(), left.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in other)


def test_norm_normalises_with_the_batchs_own_biased_statistics() -> None:
    model = small_model("batch")
    adapter, [x] = ready(Norm, copy.deepcopy(model)), batches(1)
    seen = {}
    model.net.bn1.register_forward_pre_hook(lambda _m, inputs: seen.update(x=inputs[0]))  # type: ignore[union-attr]
    adapter.model.net.bn1.register_forward_hook(lambda _m, _i, out: seen.update(y=out))  # type: ignore[union-attr]
    model(x), adapter.step(x)
    mean, var = seen["x"].mean((0, 2, 3), keepdim=True), seen["x"].var((0, 2, 3), unbiased=False, keepdim=True)
    assert torch.allclose(seen["y"], torch.relu((seen["x"] - mean) / (var + 1e-5).sqrt()), atol=1e-5) or torch.allclose(
        seen["y"], (seen["x"] - mean) / (var + 1e-5).sqrt(), atol=1e-5
    )


def test_tent_takes_the_published_step() -> None:
    model = small_model("layer")
    adapter, [x] = ready(Tent, copy.deepcopy(model), lr=0.1), batches(1)
    reference = copy.deepcopy(model)
    names = [n for n, m in reference.net.named_modules() if model.norm_kind(m)]
    parameters = [p.requires_grad_() for n in names for p in reference.net.get_submodule(n).parameters()]
    logits = reference(x)
    loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(loss, parameters)
    assert torch.equal(adapter.step(x), logits), "the logits graded are those before the update"
    adapted = [p for n in names for p in adapter.model.net.get_submodule(n).parameters()]
    for before, gradient, after in zip(parameters, gradients, adapted, strict=True):
        assert torch.allclose(before - 0.1 * gradient, after, atol=1e-7)
    frozen = {n for n, p in adapter.model.net.named_parameters() if not p.requires_grad}
    assert all(torch.equal(model.net.get_parameter(n), adapter.model.net.get_parameter(n)) for n in frozen)


def test_file_valued_hyperparameters_are_known(tmp_path: pathlib.Path) -> None:
    class WithFile(Config):
        checkpoint: FilePath | None = None
        other: str = "x"

    (tmp_path / "c").write_text("x")
    assert WithFile(checkpoint=str(tmp_path / "c")).files() == {"checkpoint": str(tmp_path / "c")}
    assert WithFile().files() == {}
    with pytest.raises(ValueError, match="no such file"):
        WithFile(checkpoint="/nowhere")


def test_built_ins_are_found_as_a_strangers_are() -> None:
    registry = Registry()
    assert {"source", "norm", "tent"} <= set(registry.names())
    assert registry.load("tent") is Tent


def test_norm_forces_tents_eps_or_keeps_each_layers_own() -> None:
    model = small_model("batch")
    for layer in model.net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
    for eps, expected in ((1e-5, 1e-5), (None, 1e-3)):
        net = ready(Norm, copy.deepcopy(model), eps=eps).model.net
        assert {m.eps for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {expected}
