"""DeYO: destroy your object (Lee et al. 2024, arXiv 2403.07366).

Objective (equations 8 to 10): the mean over the selected samples S2 of a·H, H being the entropy, with the constant weight
a = e^(E0 − H) + e^PLPD. S1: H below ``deyo_margin``. S2: of those, PLPD above ``plpd_threshold``, where PLPD (pseudo-label
probability difference) is how far the predicted class's probability falls when the object's shape is destroyed: by
shuffling patches or pixels, or by an occlusion. Adapted: weight and bias of the normalisation layers before the last stage
(``early_norms.py``); BatchNorm with batch statistics, for the second pass those of S1 alone. Nothing selected: no step.
The scores graded are those before the update.

Random draws: a permutation of patches for each image of S1, or one of pixels for the batch; none where S1 is empty.

Discrepancies between paper, code and copies:

- the authors' ``reset()`` raises AttributeError; their main program builds a new model for each corruption instead. Here
  a reset restores weights and optimizer.
- the published threshold is 0.2, but 0.3 for ResNet-50 with BatchNorm; mariodoebler/test-time-adaptation has 0.2 for all,
  SGD with Nesterov momentum (``optimizer_options: {nesterov: true}``) and takes E0 from EATA's setting.
- mariodoebler's wrapper renames the layers, so that the textual rule misses the final norm of a ViT; the copy in MGTTA's
  code freezes no norm (``frozen: none``).
- without ``filter_ent`` the code keeps H up to ln(1000), whatever the number of classes.
- PyTorch refuses batch statistics of one value: a single image in S1 fails on a BatchNorm network with 1×1 maps.
- images whose side is no multiple of ``patch_len`` are resized, here with antialiasing as in today's torchvision.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import fold, interpolate, unfold

from tta_bench.adapter import Context, Preset
from tta_bench.methods.early_norms import EarlyNormAdapter, EarlyNormConfig, lr_resnet, lr_vit
from tta_bench.methods.functional import default_margin, mean_of, small_batch_lr_resnet, softmax_entropy
from tta_bench.methods.transfer import to_device
from tta_bench.models import SourceModel

_UNFILTERED = math.log(1000)  # the code's literal margin without the entropy filter


def shuffle_patches(x: Tensor, grid: int, generator: torch.Generator) -> Tensor:
    """Cut each image (B, 3, n, n) into grid × grid patches and permute them, differently for each image."""
    n = x.shape[-1]
    side = n // grid
    patches = unfold(_resize(x, side * grid), side, stride=side)  # (B, 3·side², grid²), row by row
    order = torch.rand(len(x), grid**2, generator=generator, dtype=torch.float32).argsort(1)
    shuffled = patches.gather(2, to_device(order, x.device).unsqueeze(1).expand_as(patches))
    return _resize(fold(shuffled, side * grid, side, stride=side), n)


def _resize(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else interpolate(x, (side, side), mode="bilinear", antialias=True)


def shuffle_pixels(x: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the pixels (B, 3, n, n), alike in all images and channels."""
    order = torch.randperm(x[0, 0].numel(), generator=generator)
    return x.flatten(2)[:, :, to_device(order, x.device)].view_as(x)


def occlude(x: Tensor, row: int, column: int, size: int) -> Tensor:
    """Fill a square with each image's own channel means."""
    occluded = x.clone()
    occluded[:, :, row : row + size, column : column + size] = x.mean((2, 3), keepdim=True)
    return occluded


