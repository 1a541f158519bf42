"""What a method that is pre-trained gets: source models and source images, never a test image.

Such a method has a class ``Pretraining`` (a :class:`tta_bench.adapter.Config`: its options) and a class method
``pretrain(job)``, which ``tta-bench pretrain`` calls for each source model.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tta_bench.adapter import Config
from tta_bench.data import Dataset
from tta_bench.data.cache import ImageCache, entry_of
from tta_bench.data.digests import Digests
from tta_bench.models import SourceModel
from tta_bench.run.loading import to_tensor
from tta_bench.streams import Shift


class Stopped(Exception):
    """Raised by a method whose pre-training cannot go on; what it had is kept. The message says why."""


@dataclass(frozen=True)
class PretrainJob:
    """What a method's ``pretrain`` gets, for one source model.

    Attributes:
        options: the method's ``Pretraining``.
        out: the checkpoint to write; files beside it that begin with its name are the method's, too.
        device: where to work.
        image_size: height and width of the images in pixels.
        seed: of every draw.
        labels: (N,) classes of the source images. Only a published procedure that selects by them may look, and its
            checkpoint says so.
        provenance: texts by name, to be kept in the checkpoint; ``asked`` digests all that the result depends on.
        say: tells the user how far it is.
    """

    options: Config
    out: pathlib.Path
    device: torch.device
    image_size: int
    seed: int
    labels: np.ndarray
    provenance: Mapping[str, str]
    say: Callable[[str], None]
    _pristine: SourceModel = field(repr=False)
    _source: Dataset = field(repr=False)
    _cache: ImageCache = field(repr=False)

    def model(self) -> SourceModel:
        """A fresh copy of the source model, on the device, in eval mode, all frozen."""
        return copy.deepcopy(self._pristine)

    def images(self, shift: Shift, rows: np.ndarray) -> Callable[[np.ndarray], Tensor]:
        """Source images ``rows`` under ``shift``: a function from image indices (B,) to (B, 3, H, W) in [0, 1]."""
        held = self._cache.images(entry_of(self._source, shift, np.unique(rows).astype(np.int32), Digests()))
        return lambda index: to_tensor(held.take(index), self.device, torch.float32)
