"""scikit-learn's 1,797 handwritten digits, split so that no source model was trained on a test image."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from tta_bench.data.base import DataConfig, DataRequest
from tta_bench.data.generated import Generated
from tta_bench.data.images import ArrayImages
from tta_bench.errors import Problem, UsageError

SIDE = 32
TEST_IMAGES = 1000
_SPLIT_SEED = 20260101  # the shipped source models were trained on the rest of this split: never change it


class DigitsSplit(NamedTuple):
    """Images are uint8 (n, 32, 32, 3), labels int64 (n,), ids the rows (n,) of scikit-learn's table."""

    train_images: np.ndarray
    train_labels: np.ndarray
    train_ids: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_ids: np.ndarray


@functools.cache
def load_split() -> DigitsSplit:
    """The 797 training and 1,000 test digits, scaled from 8×8 (0 to 16) to 32×32 RGB."""
    table = np.loadtxt(_file(), delimiter=",", dtype=np.int64)  # 64 pixels and the label
    images = np.stack([_scaled(image) for image in table[:, :64].reshape(-1, 8, 8)])
    labels = table[:, 64]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    test, train = np.sort(order[:TEST_IMAGES]), np.sort(order[TEST_IMAGES:])
    split = DigitsSplit(images[train], labels[train], train, images[test], labels[test], test)
    for array in split:
        array.flags.writeable = False  # shared by all callers
    return split


def _file() -> pathlib.Path:
    """The data file of scikit-learn, located without importing it, which takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UsageError(
            Problem("the digits come with scikit-learn, which is not installed", hint="pip install scikit-learn")
        )
    return pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _scaled(image: np.ndarray) -> np.ndarray:
    grey = Image.fromarray((image * (255.0 / 16.0)).round().astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[:, :, None], 3, axis=2)


class Digits(Generated):
    """scikit-learn's handwritten digits: 1,000 test images; the other 797 trained the source models."""

    name = "digits"

    class Config(DataConfig):
        """Attributes:
        strengths: "cifar" (CIFAR-10-C's) or "imagenet" (much stronger at this size).
        """

        strengths: Literal["imagenet", "cifar"] = "cifar"

    def __init__(self, config: Config, request: DataRequest):
        split = load_split()
        test = ArrayImages(split.test_images, split.test_labels, [f"digit/{i}" for i in split.test_ids], 10)
        source = ArrayImages(split.train_images, split.train_labels, [f"digit/{i}" for i in split.train_ids], 10)
        super().__init__(test, source, strengths=config.strengths, seed=config.seed, title="digits-C")
