"""T3A equals a loop by hand; its supports are bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import NORM, batches, ready, small_model
from torch import Tensor, nn
from torch.nn.functional import normalize

from tta_bench.adapter import context_for
from tta_bench.methods.lame import Lame
from tta_bench.methods.t3a import T3A
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network


class Projection(nn.Module):
    """Random features of 4×4 images, and a linear classifier of which every class is predicted now and then."""

    def __init__(self, num_classes: int, bias: bool):
        super().__init__()
        self.num_classes = num_classes
        self.body, self.fc = nn.Linear(48, 16), nn.Linear(16, num_classes, bias=bias)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.fc.weight.data.copy_(2 * normalize(self.fc.weight.data))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(x.flatten(1)))
        return logits


def many_classes(bias: bool = True) -> SourceModel:
    """50 classes, in float64."""
    return SourceModel(Projection(50, bias).double().requires_grad_(False), NORM, NORM).double().eval()


def tiny(count: int, size: int = 32) -> list[Tensor]:
    """Random images: ``count`` tensors (size, 3, 4, 4), float64."""
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(size, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


class ByHand:
    """The rule of the paper, on a list of (feature, class, entropy), one class at a time."""

    def __init__(self, head: Any, filter_k: int, keep_all: bool):
        self.head, self.filter_k, self.keep_all = head, filter_k, keep_all
        self.held: list[tuple[Tensor, int, float]] = []
        self.add(head.weight)

    def add(self, features: Tensor) -> None:
        for feature, logits in zip(features, self.head(features), strict=True):
            p = logits.softmax(0)
            self.held.append((feature, int(logits.argmax()), float(-(p * p.log()).nansum())))

    def step(self, features: Tensor) -> Tensor:
        self.add(features)
        classes = range(self.head.out_features)
        by_class = [sorted((s for s in self.held if s[1] == c), key=lambda support: support[2]) for c in classes]
        self.held = [support for own in by_class for support in (own if self.keep_all else own[: self.filter_k])]
        weights = torch.zeros(self.head.out_features, features.shape[1], dtype=features.dtype)
        for feature, label, _ in self.held:
            weights[label] += feature / feature.norm()
        return features @ (weights / weights.norm(dim=1, keepdim=True).clamp(min=1e-12)).T


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("filter_k", "variant"), [(1, "official"), (4, "official"), (4, "keep_all"), (-1, "official"), (-1, "keep_all")]
)
def test_it_equals_a_loop_over_fifty_classes(filter_k: int, variant: str, bias: bool) -> None:
    adapter: Any = ready(T3A, many_classes(bias=bias), filter_k=filter_k, variant=variant)
    reference = ByHand(adapter.model.classifier(), filter_k, keep_all=filter_k == -1 and variant == "keep_all")
    for x in tiny(8):
        expected = reference.step(adapter.model.embeddings(x)[1])
        assert torch.allclose(adapter.step(x), expected, rtol=0, atol=1e-12)
        assert len(adapter.supports) == len(reference.held)


def rows_of(tensor: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in tensor}


@pytest.mark.parametrize("filter_k", [1, 3])
def test_supports_are_bounded_and_what_is_dropped_never_comes_back(filter_k: int) -> None:
    classes = 50
    adapter: Any = ready(T3A, many_classes(), filter_k=filter_k)
    held, dropped, most = rows_of(adapter.supports), set[bytes](), 0
    assert len(held) == classes
    for x in tiny(40):
        offered = held | rows_of(normalize(adapter.model.embeddings(x)[1]))
        adapter.step(x)
        now = rows_of(adapter.supports)
        assert now <= offered - dropped
        dropped |= offered - now
        held, most = now, max(most, len(now))
        assert len(adapter.supports) == len(adapter.labels) == len(adapter.entropies) <= filter_k * classes
        assert adapter.labels.bincount(minlength=classes).max() <= filter_k
    assert len(dropped) > 1000
    assert most > 0.75 * filter_k * classes, "the bound is nearly reached"
    storage = adapter.supports.untyped_storage().nbytes()
    assert storage == adapter.supports.numel() * 8, "no larger tensor is held behind the supports"


def test_of_equal_entropies_the_earlier_support_stays() -> None:
    adapter: Any = ready(T3A, small_model("batch"), filter_k=1)
    logits = torch.full((3, 10), -100.0)
    logits[:, 4] = 100.0  # entropy 0
    features = torch.eye(16)[:3]
    adapter._add(features[:2], logits[:2])
    adapter._filter()
    adapter._add(features[2:], logits[2:])
    adapter._filter()
    assert adapter.supports[adapter.labels == 4].tolist() == features[:1].tolist()


def test_a_class_without_supports_scores_zero() -> None:
    adapter: Any = ready(T3A, many_classes(), filter_k=-1)
    x = tiny(1)[0]
    scores = adapter.step(x)
    empty = adapter.labels.bincount(minlength=50) == 0
    assert 0 < empty.sum() < 50
    assert adapter.stats()["empty_classes"] == empty.sum()
    assert (scores[:, empty] == 0).all()
    assert (scores[:, ~empty] != 0).all()


def test_of_single_images_the_official_minus_one_keeps_nothing() -> None:
    adapter: Any = ready(T3A, many_classes(), batch_size=1, filter_k=-1)
    scores = [adapter.step(x) for x in tiny(30, size=1)]
    assert len(adapter.supports) == 0
    assert scores[-1].tolist() == [[0.0] * 50]
    adapter.step(tiny(1)[0])
    assert len(adapter.supports) > 0


def test_predict_uses_the_present_supports_and_step_those_of_its_batch() -> None:
    adapter: Any = ready(T3A, many_classes(), filter_k=4)
    first, second = tiny(2)
    head = adapter.model.classifier()
    labels = head(head.weight).argmax(1)
    warmup = torch.stack([normalize(head.weight)[labels == c].sum(0) for c in range(50)])
    features = adapter.model.embeddings(first)[1]
    assert torch.allclose(adapter.predict(first), features @ normalize(warmup).T, atol=1e-12)
    assert len(adapter.supports) == 50
    before = adapter.predict(first)
    after = adapter.step(first)
    assert not torch.allclose(before, after)
    assert torch.equal(adapter.predict(first), after)
    predicted = adapter.predict(second)
    assert not torch.allclose(predicted, adapter.step(second))


@pytest.mark.parametrize("filter_k", [2, -1])
def test_a_reset_brings_back_the_warm_up_rows(filter_k: int) -> None:
    adapter: Any = ready(T3A, many_classes(), filter_k=filter_k)
    names = ("supports", "labels", "entropies", "prototypes")
    start, runs = {name: getattr(adapter, name).clone() for name in names}, []
    for _ in range(2):
        runs.append([adapter.step(x) for x in tiny(3)])
        assert len(adapter.supports) != 50
        adapter.reset()
        assert all(torch.equal(getattr(adapter, name), value) for name, value in start.items())
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_network_with_several_classifiers_or_without_a_linear_one_is_declined_by_t3a_alone() -> None:
    spec = ModelSpec(name="distilled", architecture="deit_tiny_distilled_patch16_224", options={
        "num_classes": 10, "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2})  # fmt: skip
    model = SourceModel(build_network(spec).requires_grad_(False), NORM, NORM).eval()
    context = context_for(model, 8, 32, torch.device("cpu"), 0)
    reason = "the model's classifier is not a linear layer but Linear and Linear"
    assert T3A.skip(model, T3A.Config(), context) == reason
    assert Lame.skip(model, Lame.Config(), context) is None
    assert ready(Lame, model).step(batches(1)[0]).shape == (8, 10)