class DeYO(EarlyNormAdapter):
    """Entropy minimisation on confident samples that depend on the object's shape."""

    class Config(EarlyNormConfig):
        """Attributes:
        entropy_margin: E0 of the weight in nats; None means 0.4·ln(classes).
        deyo_margin: entropy below which a sample is confident, in nats; None means 0.5·ln(classes).
        plpd_threshold: PLPD above which a confident sample is selected.
        aug_type: how the object is destroyed: "patch" (shuffled patches), "pixel" (shuffled pixels), "occ" (occlusion).
        patch_len: patches along a side ("patch").
        occlusion_size: side of the occluded square in pixels ("occ").
        row_start: its first row ("occ").
        column_start: its first column ("occ").
        filter_ent: select by entropy.
        filter_plpd: select by PLPD.
        reweight_ent: e^(E0 − H) is part of the weight.
        reweight_plpd: e^PLPD is part of the weight.
        """

        lr: float = 2.5e-4
        entropy_margin: float | None = None
        deyo_margin: float | None = None
        plpd_threshold: float = 0.2
        aug_type: Literal["patch", "pixel", "occ"] = "patch"
        patch_len: int = Field(4, ge=1)
        occlusion_size: int = Field(112, ge=1)
        row_start: int = Field(56, ge=0)
        column_start: int = Field(56, ge=0)
        filter_ent: bool = True
        filter_plpd: bool = True
        reweight_ent: bool = True
        reweight_plpd: bool = True

    presets = {
        "imagenet_vit_b16": Preset({"lr": lr_vit}, "DeYO's code (main.py)"),
        "imagenet_resnet50_gn": Preset({"lr": lr_resnet}, "DeYO's code (main.py)"),
        "imagenet_resnet50_bn": Preset(
            {"lr": small_batch_lr_resnet, "plpd_threshold": 0.3}, "DeYO's code (main.py, exp_deyo.sh)"
        ),
        "cifar10": Preset(
            {"optimizer": "adam", "lr": 1e-3},
            "mariodoebler/test-time-adaptation (cfgs/cifar10_c), batch 200",
        ),
    }

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or _misfit(config, context.image_size)

    def setup(self) -> None:
        super().setup()
        self.margin = default_margin(self.model, self.config.entropy_margin)
        given = self.config.deyo_margin
        self.deyo_margin = 0.5 * math.log(self.model.num_classes) if given is None else given
        self.kept_entropy, self.kept = 0, torch.tensor(0)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        entropy = softmax_entropy(logits)
        reliable = entropy < self.deyo_margin if self.config.filter_ent else entropy <= _UNFILTERED
        confident = torch.nonzero(reliable).flatten()  # the host waits: the second pass is of these images alone
        self.kept_entropy, self.kept = len(confident), reliable.new_zeros((), dtype=torch.int64)
        scores: Tensor = logits.detach()
        if self.kept_entropy == 0:
            return scores
        entropy, plpd = entropy[confident], self._plpd(x[confident], scores[confident].softmax(1))
        selected = plpd > self.config.plpd_threshold if self.config.filter_plpd else plpd >= -2
        self.kept = selected.sum()
        self.update(mean_of(self._weights(entropy.detach(), plpd) * entropy, selected), selected)
        return scores

    @torch.no_grad()
    def _plpd(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """How far the probability (B, C) of the predicted class falls on the destroyed images: (B,)."""
        predicted = probabilities.argmax(1, keepdim=True)
        destroyed = self.model(self._destroy(x)).softmax(1)
        return (probabilities.gather(1, predicted) - destroyed.gather(1, predicted)).squeeze(1)

    def _destroy(self, x: Tensor) -> Tensor:
        config, generator = self.config, self.context.generator
        if config.aug_type == "patch":
            return shuffle_patches(x, config.patch_len, generator)
        if config.aug_type == "pixel":
            return shuffle_pixels(x, generator)
        return occlude(x, config.row_start, config.column_start, config.occlusion_size)

    def _weights(self, entropy: Tensor, plpd: Tensor) -> Tensor:
        """e^(E0 − H) + e^PLPD, or the one that is switched on; 1 without both."""
        terms = [torch.exp(self.margin - entropy)] if self.config.reweight_ent else []
        terms += [torch.exp(plpd)] if self.config.reweight_plpd else []
        return torch.stack(terms).sum(0) if terms else torch.ones_like(entropy)

    def stats(self) -> dict[str, float | Tensor]:
        """kept_entropy: samples of S1; kept: samples of S2, which entered the loss."""
        return {"kept_entropy": float(self.kept_entropy), "kept": self.kept}


def _misfit(config: Any, side: int) -> str | None:
    """Why images of ``side`` pixels cannot be destroyed in this way, or None."""
    if config.aug_type == "patch" and config.patch_len > side:
        return f"images of {side} pixels have no {config.patch_len} patches along a side: lower patch_len"
    if config.aug_type == "occ" and max(config.row_start, config.column_start) >= side:
        return f"the occluded square lies outside images of {side} pixels: lower row_start and column_start"
    return None
