"""Domains that share their classes, ``<root>/<domain>/<class>/<image>``: PACS, Office-Home, DomainNet, one's own.

Each domain is a shift, named by its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from tta_bench.data import trees
from tta_bench.data.base import DataConfig, DataRequest, FolderPath
from tta_bench.data.geometry import IMAGENET_GEOMETRY, Geometry
from tta_bench.data.images import FolderImages
from tta_bench.data.listing import class_order, folders, level_fault
from tta_bench.data.matched import ClassFolders, Matched, mask_of, positions_of
from tta_bench.data.reference import OWN, PublishedSet
from tta_bench.errors import Problem, UsageError
from tta_bench.files import expanded
from tta_bench.streams import Shift

DOMAIN = "domain"  # the family of the shifts
SETS = (
    PublishedSet(
        "PACS", OWN, "<domain>/<class>/<image>", classes=7,
        images={"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
    ),
    PublishedSet(
        "Office-Home", OWN, "<domain>/<class>/<image>", classes=65,
        images={"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357},
    ),
)  # fmt: skip
_ANY = PublishedSet("domains that share their classes", OWN, "<domain>/<class>/<image>")
_TAKEN = ("clean", "mean")  # columns of the tables


class Domains(Matched[ClassFolders]):
    """Domains that share their classes; a class is a folder in at least one of them."""

    name = "domains"

    class Config(DataConfig):
        """Attributes:
        root: ``<root>/<domain>/<class>/<image>``.
        source: images for methods that use source images, ``<class>/<image>``; their labels are not used.
        title: the data set's name in tables; by default the root's.
        preprocess: "standard" (Resize 256, CenterCrop 224), "weights" (the size and crop that timm publishes with the
            model's weights), or "none" (images unchanged).
        mask: of a model whose classes are named and that has more than the domains have: "own": a method gets a network
            of the domains' classes; "none": one of all classes of the model.
        """

        root: FolderPath
        source: FolderPath | None = None
        title: str | None = None
        preprocess: Literal["standard", "weights", "none"] = "standard"
        mask: Literal["own", "none"] = "own"

        @model_validator(mode="after")
        def _of_domains(self) -> Domains.Config:
            root = expanded(self.root)
            if self.root and root.is_dir() and (fault := level_fault(root.resolve())):
                raise PydanticCustomError("layout", "{message}", {"message": fault.message, "hint": fault.hint})
            return self

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            """The root's is known by the names of its folders."""
            root = given.get("root")
            there = {*folders(trees.resolved(root))} if root and trees.is_folder(root) else set()
            known = (each for each in SETS if isinstance(each.images, Mapping) and there == {*each.images})
            return {"root": next(known, _ANY), "source": PublishedSet("source images", OWN, "<class>/<image>")}

        @property
        def by_weights(self) -> bool:
            return self.preprocess == "weights"

        @property
        def by_labels(self) -> bool:
            return True

        def shift_names(self) -> Sequence[str]:
            return folders(trees.resolved(self.root)) if self.root else ()

        def shift(self, name: str, severity: int) -> Shift:
            return Shift(name, None, DOMAIN)

    def __init__(self, config: Config, request: DataRequest):
        self.root = trees.resolved(config.root)
        super().__init__(config.title or self.root.name, "none" if config.mask == "none" else "")
        domains = folders(self.root)
        if taken := sorted({*_TAKEN} & {*domains}):
            raise UsageError(Problem(f"no domain can be named {taken[0]!r}", str(self.root), hint="rename the folder"))
        names = class_order({name for domain in domains for name in folders(self.root / domain)}, str(self.root))
        labels = names if request.labels is None else request.labels
        self._classes = dict(zip(names, positions_of(names, labels, str(self.root)), strict=True))
        self.num_classes = len(labels)
        self._mask = mask_of([*self._classes.values()] if config.mask == "own" else range(len(labels)), len(labels))
        published = request.geometry or IMAGENET_GEOMETRY
        self._geometry = {"standard": IMAGENET_GEOMETRY, "none": Geometry(), "weights": published}[config.preprocess]
        self.source = FolderImages(config.source, self._geometry) if config.source else None
        self.side = self._geometry.crop or self.images_of(request.shifts[0]).side

    def mask_of(self, shift: Shift) -> tuple[int, ...] | None:
        return self._mask

    def open_images(self, shift: Shift) -> ClassFolders:
        return ClassFolders(str(self.root / shift.name), self._geometry, self._classes)
