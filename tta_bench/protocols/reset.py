"""Reset: the method starts anew before every shift (the protocol of Tent, EATA, SAR and most tables)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tta_bench.protocols.base import Part, Protocol, Source


class Reset(Protocol):
    """One segment a shift, with a reset before each."""

    name = "reset"
    resets: Literal["segment", "never"] = "segment"

    def parts(self, source: Source) -> Iterator[Part]:
        for number, shift in enumerate(source.shifts):
            yield source.shuffled(shift.id, 0, [number])
