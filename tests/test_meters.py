"""Counts are measured from outside, whatever a method does or says."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import pytest
import torch
from conftest import clock
from networks import batches, ready, small_model
from torch import Tensor

from tta_bench.adapter import Adapter, Needs, constant
from tta_bench.methods.eta import Eta
from tta_bench.methods.functional import adapt_norm_affine, softmax_entropy
from tta_bench.methods.sar import Sar
from tta_bench.methods.source import Source
from tta_bench.methods.tent import Tent
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run import meters
from tta_bench.run.meters import PassCounter, StepCounter, Stopwatch


def test_load_is_for_each_cpu_and_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 1.0, 1.0))
    assert meters.load() == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert meters.load() is None


class Teacher(Adapter):
    """Forwards each image through the model and through a deep copy of it; learns from the copy."""

    def setup(self) -> None:
        self.teacher = copy.deepcopy(self.model)
        self.optimizer = torch.optim.SGD(adapt_norm_affine(self.model), lr=0.01)

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x).softmax(1)
        logits = self.model(x)
        torch.nn.functional.cross_entropy(logits, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()


class ConstantTeacher(Teacher):
    """The same, with a copy that is declared never to change."""

    def setup(self) -> None:
        super().setup()
        self.teacher = constant(self.teacher)


class Parts(Adapter):
    """Uses features and head in place of the model."""

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.head(self.model.features(x))


class HeadOnly(Adapter):
    """Trains the classifier alone, two steps a batch, so that no gradient reaches its input; and lies about it."""

    def setup(self) -> None:
        self.model.classifier().requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.model.classifier().parameters())

    def step(self, x: Tensor) -> Tensor:
        for _ in range(2):
            logits = self.model(x)
            logits.square().mean().backward()
            self.optimizer.step()
        return logits.detach()

    def stats(self) -> dict[str, float]:
        return {"updates": 0.0, "images_forwarded": 1e9}


class Wrapped(torch.optim.SGD):
    """An optimizer whose step calls another optimizer's step, as sharpness-aware ones do."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float):
        super().__init__(parameters, lr=lr)
        self.inner = torch.optim.SGD(parameters, lr=lr)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.inner.step()


class Nested(Teacher):
    """Steps through an optimizer in an optimizer."""

    def setup(self) -> None:
        super().setup()
        self.optimizer = Wrapped(adapt_norm_affine(self.model), lr=0.01)


EXPECTED = {  # three batches of 8: images forwarded, images backwarded, updates
    Source: (24, 0, 0), Tent: (24, 24, 3), Teacher: (48, 24, 3), ConstantTeacher: (48, 24, 3), Parts: (24, 0, 0), HeadOnly: (48, 48, 6), Nested: (48, 24, 3),
    Sar: (48, 48, 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("cls", EXPECTED)
def test_counts_equal_those_made_by_hand(cls: type[Adapter], kind: str) -> None:
    pristine = small_model(kind)
    counter, steps = PassCounter(pristine), StepCounter()
    config = {"entropy_margin": 10.0} if cls is Sar else {}  # so that every image is in both of its losses
    adapter = ready(cls, copy.deepcopy(pristine), **config)
    with steps.watching():
        for x in batches(3):
            adapter.step(x)
        adapter.reset()
    assert (*counter.read(), steps.read()) == EXPECTED[cls]
    assert (*counter.read(), steps.read()) == (0, 0, 0), "a read starts anew"


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_images_that_entered_the_loss_are_those_backwarded(kind: str) -> None:
    pristine = small_model(kind)
    counter, steps = PassCounter(pristine), StepCounter()
    entropies = torch.cat([softmax_entropy(pristine(x)) for x in batches(4)])
    margin = float(entropies.median())
    counter.read()
    adapter = ready(Eta, copy.deepcopy(pristine), entropy_margin=margin, d_margin=0.9, lr=1e-4)
    kept = []
    with steps.watching():
        for x in batches(4):
            adapter.step(x)
            kept.append(int(adapter.stats()["kept"]))
    assert 0 < sum(kept) < 32
    assert (*counter.read(), steps.read()) == (32, sum(kept), sum(k > 0 for k in kept))


class TwoHeads(torch.nn.Module):
    """Logits that are the mean of two classifiers' in a list, as CrossViT has them; ``calls``: whether it calls them."""

    def __init__(self, calls: bool = True):
        super().__init__()
        self.stem, self.calls, self.num_classes = torch.nn.Conv2d(3, 4, 8, 8), calls, 10
        self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 10), torch.nn.Linear(4, 10)])

    def get_classifier(self) -> torch.nn.Module:
        return self.heads

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.stem(x).mean((2, 3))
        if not self.calls:
            return pooled @ self.heads[0].weight.T  # type: ignore[operator,union-attr,return-value]
        return torch.stack([head(pooled) for head in self.heads]).mean(0)


DISTILLED = ModelSpec(name="distilled", architecture="deit_tiny_distilled_patch16_224", options={
    "num_classes": 10, "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})  # fmt: skip


@pytest.mark.parametrize("make", [lambda: build_network(DISTILLED), TwoHeads], ids=["deit", "list"])
def test_an_image_that_meets_two_classifiers_counts_once(make: Callable[[], torch.nn.Module]) -> None:
    model = SourceModel(make(), (0.5,) * 3, (0.5,) * 3).eval()
    counter = PassCounter(model)
    copy.deepcopy(model)(batches(1, size=2)[0]).square().mean().backward()
    assert counter.read() == (2, 2)
    assert counter.read() == (0, 0)
    kinds = "the model's classifier is not a linear layer but Linear and Linear"
    assert Needs(linear_head=True).lacking(model, 8) == kinds


def test_gradients_at_a_classifier_that_is_never_called_are_not_known() -> None:
    model = SourceModel(TwoHeads(calls=False), (0.5,) * 3, (0.5,) * 3).eval()
    counter = PassCounter(model)
    assert counter.read() == (0, 0), "nothing was forwarded"
    model(batches(1, size=2)[0]).square().mean().backward()
    assert counter.read() == (2, None)


def test_steps_outside_are_not_counted() -> None:
    steps = StepCounter()
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.ones(1)
    with steps.watching():
        optimizer.step()
    optimizer.step()
    assert steps.read() == 1


def test_the_stopwatch_times_each_block_in_milliseconds_and_a_read_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tta_bench.run.meters.time", clock(0.25, 0.5, 0.125, 2.0))
    watch, found = Stopwatch(torch.device("cpu")), []
    for blocks in (3, 1, 0):
        for _ in range(blocks):
            with watch.timing():
                pass
        found.append(watch.read_ms().tolist())
    assert found == [[250, 500, 125], [2000], []]
