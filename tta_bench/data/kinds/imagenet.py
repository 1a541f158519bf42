"""ImageNet and everything that shares its classes: corrupted trees and natural variants, as shifts of one suite.

The trees of ImageNet-C, -C-bar and -3DCC have one layout, ``<root>/<corruption>/<severity>/<wnid>/<image>``; ImageNet-R,
-A and -Sketch are ``<root>/<wnid>/<image>``; of ImageNet-V2 the folders are numbers of classes, 0 to 999, as text.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tta_bench.data import mending, trees, wnids
from tta_bench.data.base import DataConfig, DataRequest, FolderPath
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.geometry import IMAGENET_C_GEOMETRY, IMAGENET_GEOMETRY
from tta_bench.data.images import FolderImages
from tta_bench.data.kinds.imagenet_c import CORRUPTED, VALIDATION, no_folder
from tta_bench.data.labels import LABELS, imagenet_labels
from tta_bench.data.listing import folders
from tta_bench.data.matched import ClassFolders, Matched, mask_of, positions_of
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem, UsageError
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
SETS = {
    "source": VALIDATION,
    "imagenet_c": CORRUPTED,
    "imagenet_c_bar": PublishedSet(
        "ImageNet-C-bar",
        "https://github.com/facebookresearch/augmentation-corruption",
        "<corruption>/<severity>/<wnid>/<image>",
        images=50_000,
        classes=1000,
        steps=(
            "download https://dl.fbaipublicfiles.com/inc_bar/imagenet_c_bar.tar.gz",
            "mkdir -p DIR/ImageNet-C-bar && tar -xf imagenet_c_bar.tar.gz -C DIR/ImageNet-C-bar",
        ),
        folder="ImageNet-C-bar",
        class_names=imagenet_labels,
    ),
    "imagenet_3dcc": PublishedSet(
        "ImageNet-3DCC",
        "https://github.com/EPFL-VILAB/3DCommonCorruptions",
        "<corruption>/<severity>/<wnid>/<image>",
        images=50_000,
        classes=1000,
        steps=("run tools/download_imagenet_3dcc.sh of that repository in DIR",),
        folder="ImageNet-3DCC",
        class_names=imagenet_labels,
    ),
    "imagenet_r": PublishedSet(
        "ImageNet-R",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "<wnid>/<image>",
        images=30_000,
        classes=200,
        steps=("tar -xf imagenet-r.tar -C DIR",),
        folder="imagenet-r",
        get="imagenet_r",
        class_names=functools.partial(imagenet_labels, "imagenet_r"),
    ),
    "imagenet_a": PublishedSet(
        "ImageNet-A",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        "<wnid>/<image>",
        images=7_500,
        classes=200,
        steps=("tar -xf imagenet-a.tar -C DIR",),
        folder="imagenet-a",
        get="imagenet_a",
        class_names=functools.partial(imagenet_labels, "imagenet_a"),
    ),
    "imagenet_sketch": PublishedSet(
        "ImageNet-Sketch",
        "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
        "<wnid>/<image>",
        images=50_889,
        classes=1000,
        size="7.6 GB",
        steps=("unzip ImageNet-Sketch.zip -d DIR",),
        folder="sketch",
        class_names=imagenet_labels,
    ),
    "imagenet_v2": PublishedSet(
        "ImageNet-V2",
        "https://huggingface.co/datasets/vaishaal/ImageNetV2",
        "imagenetv2-matched-frequency-format-val/<number of the class>/<image>",
        images=10_000,
        classes=1000,
        steps=(
            "download imagenetv2-matched-frequency.tar.gz (further variants: -threshold0.7, -top-images)",
            "mkdir -p DIR/ImageNetV2 && tar -xf imagenetv2-matched-frequency.tar.gz -C DIR/ImageNetV2",
        ),
        folder="ImageNetV2",
        get="imagenet_v2",
    ),
}
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

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            return SETS

        def key_of(self, shift: Shift) -> str:
            if shift == CLEAN:
                return "source"
            return "imagenet_v2" if shift.name in V2 else _TREE_OF.get(shift.name, shift.name)

        def usual_labels(self) -> Sequence[str]:
            return imagenet_labels()

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
            images = ClassFolders(str(self._corrupted(shift)), IMAGENET_C_GEOMETRY, self._named, wnids.renaming)
            self._check_complete(images, shift)
            return images
        classes = {**self._numbered, **self._named} if shift.name in V2 else self._named
        return ClassFolders(str(self._natural(shift)), self._geometry, classes, wnids.renaming)

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
            raise UsageError(no_folder(root, shift))
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
            names = ", ".join(path.name for path in there[:4])
            hint = f"expected one whose name holds {V2[shift.name]!r}{f'; there are: {names}' if names else ''}"
            mend = "" if found else _variant(root, V2[shift.name])
            raise UsageError(Problem(f"{len(found)} folders for {shift.id}", str(root), hint=mend or hint))
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


def _variant(root: pathlib.Path, variant: str) -> str:
    """How to mend a folder without one for a variant of ImageNet-V2, by the usual causes; or empty."""
    if "0" in mending.names(root):
        return f"this is the folder of one variant: name the folder above, {root.parent}"
    packed = [name for name in mending.archives(root) if _letters(variant) in _letters(name)]
    return (
        mending.unpacking(root, packed[:1]) if packed else mending.misplaced(root, f"*{variant.replace('-0', '*0')}*")
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
