"""LAME and T3A equal the published code on reference trajectories; what they have in common."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize
from trajectories import GOLDEN, play

from tta_bench.adapter import Adapter
from tta_bench.methods import lame
from tta_bench.methods.lame import Lame, minimise_energy
from tta_bench.methods.t3a import T3A
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
