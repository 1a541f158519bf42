"""LAME and T3A equal the published code on reference trajectories; their guards, and the bound of T3A's supports."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import NORM, batches, ready, small_model
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from trajectories import GOLDEN, play

from tta_bench.adapter import Adapter, context_for
from tta_bench.methods import affinity, lame
from tta_bench.methods.affinity import distances, gaussian, inner_products, nearest_neighbours
from tta_bench.methods.lame import Lame, minimise_energy
from tta_bench.methods.t3a import T3A
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run.meters import PassCounter, StepCounter

LAME = [
    "lame_rbf.vit_ln", "lame_rbf.resnet_gn", "lame_rbf.resnet_bn",
    "lame_knn.vit_ln", "lame_knn.resnet_gn", "lame_knn.resnet_bn", "lame_knn_small.resnet_bn", "lame_knn_steps.vit_ln",
    "lame_knn_symmetric.vit_ln", "lame_knn_symmetric.resnet_gn", "lame_knn_symmetric.resnet_bn",
    "lame_linear.vit_ln", "lame_linear.resnet_bn",
    "lame_sure.vit_sure", "lame_sure_rbf.vit_sure", "lame_sure_pair.vit_sure", "lame_sure_many.vit_sure",
    "lame_certain.vit_certain", "lame_unsure.vit_unsure", "lame_unsure_knn.vit_unsure",
]  # fmt: skip
T3A_CASES = [
    "t3a.vit_ln", "t3a.resnet_bn", "t3a_few.vit_ln", "t3a_few.resnet_gn", "t3a_few.resnet_bn", "t3a_one.resnet_bn",
    "t3a_minus.vit_ln", "t3a_all.vit_ln", "t3a_odd.vit_sure", "t3a_odd_small.vit_sure",
]  # fmt: skip
VARIANTS: list[tuple[type[Adapter], dict[str, Any]]] = [
    (Lame, {}), (Lame, {"affinity": "knn", "force_symmetry": True}), (Lame, {"affinity": "linear"}),
    (T3A, {"filter_k": 2}), (T3A, {"filter_k": -1}), (T3A, {"filter_k": -1, "variant": "keep_all"}),
]  # fmt: skip


def close(value: Any, expected: Any, tolerance: float = 1e-8) -> bool:
    return bool(np.allclose(value, expected, rtol=0, atol=tolerance))


# -- trajectories ------------------------------------------------------------------------------------------------------


def test_every_case_is_replayed() -> None:
    if not GOLDEN.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    cases = json.loads((GOLDEN / "outputs" / "manifest.json").read_text())["cases"]
    assert {name for name, case in cases.items() if case["method"] in ("lame", "t3a")} == {*LAME, *T3A_CASES}


@pytest.mark.parametrize("case", LAME)
def test_a_trajectory_of_lame_is_reproduced(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    affinities: list[np.ndarray] = []

    def recorded(probabilities: Tensor, affinity: Tensor, max_steps: int) -> Any:
        affinities.append(affinity.numpy().copy())
        return minimise_energy(probabilities, affinity, max_steps)

    monkeypatch.setattr(lame, "minimise_energy", recorded)
    scores, adapter, stats, arrays, _ = play(case)
    assert adapter.outputs == "probabilities"
    assert scores.shape == arrays["scores"].shape
    assert close(scores, arrays["scores"])
    assert [s["iterations"] for s in stats] == arrays["iterations"].tolist()
    assert close([s["energy"] for s in stats], arrays["energy"])
    assert close(affinities, arrays["affinity"])


def warmup_left(adapter: Any) -> int:
    """Rows of the classifier among the supports."""
    rows = normalize(adapter.model.classifier().weight)
    return int((adapter.supports[:, None] == rows).all(2).any(1).sum())


@pytest.mark.parametrize("case", T3A_CASES)
def test_a_trajectory_of_t3a_is_reproduced(case: str) -> None:
    warmup: list[int] = []
    scores, adapter, records, arrays, _ = play(case, after_step=lambda adapter: warmup.append(warmup_left(adapter)))
    assert scores.shape == arrays["scores"].shape
    assert close(scores, arrays["scores"])
    assert close(adapter.prototypes.T, arrays["weights"])  # type: ignore[attr-defined]
    assert warmup == arrays["warmup_left"].tolist()
    counts = np.stack([r["labels"].bincount(minlength=10) for r in records])
    assert np.array_equal(counts, arrays["support_counts"])
    assert close([r["entropies"].sum() for r in records], arrays["support_entropy"])
    assert [r["supports"] for r in records] == counts.sum(1).tolist()
    assert [r["empty_classes"] for r in records] == (counts == 0).sum(1).tolist()


@pytest.mark.parametrize(
    ("case", "distance"),
    [("lame_rbf.vit_ln", 1e-3), ("lame_knn.resnet_bn", 1e-3), ("t3a_few.resnet_bn", 1e-5), ("t3a_minus.vit_ln", 1e-5)],
)
def test_in_single_precision_a_trajectory_stays_near(case: str, distance: float) -> None:
    scores, _, _, arrays, _ = play(case, torch.float32)
    assert scores.dtype == np.float32
    assert close(scores, arrays["scores"], distance)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("lame_rbf.vit_ln", {"affinity": "linear"}),
        ("lame_rbf.resnet_gn", {"knn": 4}),
        ("lame_knn.resnet_bn", {"knn": 4}),
        ("lame_knn_symmetric.resnet_gn", {"force_symmetry": False}),
        ("lame_knn_steps.vit_ln", {"max_steps": 5}),
        ("t3a_few.resnet_gn", {"filter_k": 4}),
        ("t3a_all.vit_ln", {"variant": "official"}),
        ("t3a_all.vit_ln", {"filter_k": 20}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    scores, _, _, arrays, _ = play(case, **change)
    assert not close(scores, arrays["scores"])


# -- affinities --------------------------------------------------------------------------------------------------------

ANGLES = torch.tensor([0.0, 0.1, 0.3, 1.5], dtype=torch.float64)
ROWS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
APART = 2 * ((ANGLES[:, None] - ANGLES).abs() / 2).sin()  # chords


def test_neighbours_are_counted_without_the_row_itself_and_row_by_row() -> None:
    assert nearest_neighbours(ROWS, 1).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert nearest_neighbours(ROWS, 2).tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    others = (1 - torch.eye(4)).tolist()
    assert nearest_neighbours(ROWS, 3).tolist() == nearest_neighbours(ROWS, 50).tolist() == others


def test_of_equal_rows_the_first_is_left_out() -> None:
    assert nearest_neighbours(torch.ones(3, 2), 1).tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("knn", "nearest"), [(2, [0.1, 0.1, 0.2, 1.2]), (4, [1.5, 1.4, 1.2, 1.5]), (9, [1.5, 1.4, 1.2, 1.5])]
)
def test_the_width_of_the_gaussian_is_a_mean_distance_that_counts_the_row_itself(
    knn: int, nearest: list[float]
) -> None:
    sigma = sum(2 * math.sin(angle / 2) for angle in nearest) / 4
    assert torch.allclose(gaussian(ROWS, knn), torch.exp(-APART.square() / (2 * sigma**2)), rtol=0, atol=1e-12)


def test_the_linear_affinity_is_the_cosine() -> None:
    assert torch.allclose(inner_products(ROWS, 1), (ANGLES[:, None] - ANGLES).cos(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("rows", [torch.ones(1, 3) / 3**0.5, torch.ones(4, 3) / 3**0.5])
def test_where_distances_are_zero_the_gaussian_is_one(rows: Tensor) -> None:
    assert gaussian(rows, 5).tolist() == torch.ones(len(rows), len(rows)).tolist()


def test_distances_are_those_of_the_difference() -> None:
    """Rows 1e-12 apart: the Gram matrix loses them among the rounding of numbers near 1."""
    rows = normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    rows[1] = rows[0]
    rows[1, 0] += 1e-12
    found = distances(rows)
    assert found.diagonal().tolist() == [0.0] * 40
    assert found[0, 1] == pytest.approx(1e-12, rel=1e-3)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize(
    ("chunk", "most"), [(30 * 7 * 4, 30 * 7 * 4), (30 * 7 * 5 - 1, 30 * 7 * 4), (1, 30 * 30), (10**6, 30 * 30 * 7)]
)
def test_the_difference_is_made_in_chunks_of_rows(chunk: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(affinity, "_CHUNK", chunk)
    with Largest() as largest:
        found = distances(rows)
    assert largest.numbers == max(most, 30 * 30)  # the result has 30·30
    assert torch.allclose(found, (rows[:, None] - rows).norm(dim=2), rtol=0, atol=1e-15)


# -- lame --------------------------------------------------------------------------------------------------------------


def test_without_affinity_the_probabilities_stay_and_three_updates_are_made() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    scores, iterations, energy = minimise_energy(p, torch.zeros(2, 2, dtype=torch.float64), 100)
    assert torch.allclose(scores, (p + 1e-10) / (1 + 3e-10), rtol=1e-12, atol=0)
    assert iterations == 3
    assert energy == pytest.approx(-2 * math.log(1 + 3e-10), abs=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_more_updates_than_asked_for(steps: int) -> None:
    p = torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    expected = p
    for _ in range(steps):
        expected = (p.log() + torch.ones(2, 2) @ expected).softmax(1)
    scores, iterations, _ = minimise_energy(p, torch.ones(2, 2), steps)
    assert iterations == steps
    assert torch.allclose(scores, expected, atol=1e-6)


def test_similar_images_agree() -> None:
    """Two sure images pull a third to their class, if it is as similar to them as they are to each other."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55]])
    assert minimise_energy(p, torch.ones(3, 3), 100).scores.argmax(1).tolist() == [0, 0, 0]
    assert minimise_energy(p, torch.eye(3), 100).scores.argmax(1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
@pytest.mark.parametrize("images", [torch.rand(1, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)], ids=["one", "equal"])
def test_one_image_and_equal_images_have_finite_scores(kind: str, images: Tensor) -> None:
    adapter: Any = ready(Lame, small_model("batch"), batch_size=len(images), affinity=kind)
    scores = adapter.step(images)
    assert torch.allclose(scores.sum(1), torch.ones(len(images)))
    assert math.isfinite(adapter.energy)
    if len(images) == 1 and kind == "knn":  # no neighbour
        assert torch.allclose(scores, adapter.model(images).softmax(1), atol=1e-6)
    if len(images) == 1 and kind != "knn":  # the image itself
        assert scores.max() > adapter.model(images).softmax(1).max()


def test_features_with_positions_of_one_pixel_are_flattened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they enter a classifier that is a 1×1 convolution."""
    adapter: Any = ready(Lame, small_model("batch"))
    [x] = batches(1)
    expected, embeddings = adapter.step(x), adapter.model.embeddings
    monkeypatch.setattr(adapter.model, "embeddings", lambda x: (embeddings(x)[0], embeddings(x)[1][..., None, None]))
    assert torch.equal(adapter.step(x), expected)


# -- t3a ---------------------------------------------------------------------------------------------------------------


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


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "config"), VARIANTS)
def test_a_step_is_one_forward_pass_and_nothing_else(cls: type[Adapter], config: dict[str, Any]) -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(cls, copy.deepcopy(pristine), **config)
    weights = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    with steps.watching():
        for x in batches(3):
            assert not adapter.step(x).requires_grad
            adapter.predict(x)
    assert counter.read() == (3 * (8 + 8), 0)
    assert steps.read() == 0
    assert all(torch.equal(value, weights[name]) for name, value in adapter.model.state_dict().items())


@pytest.mark.parametrize(("cls", "config"), VARIANTS)
def test_predict_changes_nothing_not_even_statistics(cls: type[Adapter], config: dict[str, Any]) -> None:
    adapter: Any = ready(cls, small_model("layer"), **config)
    first, second = batches(2)
    adapter.step(first)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(adapter).items()}
    stats = dict(adapter.stats())
    scores = adapter.predict(second)
    assert vars(adapter).keys() == before.keys()
    for name, value in vars(adapter).items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value is before[name], name
    assert dict(adapter.stats()) == stats
    if cls is Lame:
        assert torch.equal(scores, adapter.step(second))
        adapter.reset()
        assert (adapter.iterations, math.isnan(adapter.energy)) == (0, True)


@pytest.mark.parametrize(
    ("cls", "config"),
    [(Lame, {"knn": 0}), (Lame, {"max_steps": 0}), (Lame, {"affinity": "cosine"}),
     (T3A, {"filter_k": 0}), (T3A, {"filter_k": -2}), (T3A, {"variant": "paper"})],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(cls: type[Adapter], config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(config))):
        cls.Config(**config)


def test_the_presets_are_the_published_ones() -> None:
    def resolved(cls: Any, name: str) -> dict[str, Any]:
        return cls.Config(**cls.presets[name].resolve(64)).model_dump()

    authors = {"affinity": "rbf", "knn": 5, "force_symmetry": False, "max_steps": 100}
    assert {name: resolved(Lame, name) for name in Lame.presets} == {
        "imagenet_vit_b16": authors | {"affinity": "knn", "force_symmetry": True},
        "imagenet_resnet50_gn": authors, "imagenet_resnet50_bn": authors, "cifar10": authors,
    }  # fmt: skip
    assert Lame.Config().model_dump() == authors
    assert {name: resolved(T3A, name)["filter_k"] for name in T3A.presets} == {
        "imagenet_vit_b16": 20, "imagenet_resnet50_bn": 20, "cifar10": 100}  # fmt: skip
    assert T3A.Config().model_dump() == {"filter_k": 20, "variant": "official"}
