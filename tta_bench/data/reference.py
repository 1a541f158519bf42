"""What a published data set holds, where its authors offer it, and how its folder looks: stated by each kind of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tta_bench.streams import Shift

OWN = ""  # the address of data of one's own


@dataclass(frozen=True)
class PublishedSet:
    """A published data set, one of those that a key of a suite's ``data`` names the folder of.

    Attributes:
        title: its name.
        address: the page of its authors, or the download itself; or :data:`OWN`.
        layout: of its folder.
        images: number of images under each shift, or by the shift's name; None where that is not fixed.
        classes: number of its classes, or None.
        size: of the download, as text, where it is fetched by hand and its authors say it.
        steps: what to do by hand, in order: shell commands and sentences, in which DIR is a folder of the user's choice.
        folder: what the suite's key names afterwards, below DIR.
        get: its name for ``tta-bench data get``, which knows the size, or empty where that does not know it.
        class_names: a function that returns the names of its class folders, where these are known.
    """

    title: str
    address: str
    layout: str
    images: int | Mapping[str, int] | None = None
    classes: int | None = None
    size: str = ""
    steps: Sequence[str] = ()
    folder: str = ""
    get: str = ""
    class_names: Callable[[], Sequence[str]] | None = None

    def images_under(self, shift: Shift) -> int | None:
        """How many images it has under a shift; None where that is not known."""
        return self.images.get(shift.name) if isinstance(self.images, Mapping) else self.images

    def summary(self) -> str:
        """How many images and classes it has: ``50,000 images for each corruption and severity, 1,000 classes``."""
        counts = [*self.images.values()] if isinstance(self.images, Mapping) else [self.images]
        images = " or ".join(f"{count:,}" for count in dict.fromkeys(counts) if count is not None)
        parts = [f"{images} images{' under each shift' if '<severity>' in self.layout else ''}"] if images else []
        return ", ".join([*parts, *([f"{self.classes:,} classes"] if self.classes else [])])
