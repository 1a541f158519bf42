"""ResNeXts for CIFAR (Xie et al., 1611.05431), with the names of AugMix's checkpoints (1912.02781)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from tta_bench.networks.checkpoints import FileConfig, FromFile
from tta_bench.networks.pooled import PooledNetwork

_EXPANSION = 4


def _whole_blocks(depth: int) -> int:
    if depth < 11 or (depth - 2) % 9:
        raise PydanticCustomError("depth", "a ResNeXt's depth for CIFAR is 9n + 2: 11, 20, 29, 38, …")
    return depth


class Bottleneck(nn.Module):
    """1×1, grouped 3×3 and 1×1 convolutions, each before its norm, around a shortcut."""

    def __init__(self, inside: int, planes: int, stride: int, cardinality: int, base_width: int):
        super().__init__()
        middle, outside = cardinality * (planes * base_width // 64), planes * _EXPANSION
        self.conv_reduce = nn.Conv2d(inside, middle, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(middle)
        self.conv_conv = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(middle)
        self.conv_expand = nn.Conv2d(middle, outside, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = self.bn_expand(self.conv_expand(F.relu(self.bn(self.conv_conv(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNeXt(PooledNetwork):
    """A network of ``depth`` layers with ``cardinality`` groups, ``base_width`` channels each in the first stage."""

    def __init__(self, depth: int, cardinality: int, base_width: int, num_classes: int):
        super().__init__()
        blocks, self.num_classes = (depth - 2) // 9, num_classes

        def stage(inside: int, planes: int, stride: int) -> nn.Sequential:
            first = Bottleneck(inside, planes, stride, cardinality, base_width)
            outside = planes * _EXPANSION
            return nn.Sequential(
                first, *(Bottleneck(outside, planes, 1, cardinality, base_width) for _ in range(blocks - 1))
            )

        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        self.stage_1 = stage(64, 64, 1)
        self.stage_2 = stage(64 * _EXPANSION, 128, 2)
        self.stage_3 = stage(128 * _EXPANSION, 256, 2)
        self.classifier = nn.Linear(256 * _EXPANSION, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, 1024, h, w)."""
        maps: Tensor = self.stage_3(self.stage_2(self.stage_1(F.relu(self.bn_1(self.conv_1_3x3(x))))))
        return maps

    def get_classifier(self) -> nn.Module:
        return self.classifier


class ResNeXts(FromFile):
    """ResNeXts for CIFAR, among them AugMix's ResNeXt-29, from a file of weights."""

    name = "resnext"
    in_tag = frozenset({"depth", "cardinality", "base_width"})

    class Config(FileConfig):
        """Attributes:
        depth: number of layers, 9n + 2.
        cardinality: number of groups.
        base_width: channels of each group in the first stage. AugMix's "32×4" is 4 groups of 32 channels, which gives
            the published 6.8 million parameters; 32 groups of 4 channels would have 4.8 million.
        weights, classes, mean, std: see :class:`tta_bench.networks.checkpoints.FileConfig`; by default 0.5 (AugMix).
        """

        depth: Annotated[int, AfterValidator(_whole_blocks)] = 29
        cardinality: Annotated[int, Field(ge=1)] = 4
        base_width: Annotated[int, Field(ge=1)] = 32

    @property
    def tag(self) -> str:
        return f"ResNeXt-{self.config.depth}-{self.config.cardinality}x{self.config.base_width}d"

    def architecture(self) -> nn.Module:
        config = self.config
        return ResNeXt(config.depth, config.cardinality, config.base_width, config.classes)

    def stages(self, net: nn.Module) -> list[nn.Module]:
        return [net.stage_1, net.stage_2, net.stage_3]  # type: ignore[list-item]
