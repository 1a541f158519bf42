"""Continual: one shift after another, never reset (CoTTA, Wang et al. 2022, arXiv 2203.13591, section 4).

Variants: ``md`` (mariodoebler/test-time-adaptation's "continual"; with ``delta: 0`` "correlated"), ``rotta``
("practical TTA", Yuan et al. 2023, arXiv 2303.13899), ``tribe`` (GLI-TTA, Su et al. 2024, arXiv 2309.14949), ``ttab``
(its HomogeneousNoMixture; with ``delta`` HeterogeneousNoMixture; Zhao et al. 2023, arXiv 2306.03536).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from tta_bench.protocols.config import Conflict
from tta_bench.protocols.published import md, rotta, ttab
from tta_bench.protocols.shift_by_shift import ShiftByShift, ShiftByShiftConfig


class Continual(ShiftByShift):
    """One segment a shift, never reset; a single one, ``stream``, where a variant cuts batches across shifts."""

    name = "continual"
    published = {"md": md.parts, "rotta": rotta.parts, "tribe": rotta.long_tailed, "ttab": ttab.no_mixture}

    class Config(ShiftByShiftConfig):
        """Attributes, of variant tribe.

        imbalance_factor: images of the largest class for each of the smallest (10, 100 or 200).
        class_ratio: "constant", the first class is the largest; or "random", drawn anew for each shift.
        """

        variants = ("md", "rotta", "tribe", "ttab")
        deltas = {"md": "free", "rotta": "needed", "tribe": "needed", "ttab": "positive"}
        imbalance_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10
        class_ratio: Literal["constant", "random"] = "constant"

        def conflicts(self) -> Iterator[Conflict]:
            yield from super().conflicts()
            for key in sorted({"imbalance_factor", "class_ratio"} & self.model_fields_set):
                if self.variant != "tribe":
                    yield key, "only variant tribe has it", "write variant: tribe, or leave it out"
