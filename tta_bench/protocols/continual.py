"""Continual: one shift after another, never reset (CoTTA, Wang et al. 2022, arXiv 2203.13591).

One segment a shift; a single one, ``stream``, where a variant cuts batches across shifts. ``order: FILE`` is one
stored order for every shift and method (Benchmark-TTA, Yu et al. 2023, arXiv 2307.03133).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from tta_bench.protocols.config import Conflict
from tta_bench.protocols.published import md, rotta, ttab
from tta_bench.protocols.shift_by_shift import ShiftByShift, ShiftByShiftConfig


class Continual(ShiftByShift):
    """One shift after another, never reset (CoTTA, practical TTA)."""

    name = "continual"
    published = {"md": md.parts, "rotta": rotta.parts, "tribe": rotta.long_tailed, "ttab": ttab.no_mixture}

    class Config(ShiftByShiftConfig):
        """The order within a shift.

        Attributes:
            imbalance_factor: of variant tribe, images of the largest class for each of the smallest (published: 10, 100,
                200).
            class_ratio: of variant tribe, "constant": the first class is the largest; "random": drawn anew for each
                shift.

        Variants:
            md: "continual" of mariodoebler/test-time-adaptation (ROID, Marsden et al. 2024, arXiv 2306.00650); with
                ``delta: 0`` its "correlated".
            rotta: "practical TTA" (RoTTA, Yuan et al. 2023, arXiv 2303.13899); needs delta, published 0.1.
            tribe: GLI-TTA (TRIBE, Su et al. 2024, arXiv 2309.14949): rotta's order with imbalanced classes; needs delta.
            ttab: HomogeneousNoMixture of TTAB (Zhao et al. 2023, arXiv 2306.03536); with delta HeterogeneousNoMixture,
                published 0.1.

        Example:
            {kind: continual}
            {kind: continual, variant: rotta, delta: 0.1}
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
