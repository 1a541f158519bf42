"""A kind of data: stripes of four orientations."""

import numpy as np

from tta_bench.data import DataConfig, DataRequest, Generated
from tta_bench.data.images import ArrayImages

SIDE = 32


class Stripes(Generated):
    """Coloured stripes; the class is their orientation."""

    name = "stripes"

    class Config(DataConfig):
        """Attributes: images: how many of each class."""

        images: int = 20

    def __init__(self, config: Config, request: DataRequest):
        labels = np.tile(np.arange(4), config.images)
        rng = np.random.default_rng(config.seed)
        y, x = np.mgrid[:SIDE, :SIDE]
        waves = [np.sin(0.9 * (x * np.cos(a) + y * np.sin(a)) + p)
                 for a, p in zip(labels * np.pi / 4, rng.uniform(0, 6, len(labels)), strict=True)]  # fmt: skip
        colours = rng.uniform(0.3, 1.0, (len(labels), 1, 1, 3))
        pixels = (127.5 * (1 + 0.04 * np.stack(waves)[..., None] * colours)).astype(np.uint8)
        clean = ArrayImages(pixels, labels, [f"stripes/{i}" for i in range(len(labels))], 4)
        super().__init__(clean, None, strengths="cifar", seed=config.seed, title="Stripes-C")
