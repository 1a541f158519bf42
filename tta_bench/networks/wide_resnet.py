"""Wide residual networks for CIFAR (Zagoruyko and Komodakis, 1605.07146), with the names of RobustBench's checkpoints."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from tta_bench.networks.checkpoints import HALF, UNNORMALISED, FileConfig, FromFile, Normalisation
from tta_bench.networks.pooled import PooledNetwork

# (depth, width) of publications, and whether images are normalised: RobustBench's "Standard" takes them as they are,
# AugMix (1912.02781) normalises each channel by 0.5 and 0.5.
_PUBLISHED: dict[tuple[int, int], Normalisation] = {(28, 10): UNNORMALISED, (40, 2): HALF}


def _whole_blocks(depth: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise PydanticCustomError("depth", "a WideResNet's depth is 6n + 4: 10, 16, 22, 28, 34, 40, …")
    return depth


class Block(nn.Module):
    """Two 3×3 convolutions, each after its norm, around a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.convShortcut = None if inside == outside else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return shortcut + residual


class Group(nn.Module):
    """Blocks of one width; the first has the stride."""

    def __init__(self, blocks: int, inside: int, outside: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            Block(inside, outside, stride), *(Block(outside, outside, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(PooledNetwork):
    """A network of ``depth`` layers, ``width`` times as wide as a ResNet for CIFAR."""

    def __init__(self, depth: int, width: int, num_classes: int):
        super().__init__()
        blocks, self.num_classes = (depth - 4) // 6, num_classes
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Group(blocks, 16, 16 * width, 1)
        self.block2 = Group(blocks, 16 * width, 32 * width, 2)
        self.block3 = Group(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, 64·width, h, w), normalised and rectified."""
        return F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))

    def get_classifier(self) -> nn.Module:
        return self.fc


class WideResNets(FromFile):
    """WideResNets for CIFAR, among them RobustBench's Standard (28-10) and AugMix's (40-2), from a file of weights."""

    name = "wide_resnet"
    in_tag = frozenset({"depth", "width"})

    class Config(FileConfig):
        """Attributes:
        depth: number of layers, 6n + 4.
        width: factor of the channels 16, 32, 64.
        weights, classes, mean, std: see :class:`tta_bench.networks.checkpoints.FileConfig`; mean and std are required
            unless depth and width are those of a publication: 28-10 (RobustBench's Standard, unnormalised) or 40-2
            (AugMix, 0.5).
        """

        depth: Annotated[int, AfterValidator(_whole_blocks)] = 28
        width: Annotated[int, Field(ge=1)] = 10

        @model_validator(mode="after")
        def _known(self) -> WideResNets.Config:
            if self.mean is None and (self.depth, self.width) not in _PUBLISHED:
                known = " and ".join(f"{depth}-{width}" for depth, width in _PUBLISHED)
                raise PydanticCustomError(
                    "normalisation", "give mean: and std:, which are known only of {known}", {"known": known}
                )
            return self

    @property
    def tag(self) -> str:
        return f"WRN-{self.config.depth}-{self.config.width}"

    def architecture(self) -> nn.Module:
        return WideResNet(self.config.depth, self.config.width, self.config.classes)

    def published(self) -> Normalisation:
        return _PUBLISHED[self.config.depth, self.config.width]

    def own_name(self, name: str) -> str | None:
        if name.startswith("sub_block1."):  # checkpoints of TRADES's code carry one more first group that is never used
            return None
        return name.replace(".conv_shortcut.", ".convShortcut.")  # the same layer in AugMix's code

    def stages(self, net: nn.Module) -> list[nn.Module]:
        return [net.block1, net.block2, net.block3]  # type: ignore[list-item]
