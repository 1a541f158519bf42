"""ImageNet and everything that shares its classes: corrupted trees and natural variants, as shifts of one suite.

The trees of ImageNet-C, -C-bar and -3DCC have one layout, ``<root>/<corruption>/<severity>/<wnid>/<image>``; ImageNet-R,
-A and -Sketch are ``<root>/<wnid>/<image>``; of ImageNet-V2 the folders are numbers of classes, 0 to 999, as text.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Literal

from tta_bench.data import trees
from tta_bench.data.base import (
    IMAGENET_C_GEOMETRY,
    IMAGENET_GEOMETRY,
    DataConfig,
    DataRequest,
    FolderPath,
)
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.images import FolderImages
from tta_bench.data.labels import LABELS, imagenet_labels
from tta_bench.data.listing import folders
from tta_bench.data.matched import ClassFolders, Matched, mask_of, positions_of
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, Shift

TREES: dict[str, tuple[str, tuple[str, ...]]] = {  # key of the suite to the family and the names of its shifts
    "imagenet_c": ("corruption", NAMES),
    "imagenet_c_bar": ("C-bar", ("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout",
                                 "cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise",
                                 "single_frequency_greyscale", "sparkles")),
    "imagenet_3dcc": ("3DCC", ("near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr",
                               "h265_crf", "iso_noise", "low_light", "xy_motion_blur", "z_motion_blur")),
}  # fmt: skip
NATURAL = "natural"  # the family of the natural variants
PARTIAL = ("imagenet_r", "imagenet_a")  # of some of the 1,000 classes
WHOLE = ("imagenet_sketch",)
V2 = {"imagenet_v2_matched_frequency": "matched-frequency", "imagenet_v2_threshold_0.7": "threshold-0.7",
      "imagenet_v2_top_images": "top-images"}  # fmt: skip
_TREE_OF = {name: key for key, (_, names) in TREES.items() for name in names}


class ImageNet(Matched[ClassFolders]):
    """ImageNet's validation images, corrupted copies of them, and natural variants, in any mixture."""

    name = "imagenet"

    class Config(DataConfig):
        """Attributes:
        source: the clean validation folder, ``<wnid>/<image>``, for ``clean`` and for methods that use source images.
        imagenet_c, imagenet_c_bar, imagenet_3dcc: trees of corrupted validation images.
        imagenet_r, imagenet_a, imagenet_sketch: natural variants.
        imagenet_v2: the folder that holds those of its variants.
        preprocess: of all but corrupted images: "standard" (Resize 256, CenterCrop 224), or "weights" (the size and crop
            that timm publishes with the model's weights).
        mask: "own": a method gets a network of the classes that ImageNet-R or -A has, 200 of 1,000; "none": one of all
            1,000, on the same images.
        """

        source: FolderPath | None = None
        imagenet_c: FolderPath | None = None
        imagenet_c_bar: FolderPath | None = None
        imagenet_3dcc: FolderPath | None = None
        imagenet_r: FolderPath | None = None
        imagenet_a: FolderPath | None = None
        imagenet_sketch: FolderPath | None = None
        imagenet_v2: FolderPath | None = None
        preprocess: Literal["standard", "weights"] = "standard"
        mask: Literal["own", "none"] = "own"

        @property
        def by_weights(self) -> bool:
            return self.preprocess == "weights"

        @property
        def by_labels(self) -> bool:
            return True

        def shift_names(self) -> Sequence[str]:
            return (CLEAN.name, *PARTIAL, *WHOLE, *V2, *_TREE_OF)

        def shift(self, name: str, severity: int) -> Shift:
            if name in _TREE_OF:
                return Shift(name, severity, TREES[_TREE_OF[name]][0])
            return CLEAN if name == CLEAN.name else Shift(name, None, NATURAL)

    def __init__(self, config: Config, request: DataRequest):
        super().__init__("ImageNet", "none" if config.mask == "none" else "")
        if request.labels is None:
            hint = "where they are ImageNet's in the usual order, write labels: imagenet in its entry"
            raise UsageError(Problem("the names of its classes are not known", LABELS, hint=hint))
        self.config, self.num_classes = config, len(request.labels)
        positions = positions_of(imagenet_labels(), request.labels, LABELS)
        self._named = dict(zip(imagenet_labels(), positions, strict=True))
        self._numbered = {str(number): position for number, position in enumerate(positions)}
        published = request.geometry or IMAGENET_GEOMETRY
        self._geometry = published if config.by_weights else IMAGENET_GEOMETRY
        self.side = self._geometry.crop or 224
        self.source = self.images_of(CLEAN) if config.source else None
        self._first = next((shift for shift in request.shifts if shift.name in _TREE_OF), None)

    def mask_of(self, shift: Shift) -> tuple[int, ...] | None:
        own = shift.name in PARTIAL and self.config.mask == "own"
        return mask_of(self.images_of(shift).present if own else [*self._named.values()], self.num_classes)

    def open_images(self, shift: Shift) -> ClassFolders:
        if shift.name in _TREE_OF:
            images = ClassFolders(str(self._corrupted(shift)), IMAGENET_C_GEOMETRY, self._named)
            self._check_complete(images, shift)
            return images
        return ClassFolders(
            str(self._natural(shift)), self._geometry, self._numbered if shift.name in V2 else self._named
        )

    def _folder(self, key: str, shift: Shift) -> pathlib.Path:
        folder = getattr(self.config, key)
        if not folder:
            hint = f"name it: data: {{kind: imagenet, {key}: PATH}}"
            raise UsageError(Problem(f"the suite names no folder for {shift.id}", hint=hint))
        return trees.resolved(folder)

    def _corrupted(self, shift: Shift) -> pathlib.Path:
        """The folder of a corruption at a severity."""
        root = self._folder(_TREE_OF[shift.name], shift)
        folder = root / shift.name / str(shift.severity)
        if not trees.is_folder(folder):
            there = folders(root) if root.is_dir() else []
            layout = "expected <root>/<corruption>/<severity>/<wnid>/*.JPEG" if root.is_dir() else trees.WITHOUT
            hint = near_miss(shift.name, there) if there else layout
            raise UsageError(Problem(f"no folder for {shift.id}", where=str(folder), hint=hint))
        return folder

    def _natural(self, shift: Shift) -> pathlib.Path:
        """The folder of clean images or of a natural variant."""
        if shift.name not in V2:
            return self._folder("source" if shift == CLEAN else shift.name, shift)
        root = self._folder("imagenet_v2", shift)
        wanted = _letters(V2[shift.name])
        there = [root / name for name in folders(root)]
        found = [path for path in there if wanted in _letters(path.name)]
        if len(found) != 1:
            hint = (
                f"expected one whose name holds {V2[shift.name]!r}; there are: {', '.join(p.name for p in there[:4])}"
            )
            raise UsageError(Problem(f"{len(found)} folders for {shift.id}", str(root), hint=hint))
        return found[0]

    def _check_complete(self, images: FolderImages, shift: Shift) -> None:
        """All corrupted trees must hold the same images, and the clean ones, so that image by image they can be compared.

        Raises:
            UsageError: some are missing.
        """
        whole = self.source
        if whole is None and self._first is not None and self._first != shift:
            whole = self.images_of(self._first)
        if whole is None or whole.ids == images.ids:
            return
        present = set(images.ids)
        absent = [path for path in whole.ids if path not in present]
        message = f"{len(images.ids) - len(whole.ids)} images are not among the clean ones"
        if absent:
            message = f"{len(absent)} of {len(whole.ids)} images are missing, the first is {absent[0]}"
        raise UsageError(Problem(message, str(images.root)))


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
