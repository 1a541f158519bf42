"""Label shift: online imbalance of labels (SAR, Niu et al. 2023, arXiv 2302.12400).

Blocks of draws, each dominated by one class, which is ``imbalance_ratio`` times as likely as any other; images are
drawn with replacement. One segment a shift; the same sequence where labels are equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tta_bench.protocols.base import Part, Protocol, Source, loaded, refusal
from tta_bench.protocols.config import LONGEST, ONE_OR_MORE, Conflict, ProtocolConfig
from tta_bench.protocols.published.chunks import by_class

_DRAWS_SEED = 2022
_RATIOS = (1, 1000, 2000, 3000, 4000, 5000, 500000)  # for which the authors shuffled class orders one after another


class LabelShift(Protocol):
    """Draws dominated by one class after another, the method reset before each shift (SAR)."""

    name = "label_shift"
    resets = "segment"

    class Config(ProtocolConfig):
        """What is drawn.

        Attributes:
            imbalance_ratio: how much likelier a block's class is than any other; ``.inf``: it has the block for itself.
            samples: of each shift, in as many blocks as classes; the remainder is not drawn.
            class_order: of variant sar, an ``.npy`` of the classes in order, or an ``.npz`` with ``ratio_<R>`` for
                several.

        Variants:
            sar: the generator of SAR's shipped lists (Niu et al. 2023, arXiv 2302.12400): seed 2022 draws whatever the
                seed, which only orders the classes. Published: 100,000 samples in batches of 64, the last one short; seed
                2021, whose class orders no Python seed is known to make: give them as ``class_order``.

        Example:
            {kind: label_shift, imbalance_ratio: 500000, samples: 100000}
            {kind: label_shift, variant: sar, imbalance_ratio: [1000, 500000]}
        """

        variants = ("sar",)
        imbalance_ratio: Annotated[tuple[Annotated[float, Field(ge=1)], ...], *ONE_OR_MORE] = (500000.0,)
        samples: Annotated[int, Field(ge=1, le=LONGEST)] = 100000
        class_order: str | None = None

        def conflicts(self) -> Iterator[Conflict]:
            yield from super().conflicts()
            if self.class_order is not None and self.variant != "sar":
                yield "class_order", "only variant sar has it", "write variant: sar, or leave it out"
            if np.inf in self.imbalance_ratio and self.variant == "sar":
                yield "imbalance_ratio", "variant sar takes no .inf", "give a number, or leave variant out"

    def parts(self, source: Source) -> Iterator[Part]:
        for number, (shift, labels) in enumerate(zip(source.shifts, source.labels, strict=True)):
            members = by_class(labels, 1 + int(labels.max()))
            if self.config.samples < len(members):
                what = f"{self.config.samples} samples are fewer than the {len(members)} classes of {shift.id}"
                raise refusal("samples", what, f"give {len(members)} or more")
            if absent := [k for k, rows in enumerate(members) if not len(rows)]:
                what = f"class {absent[0]} has no images in {shift.id}"
                raise refusal("kind", f"label_shift draws from every class, but {what}", "use more images")
            images = self._images(source, members)
            yield Part(shift.id, 0, np.full(len(images), number), images)

    def _images(self, source: Source, members: list[np.ndarray]) -> np.ndarray:
        """(n,) images of one shift, whose classes have ``members``."""
        [ratio], blocks = self.config.imbalance_ratio, range(len(members))
        size = self.config.samples // len(members)
        if self.config.variant == "sar":
            state, order = np.random.RandomState(_DRAWS_SEED), self._class_order(source.seed, len(members))
            # single draws, as the authors' loop makes them
            drawn = [state.choice(len(members), 1, p=_shares(order[b], ratio, len(members)))
                     for b in blocks for _ in range(size)]  # fmt: skip
            return _with_images(np.concatenate(drawn), members, state.randint)
        generator = source.rng("label_shift")
        order = generator.permutation(len(members))
        drawn = [generator.choice(len(members), size, p=_shares(order[b], ratio, len(members))) for b in blocks]
        return _with_images(np.concatenate(drawn), members, generator.integers)

    def _class_order(self, seed: int, classes: int) -> Any:
        """Variant sar's class of each block."""
        [ratio] = self.config.imbalance_ratio
        if self.config.class_order is not None:
            return _stored_order(self.config.class_order, ratio, classes)
        draws = random.Random(seed)
        for _ in range(_RATIOS.index(ratio) + 1 if ratio in _RATIOS else 1):
            order = list(range(classes))
            draws.shuffle(order)
        return order


def _shares(major: int, ratio: float, classes: int) -> np.ndarray:
    """(classes,) probabilities in a block of class ``major``."""
    if np.isinf(ratio):
        return np.eye(classes)[major]
    shares = np.full(classes, 1 / (ratio + classes - 1))
    shares[major] = 1 / (ratio + classes - 1) * ratio
    return shares


def _with_images(drawn: np.ndarray, members: list[np.ndarray], integers: Callable[..., np.ndarray]) -> np.ndarray:
    """An image for each drawn class, with replacement."""
    images = np.empty(len(drawn), dtype=np.int64)
    for k, rows in enumerate(members):
        here = np.flatnonzero(drawn == k)
        if len(here):
            images[here] = rows[integers(0, len(rows), len(here))]
    return images


def _stored_order(path: str, ratio: float, classes: int) -> np.ndarray:
    """(classes,) from a file.

    Raises:
        UsageError: there is no such file, it lacks the ratio, or it holds no order of the classes.
    """
    order = loaded("class_order", path)
    if not isinstance(order, np.ndarray):
        if f"ratio_{ratio:.15g}" not in order:
            known = ", ".join(sorted(order)) or "nothing"
            raise refusal("class_order", f"{path} has no ratio_{ratio:.15g}", f"it has {known}")
        order = order[f"ratio_{ratio:.15g}"]
    if not np.array_equal(np.sort(order, axis=None), np.arange(classes)):
        raise refusal("class_order", f"{path} must hold each class from 0 to {classes - 1} once")
    return order
