"""Plugins for benchmarks/gpu.py: random images of 224² pixels, and a method that does nothing with them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tta_bench.adapter import Adapter
from tta_bench.data import DataConfig, DataRequest, Generated
from tta_bench.data.images import ArrayImages

SIDE = 224
SOURCE = 256  # source images


class Noise(Generated):
    """Random pixels and labels."""

    name = "noise"

    class Config(DataConfig):
        """Attributes: images: how many; classes: of the labels."""

        images: int = 2048
        classes: int = 1000

    def __init__(self, config: Config, request: DataRequest):
        rng = np.random.default_rng(config.seed)
        pixels = rng.integers(0, 256, (config.images, SIDE, SIDE, 3), dtype=np.uint8)
        labels = rng.integers(0, config.classes, config.images)
        names = [f"noise/{i}" for i in range(config.images)]
        super().__init__(
            ArrayImages(pixels, labels, names, config.classes),
            ArrayImages(pixels[:SOURCE], labels[:SOURCE], [f"source/{i}" for i in range(SOURCE)], config.classes),
            strengths="imagenet",
            seed=config.seed,
            title="Noise",
        )


class Nothing(Adapter):
    """Equal scores for every image, without a network."""

    name = "nothing"

    def step(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :1].expand(-1, self.context.num_classes) * 0
