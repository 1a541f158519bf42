"""Clean images corrupted on the fly, each with a seed derived from its id, by one corruption or several in turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from tta_bench.data.base import CleanImages, Dataset, Found
from tta_bench.data.corrupt import corruptions
from tta_bench.data.corrupt.strengths import Strengths
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import ImageFiles, recompress
from tta_bench.errors import Problem, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift


class Generated(Dataset):
    """Any clean images under the 19 corruptions, and under compounds of them at severities in quarters.

    Args:
        clean: the images.
        source: clean images for methods that use source images, or None.
        strengths: "imagenet" or "cifar".
        seed: the data seed.
        title: the data set's name in tables.
        recompress_jpeg: JPEG quality of a round trip after the corruption, or the last of several; or None.
    """

    def __init__(
        self,
        clean: CleanImages,
        source: CleanImages | None,
        *,
        strengths: Strengths,
        seed: int,
        title: str,
        recompress_jpeg: int | None = None,
    ):
        self.clean, self.source = clean, source
        self.strengths, self.seed, self.recompress_jpeg = strengths, seed, recompress_jpeg
        self.title = title
        self.ids, self.labels = clean.ids, clean.labels
        self.num_classes, self.side = clean.num_classes, clean.side
        benchmark = "ImageNet-C" if strengths == "imagenet" else "CIFAR-10-C"
        like = title.startswith(benchmark)  # else nobody takes them for the benchmark's
        self.note = f"generated, not {benchmark}" if like else f"corrupted with the strengths of {benchmark}"

    def found(self) -> list[Found]:
        found = [*self.clean.found(), *(self.source.found() if self.source else [])]
        return [each for i, each in enumerate(found) if each not in found[:i]]  # one folder may be both

    def files(self, shift: Shift) -> ImageFiles | None:
        return self.clean.files()

    def missing(self, shift: Shift) -> Problem | None:
        if problem := unknown_corruption(shift):
            return problem
        if shift != CLEAN and self.strengths == "cifar" and self.side != 32:
            message = f"strengths: cifar is for 32x32 images, these are {self.side}x{self.side}"
            return Problem(message, hint="choose strengths: imagenet")
        return None

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        clean = {"kind": "generated", "shift": shift.id, "clean": self.clean.fingerprint(rows, digests)}
        if shift == CLEAN:
            return clean
        return {
            **clean,
            "strengths": self.strengths,
            "seed": self.seed,
            "libraries": corruptions.library_versions(self.strengths, shift.name),
            **({"recompress_jpeg": self.recompress_jpeg} if self.recompress_jpeg else {}),
        }

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        return np.stack([self._one(shift, int(i)) for i in index])

    def _one(self, shift: Shift, index: int) -> np.ndarray:
        pixels = self.clean.decode(index)
        if shift == CLEAN:
            return pixels
        for part in shift.parts or (shift,):
            name = corruptions.OF_CCC.get(part.name, part.name)
            seed = corruptions.image_seed(self.ids[index], name, part.severity or 0, self.seed)
            pixels = corruptions.corrupt(pixels, name, part.severity or 0, strengths=self.strengths, seed=seed)
        return recompress(pixels, self.recompress_jpeg) if self.recompress_jpeg else pixels


def unknown_corruption(shift: Shift) -> Problem | None:
    """A problem where ``shift`` is neither clean, compound nor one of the 19 corruptions; else None."""
    if shift in (CLEAN, COMPOUND):
        return None
    for name in [corruptions.OF_CCC.get(part.name, part.name) for part in shift.parts] or [shift.name]:
        if name not in corruptions.NAMES:
            return Problem(f"unknown corruption {name!r}", hint=near_miss(name, ["clean", *corruptions.NAMES]))
    return None
