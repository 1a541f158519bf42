"""Reset: the method starts anew before every shift (the protocol of Tent, EATA, SAR and most tables).

One segment a shift. ``order: FILE`` is one stored order for every shift and method (Benchmark-TTA, Yu et al. 2023,
arXiv 2307.03133).
"""

from __future__ import annotations

from tta_bench.protocols.published import md, note, sar
from tta_bench.protocols.shift_by_shift import ShiftByShift, ShiftByShiftConfig


class Reset(ShiftByShift):
    """One shift after another, the method reset before each (Tent, EATA, SAR)."""

    name = "reset"
    resets = "segment"
    published = {"md": md.parts, "sar": sar.parts, "note": note.parts}

    class Config(ShiftByShiftConfig):
        """The order within a shift.

        Variants:
            md: "reset_each_shift" of mariodoebler/test-time-adaptation (ROID, Marsden et al. 2024, arXiv 2306.00650); with
                ``delta: 0`` its "reset_each_shift_correlated".
            sar: the order of SAR's loader (Niu et al. 2023, arXiv 2302.12400, exp_type "normal"); takes no delta.
            note: NOTE (Gong et al. 2022, arXiv 2208.05117): correlated with delta, at random without; drops the last
                images that fill no batch.

        Example:
            {kind: reset}
            {kind: reset, variant: note, delta: 0.1}
        """

        variants = ("md", "sar", "note")
        deltas = {"md": "free", "note": "positive"}
