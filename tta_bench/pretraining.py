"""Pre-training of methods that learn before the test, on source models and source images, never on test images.

Such a method has a class ``Pretraining`` (a :class:`tta_bench.adapter.Config` with its options) and a class method
``pretrain(job)``, which ``tta-bench pretrain`` calls for each source model.
"""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_bench import __version__
from tta_bench.adapter import Config
from tta_bench.data import CleanImages, Dataset, corrupted_source
from tta_bench.data.base import digest
from tta_bench.data.cache import ImageCache, entry_of
from tta_bench.data.digests import Digests
from tta_bench.models import Network, SourceModel
from tta_bench.preparation import Preparation
from tta_bench.registry import PluginEntry, code_sha256
from tta_bench.run.loading import to_tensor
from tta_bench.streams import Shift


@dataclass(frozen=True)
class PretrainJob:
    """The argument of a method's ``pretrain``: one source model and its source images.

    Attributes:
        options: the method's ``Pretraining``.
        out: the checkpoint to write; the method may also write files beside it whose names begin with its name.
        device: to train on.
        image_size: height and width of the images in pixels.
        seed: of every draw.
        labels: (N,) classes of the source images, only for a published procedure that selects by accuracy; its checkpoint
            records that.
        provenance: texts by name, to store in the checkpoint; ``asked`` is a digest of everything the result depends on.
        say: reports progress to the user.
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
        """A fresh copy of the source model, on the device, in eval mode, with all parameters frozen."""
        return copy.deepcopy(self._pristine)

    def images(self, shift: Shift, rows: np.ndarray) -> Callable[[np.ndarray], Tensor]:
        """Source images ``rows`` under ``shift``: a function from image indices (B,) to (B, 3, H, W) in [0, 1]."""
        images = self._cache.images(entry_of(self._source, shift, np.unique(rows).astype(np.int32), Digests()))
        return lambda index: to_tensor(images.take(index), self.device, torch.float32)


@dataclass(frozen=True)
class Pretraining:
    """The pre-training of a method for one source model, not started.

    Attributes:
        entry: of the method.
        settings: its options.
        suite: name of the suite.
        data_seed: seeds the corruptions of the source images.
        network, dataset: the source model and its data.
        asked: the source model's part of a trial's key.
        seed: of every draw.
    """

    entry: PluginEntry
    settings: Config
    suite: str
    data_seed: int
    network: Network
    dataset: Dataset
    asked: Mapping[str, Any]
    seed: int = 0

    @property
    def name(self) -> str:
        """``mgg-resnet_bn``"""
        return f"{self.entry.name}-{self.network.config.name}"

    def source(self) -> CleanImages:
        """The source images.

        Raises:
            UsageError: the suite names none.
        """
        corrupted_source(self.dataset, self.data_seed)
        assert self.dataset.source is not None
        return self.dataset.source

    def about(self) -> dict[str, str]:
        """The provenance that a checkpoint's content depends on; texts by name."""
        source, note = self.source(), self.dataset.source_note
        return {
            "method": self.entry.name,
            "suite": self.suite,
            "source_model": str(self.network.config.name),
            "source_model_tag": self.network.tag,
            "weights_sha256": self.asked["weights_sha256"],
            "source_data": digest(source.fingerprint(source.all_rows(), Digests())),
            "source_images": f"{len(source.ids)}" + (f", {note}" if note else ""),
            "seed": str(self.seed),
            "options": self.settings.model_dump_json(),
        }

    def provenance(self, device: torch.device) -> dict[str, str]:
        """The provenance stored in a checkpoint; ``asked`` is a digest of everything that its content depends on."""
        about = self.about()
        return {
            **about,
            "tta_bench": __version__,
            "torch": torch.__version__,
            "device": device.type,
            "asked": digest([self._shape(), about]),
        }

    def _shape(self) -> dict[str, Any]:
        return {
            "model": dict(self.asked),
            "code": code_sha256(self.entry),
            "strengths": self.dataset.strengths,
            "data_seed": self.data_seed,
        }

    def run(self, out: pathlib.Path, cache: ImageCache, device: torch.device, say: Callable[[str], None]) -> str:
        """Pre-train, resuming from partial results beside ``out``; returns a sentence on the result.

        Raises:
            CannotGoOn: it cannot be finished; partial results are kept.
        """
        cls: Any = self.entry.load()
        pristine = self.network.load().to(device)
        pristine.weights_sha256 = self.asked["weights_sha256"]
        out.parent.mkdir(parents=True, exist_ok=True)
        images = corrupted_source(self.dataset, self.data_seed)
        job = PretrainJob(self.settings, out, device, self.dataset.side, self.seed, self.source().labels,
                          self.provenance(device), say, pristine, images, cache)  # fmt: skip
        summary: str = cls.pretrain(job)
        return summary

    def preparation(self, cache: ImageCache, device: torch.device) -> Preparation:
        """This pre-training as a preparation of a run."""
        make = functools.partial(self._make, cache, device)
        return Preparation(self.name, {"shape": self._shape(), "about": self.about()}, ".safetensors", make)

    def _make(self, cache: ImageCache, device: torch.device, out: pathlib.Path, say: Callable[[str], None]) -> str:
        return self.run(out, cache, device, say)
