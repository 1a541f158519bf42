"""A base for SAR and DeYO, which adapt the normalisation layers before a network's last stage.

The published rule (SAR's ``sar.py``, DeYO's ``deyo.py``) goes by names: a layer is frozen if its name contains "layer4",
"blocks.9", "blocks.10", "blocks.11" or "norm.", or is "norm". It was written for torchvision's and timm's ResNets (stage
4) and timm's 12-block ViTs (the last quarter of the blocks and the final norm). To the letter, it freezes only the final
norm of a timm ViT with fewer than ten blocks, blocks 9 to 11 and the final norm of one with more than twelve, nothing in
a WideResNet or in torchvision's ViT and Swin, and everything where all norms lie in such modules (the trial is skipped).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from tta_bench.adapter import Context
from tta_bench.methods.functional import norm_layers, small_batch_lr_resnet, small_batch_lr_vit
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig

_LATE = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")


def lr_vit(batch_size: int) -> float:
    """1e-3·batch/64, doubled at batch 1"""
    return small_batch_lr_vit(batch_size) * (2 if batch_size == 1 else 1)


def lr_resnet(batch_size: int) -> float:
    """2.5e-4 from batch 32 on, 2.5e-4·batch/32 below, doubled at batch 1"""
    return small_batch_lr_resnet(batch_size) * (2 if batch_size == 1 else 1)


def frozen_by_name(model: SourceModel) -> set[nn.Module]:
    """The modules that the published, textual rule freezes."""
    return {
        module for name, module in model.net.named_modules() if name == "norm" or any(part in name for part in _LATE)
    }


def frozen_by_structure(model: SourceModel) -> set[nn.Module]:
    """The last stage of a network (the last quarter of a ViT's blocks) and all modules after it.

    Raises:
        MissingPart: the network has no stages.
    """
    stages = model.stages()
    last = max(1, len(stages) // 4) if model.is_transformer else 1
    modules = list(model.net.modules())
    return set(modules[modules.index(stages[-last]) :])


_RULES: dict[str, Callable[[SourceModel], set[nn.Module]]] = {
    "names": frozen_by_name,
    "structure": frozen_by_structure,
    "none": lambda _model: set(),
}


class EarlyNormConfig(OptimizerConfig):
    """Attributes:
    frozen: which norms are not adapted: "names" is the published rule (see the docstring of ``early_norms.py``),
        "structure" the last stage, or quarter of a ViT's blocks, and all after it, whatever its name; "none" adapts all.
    """

    frozen: Literal["names", "structure", "none"] = "names"


class EarlyNormAdapter(NormAdapter):
    """Adapts the norms before the last stage; its Config is an :class:`EarlyNormConfig`."""

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        reason = super().skip(model, config, context)
        if reason is None and _RULES[config.frozen](model).issuperset(norm_layers(model)):
            reason = f"'frozen: {config.frozen}' freezes every normalisation layer"
        return reason

    def choose_parameters(self) -> list[nn.Parameter]:
        adapted = super().choose_parameters()
        for module in _RULES[self.config.frozen](self.model):
            module.requires_grad_(False)
        return [parameter for parameter in adapted if parameter.requires_grad]
