"""Protocols with a part for each shift; ``order: FILE`` is one stored order for all (Benchmark-TTA, Yu et al. 2023, arXiv
2307.03133).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source, loaded, refusal
from tta_bench.protocols.config import Conflict
from tta_bench.protocols.ordered import Ordered, PublishedByMd, each_shift


class ShiftByShiftConfig(PublishedByMd):
    """Attributes: order: an ``.npy`` of positions in data order, all different, for every shift but the probe's."""

    order: str | None = None

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.order is not None and (self.variant or self.delta != (None,)):
            yield "order", "already fixes the order", "leave variant and delta out"


class ShiftByShift(Ordered):
    """One part for each shift, named by its id."""

    Config: ClassVar[type[ShiftByShiftConfig]] = ShiftByShiftConfig

    def outlines(self, source: Source) -> list[Outline]:
        return each_shift(source)

    def parts(self, source: Source) -> Iterator[Part]:
        if self.config.order is None:
            yield from super().parts(source)
            return
        order = _order(self.config.order, source)
        for outline in self.outlines(source):
            yield source.pool(outline.shifts).part(outline.name, outline.visit, order)


def _order(path: str, source: Source) -> np.ndarray:
    """(n,) positions.

    Raises:
        UsageError: there is no such file, or it is no order of these shifts' images.
    """
    order, sizes = loaded("order", path), {len(labels) for labels in source.labels}
    if len(sizes) > 1:
        raise refusal("order", f"shifts have {min(sizes)} to {max(sizes)} images: one order cannot fit all")
    [size] = sizes
    if not (isinstance(order, np.ndarray) and order.ndim == 1 and order.dtype.kind in "iu" and len(order)):
        raise refusal("order", f"{path} must be an .npy with a one-dimensional array of integers")
    if order.min() < 0 or order.max() >= size or len(np.unique(order)) < len(order):
        raise refusal("order", f"{path} must hold distinct positions from 0 to {size - 1}")
    return order
