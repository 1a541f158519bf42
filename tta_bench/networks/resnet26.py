"""The ResNet-26 for CIFAR of test-time training (TTT, 1909.13231) and MEMO (2110.09506), with GroupNorm.

A pre-activation ResNet (He et al., 1603.05027) of 6·4 + 2 layers, whose shortcuts have no weights: average pooling, and
zeros for the channels that are new.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from tta_bench.networks.checkpoints import FileConfig, FromFile
from tta_bench.networks.pooled import PooledNetwork

_BLOCKS = 4  # in each of three stages
_FIRST = 16  # channels


def _norm(channels: int, groups: int | None) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.BatchNorm2d(channels)


class Block(nn.Module):
    """Two 3×3 convolutions, each after its norm, around a shortcut without weights."""

    def __init__(self, inside: int, outside: int, stride: int, groups: int | None):
        super().__init__()
        self.stride, self.new = stride, outside - inside
        self.bn1 = _norm(inside, groups)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = _norm(outside, groups)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        shortcut = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return residual + (F.pad(shortcut, (0, 0, 0, 0, 0, self.new)) if self.new else shortcut)


class ResNet26(PooledNetwork):
    """Three stages of 16, 32 and 64 channels, times ``width``; BatchNorm where ``groups`` is None."""

    def __init__(self, width: int, groups: int | None, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

        def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
            first = Block(inside, outside, stride, groups)
            return nn.Sequential(first, *(Block(outside, outside, 1, groups) for _ in range(_BLOCKS - 1)))

        self.conv1 = nn.Conv2d(3, _FIRST, 3, padding=1, bias=False)
        self.layer1 = stage(_FIRST, 16 * width, 1)
        self.layer2 = stage(16 * width, 32 * width, 2)
        self.layer3 = stage(32 * width, 64 * width, 2)
        self.bn = _norm(64 * width, groups)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, 64·width, h, w), normalised and rectified."""
        return F.relu(self.bn(self.layer3(self.layer2(self.layer1(self.conv1(x))))))

    def get_classifier(self) -> nn.Module:
        return self.fc


class ResNet26s(FromFile):
    """The ResNet-26 with GroupNorm of TTT and MEMO for CIFAR, from a file of weights."""

    name = "resnet26"
    in_tag = frozenset({"width"})

    class Config(FileConfig):
        """Attributes:
        width: factor of the channels 16, 32, 64.
        groups: of GroupNorm; null: BatchNorm.
        weights, classes, mean, std: see :class:`tta_bench.networks.checkpoints.FileConfig`; by default 0.5 (TTT, MEMO).
        """

        width: Annotated[int, Field(ge=1)] = 1
        groups: Annotated[int, Field(ge=1)] | None = 8

        @model_validator(mode="after")
        def _divides(self) -> ResNet26s.Config:
            if self.groups is not None and _FIRST % self.groups:
                raise PydanticCustomError("groups", "groups: must divide the first layer's 16 channels")
            return self

    @property
    def tag(self) -> str:
        width = "" if self.config.width == 1 else f"-{self.config.width}"
        return f"ResNet-26{width}-{'BN' if self.config.groups is None else 'GN'}"

    def architecture(self) -> nn.Module:
        return ResNet26(self.config.width, self.config.groups, self.config.classes)
