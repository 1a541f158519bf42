"""DeYO, RDumb, ROID and CMF equal the published code on reference trajectories; their guards, variants and presets."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from pydantic import ValidationError
from trajectories import affine, next_draw, play

from tta_bench.adapter import Adapter, context_for
from tta_bench.methods.cmf import Cmf
from tta_bench.methods.deyo import DeYO, occlude, shuffle_patches, shuffle_pixels
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.methods.prior import prior_correction
from tta_bench.methods.rdumb import RDumb
from tta_bench.methods.roid import Roid
from tta_bench.methods.soft_losses import soft_likelihood_ratio
from tta_bench.models import SourceModel

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

    def recorded(self: NormAdapter, loss: torch.Tensor, selected: torch.Tensor | None = None) -> bool:
        if taken := update(self, loss, selected):
            values.append(loss.item())
        return taken

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
    assert np.abs(affine(adapter.model) - reference["affine_final"]).max() < 1e-8
    if entry["method"] in ("roid", "cmf"):
        probabilities = np.stack([r["class_probabilities"].numpy() for r in records])
        assert np.abs(probabilities - reference["class_probs"]).max() < 1e-8
        assert not any(r["equal_scores"] for r in records)
    if entry["method"] == "cmf":
        for name, stored in (("gain", "beta"), ("hidden_variance", "hidden_var")):
            np.testing.assert_allclose([r[name] for r in records], reference[stored], rtol=0, atol=1e-12)
        hidden = torch.cat([h.flatten() for h in adapter.hidden]).numpy()  # type: ignore[attr-defined]
        assert np.abs(hidden - reference["hidden_affine_final"]).max() < 1e-8


@pytest.mark.parametrize("case", ["deyo.resnet_bn", "rdumb.vit_ln", "roid.resnet_gn", "cmf.vit_ln"])
def test_a_trajectory_in_single_precision(case: str) -> None:
    scores, _, _, reference, _ = play(case, torch.float32)
    assert np.abs(scores - reference["logits"]).max() < 1e-4


@pytest.mark.parametrize(
    ("case", "change"),
    [("deyo.vit_ln", {"entropy_margin": 0.901}), ("deyo.resnet_bn.occ", {"row_start": 7}), ("deyo.resnet_gn", {"filter_plpd": False}),
     ("rdumb.vit_ln", {"reset_every": 4}), ("rdumb.resnet_bn", {"variant": "paper"}),
     ("roid.vit_ln", {"momentum_src": 0.951}), ("roid.resnet_gn", {"temperature": 0.501}),
     ("cmf.vit_ln", {"gamma": 0.9901}), ("cmf.vit_ln", {"alpha": 0.9901}), ("cmf.resnet_bn", {"variant": "paper"})],
)  # fmt: skip
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    scores, _, _, reference, _ = play(case, **change)
    assert np.abs(scores - reference["logits"]).max() > 1e-8


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("cls", [DeYO, RDumb, Roid, Cmf])
def test_predict_returns_what_the_next_step_returns(cls: type[Adapter], kind: str) -> None:
    adapter = ready(cls, small_model(kind), lr=0.01)
    for x in batches(3):
        assert torch.equal(adapter.predict(x), adapter.step(x))


# -- deyo --------------------------------------------------------------------------------------------------------------


def test_each_image_has_a_permutation_of_its_patches() -> None:
    """Position j of image i shows patch perm[i, j], perm being the order of float32 uniforms, in every channel."""
    [x] = batches(1, size=2)
    shuffled = shuffle_patches(x, 4, torch.Generator().manual_seed(3))
    order = torch.rand(2, 16, generator=torch.Generator().manual_seed(3)).argsort(1)
    assert not torch.equal(order[0], order[1])
    for image in range(2):
        for position, patch in enumerate(order[image].tolist()):
            (row, column), (from_row, from_column) = (divmod(p, 4) for p in (position, patch))
            expected = x[image, :, 8 * from_row : 8 * from_row + 8, 8 * from_column : 8 * from_column + 8]
            assert torch.equal(shuffled[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8], expected)


def test_pixels_move_alike_and_an_occlusion_has_the_images_means() -> None:
    [x] = batches(1, size=2)
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shuffle_pixels(x, torch.Generator().manual_seed(3)).flatten(2), x.flatten(2)[..., order])
    before = x.clone()
    occluded = occlude(x, 20, 4, 8)
    assert torch.equal(x, before)
    changed = (occluded != x).any(0).any(0)
    assert changed[20:28, 4:12].all()
    assert changed.sum() == 64
    assert torch.allclose(occluded[:, :, 20, 4], x.mean((2, 3)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"aug_type": "occ"}, "the occluded square lies outside images of 32 pixels: lower row_start and column_start"),
     ({"patch_len": 33}, "images of 32 pixels have no 33 patches along a side: lower patch_len"),
     ({"aug_type": "occ", "row_start": 6, "column_start": 31, "patch_len": 33}, None), ({"patch_len": 32}, None)],
)  # fmt: skip
def test_a_destruction_that_does_not_fit_the_images_is_declined(config: dict[str, Any], reason: str | None) -> None:
    model = small_model("layer")
    context = context_for(model, 8, 32, torch.device("cpu"), 0)
    assert DeYO.skip(model, DeYO.Config(**config), context) == reason


def test_deyos_margins_follow_the_models_classes() -> None:
    adapter: Any = ready(DeYO, small_model("layer"))
    assert (adapter.margin, adapter.deyo_margin) == pytest.approx((0.4 * math.log(10), 0.5 * math.log(10)))


# -- rdumb -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "batches_counted"), [("official", 3), ("paper", 0)])
def test_an_outside_reset_leaves_rdumbs_count_alone_and_forgets_all_else(variant: str, batches_counted: int) -> None:
    adapter: Any = ready(RDumb, small_model("layer"), variant=variant, entropy_margin=2.4, d_margin=1.1, lr=0.01)
    for x in batches(3):
        adapter.step(x)
    assert adapter.moving_probability is not None
    adapter.reset()
    assert adapter.batches == batches_counted
    assert adapter.moving_probability is None
    assert not adapter.optimizer.state


def test_rdumb_resets_after_every_so_many_batches() -> None:
    adapter: Any = ready(RDumb, small_model("layer"), entropy_margin=2.4, d_margin=1.1, lr=0.01, reset_every=2)
    [x] = batches(1)
    first, second, third, _, fifth = [adapter.step(x) for _ in range(5)]
    assert torch.equal(first, third)
    assert torch.equal(first, fifth)
    assert not torch.equal(first, second)
    assert adapter.stats()["resets"] == 1


# -- roid and cmf ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Roid, Cmf])
@pytest.mark.parametrize(("size", "kind"), [(1, "layer"), (4, "batch")])
def test_equal_scores_weigh_one_and_are_counted(cls: type[Adapter], size: int, kind: str) -> None:
    """The published code divides 0 by 0 here."""
    adapter: Any = ready(cls, small_model(kind), batch_size=size)
    if size == 1:
        [x] = batches(1, size=1)
        adapter.step(x)
        assert adapter.stats()["equal_scores"] == 1
    weights, kept = adapter._weights(torch.zeros(size, 10))
    assert weights.tolist() == [1.0] * size
    assert kept.tolist() == list(range(size))
    assert adapter.stats()["equal_scores"] == 1
    assert all(p.isfinite().all() for p in adapter.model.parameters())
    adapter._weights(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)))
    assert adapter.stats()["equal_scores"] == 0


def test_a_short_batch_is_divided_by_the_nominal_batch_size() -> None:
    """The first step of SGD is proportional to the loss."""
    moved = []
    for nominal in (4, 8):
        adapter: Any = ready(Roid, small_model("group"), batch_size=nominal, momentum_src=1.0)
        before = [p.detach().clone() for p in adapter.parameters]
        adapter.step(batches(1, size=4)[0])
        moved.append(torch.cat([(p - b).flatten() for p, b in zip(adapter.parameters, before, strict=True)]))
    assert torch.allclose(moved[0], 2 * moved[1], rtol=1e-2, atol=1e-7)
    assert moved[1].abs().max() > 1e-5


def test_the_prior_correction_multiplies_logits() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0], [1.0, 0.0, -3.0]])
    prior = torch.softmax(logits, 1).mean(0)
    smoothing = 0.5 / prior.max()  # 1/B, which is larger than 1/C
    torch.testing.assert_close(prior_correction(logits), logits * (prior + smoothing) / (1 + 3 * smoothing))
    assert torch.equal(prior_correction(logits[:1].expand(5, 3))[0], prior_correction(logits[:1].expand(7, 3))[0]), (
        "1/C"
    )


def test_a_probability_above_099_has_no_gradient_of_its_likelihood_ratio() -> None:
    logits = torch.tensor([[9.0, 0.0], [1.0, 0.0]], requires_grad=True)
    ratio = soft_likelihood_ratio(logits)
    q = torch.tensor([0.99, 1 / (1 + math.exp(9.0))])
    assert ratio[0].item() == pytest.approx(-(q * (q / (1 - q) + 1e-5).log()).sum().item(), rel=1e-5)
    [gradient] = torch.autograd.grad(ratio.sum(), logits)
    assert gradient[0].abs().max() < 1e-2 < gradient[1].abs().max()


def test_cmfs_gains_are_the_published_ones_and_survive_its_reset() -> None:
    for variant, next_gain in (("official", 0.89), ("paper", 0.95)):
        adapter: Any = ready(Cmf, small_model("layer"), variant=variant)
        scalars = sum(p.numel() for p in adapter.parameters)
        adapter.config = adapter.config.model_copy(update={"q": 0.05 * 38_400 / scalars})
        gains, variances = [], []
        for _ in range(3):
            adapter.ensemble()
            gains.append(adapter.gain)
            variances.append(adapter.hidden_variance)
        assert gains == pytest.approx([0.95, 0.907740373831374, 0.89], abs=1e-15)
        assert variances == pytest.approx([0.0475, 0.08764664486019486, 0.12095320419845451], abs=1e-15)
        adapter.reset()
        assert adapter.hidden_variance == (variances[-1] if variant == "official" else 0.0)
        adapter.ensemble()
        assert adapter.gain == pytest.approx(next_gain)


def test_cmf_ignores_the_observation_in_a_small_network_with_the_default_q() -> None:
    adapter: Any = ready(Cmf, small_model("layer"), lr=0.1)
    for x in batches(2):
        adapter.step(x)
    assert adapter.stats()["gain"] == 1.0
    assert all(torch.equal(h, s) for h, s in zip(adapter.hidden, adapter.source, strict=True))
    assert not all(torch.equal(p, s) for p, s in zip(adapter.parameters, adapter.source, strict=True))


def test_roid_trains_batchnorm1d_with_batch_statistics() -> None:
    class Net(torch.nn.Sequential):
        num_classes = 10

        def get_classifier(self) -> torch.nn.Module:
            return self[-1]

    torch.manual_seed(0)
    flat = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = Net(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), *flat, torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10))
    [x] = batches(1)
    scores = []
    for shift in (0.0, 5.0):
        net[4].running_mean.fill_(shift)  # type: ignore[operator, union-attr]
        adapter: Any = ready(Roid, SourceModel(copy.deepcopy(net), (0.5,) * 3, (0.5,) * 3).eval().requires_grad_(False))
        assert torch.equal(adapter.predict(x), adapter.predict(x))
        scores.append(adapter.step(x))
        assert any(p is adapter.model.net[4].weight for p in adapter.parameters)
    assert torch.equal(*scores)


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Roid, Cmf])
def test_sgd_has_nesterov_momentum_unless_said_otherwise(cls: type[Adapter]) -> None:
    def options(**values: Any) -> dict[str, Any]:
        config: Any = cls.Config(**values)
        given: dict[str, Any] = config.optimizer_options
        return given

    assert options()["nesterov"] is True
    assert options(optimizer_options={"momentum": 0.5}) == {**options(), "momentum": 0.5}
    for values in ({"nesterov": False}, {"momentum": 0.0}):
        assert options(optimizer_options=values)["nesterov"] is False
    assert "nesterov" not in options(optimizer="adam")
    with pytest.raises(ValidationError, match="optimizer_options"):
        options(optimizer_options="nesterov")


@pytest.mark.parametrize(
    ("cls", "preset", "batch_size", "values"),
    [(DeYO, "imagenet_vit_b16", 64, {"lr": 1e-3, "plpd_threshold": 0.2}), (DeYO, "imagenet_vit_b16", 1, {"lr": 2e-3 / 64}),
     (DeYO, "imagenet_resnet50_gn", 1, {"lr": 5e-4 / 32, "plpd_threshold": 0.2}),
     (DeYO, "imagenet_resnet50_bn", 16, {"lr": 1.25e-4, "plpd_threshold": 0.3}),
     (DeYO, "cifar10", 200, {"optimizer": "adam", "lr": 1e-3, "plpd_threshold": 0.2}),
     (RDumb, "imagenet_resnet50_bn", 64, {"optimizer": "sgd", "lr": 2.5e-4, "d_margin": 0.05, "reset_every": 1000}),
     (RDumb, "cifar10", 200, {"optimizer": "adam", "lr": 1e-3, "d_margin": 0.4, "reset_every": 1000}),
     (Roid, "imagenet_resnet50_bn", 64, {"optimizer": "sgd", "lr": 2.5e-4, "momentum_src": 0.99, "momentum_probs": 0.9}),
     (Roid, "imagenet_vit_b16", 64, {"optimizer": "sgd", "lr": 2.5e-4, "temperature": 1 / 3}),
     (Roid, "cifar10", 200, {"optimizer": "adam", "lr": 1e-3}),
     (Cmf, "imagenet_resnet50_bn", 64, {"optimizer": "sgd", "lr": 2.5e-4, "alpha": 0.99, "gamma": 0.99, "q": 0.005}),
     (Cmf, "cifar10", 200, {"optimizer": "adam", "lr": 1e-3})],
)  # fmt: skip
def test_presets_are_the_published_ones(
    cls: type[Adapter], preset: str, batch_size: int, values: dict[str, Any]
) -> None:
    config = cls.Config(**cls.presets[preset].resolve(batch_size))
    assert {name: getattr(config, name) for name in values} == pytest.approx(values)
