"""Reset: the method starts anew before every shift (the protocol of Tent, EATA, SAR and most tables).

Variants: ``md`` (mariodoebler/test-time-adaptation's "reset_each_shift"), ``sar`` (its "normal"), ``note`` (NOTE, Gong
et al. 2022, arXiv 2208.05117). ``order: FILE`` is Benchmark-TTA's one stored order for every shift and method.
"""

from __future__ import annotations

from tta_bench.protocols.published import md, note, sar
from tta_bench.protocols.shift_by_shift import ShiftByShift, ShiftByShiftConfig


class Reset(ShiftByShift):
    """One segment a shift, with a reset before each."""

    name = "reset"
    resets = "segment"
    published = {"md": md.parts, "sar": sar.parts, "note": note.parts}

    class Config(ShiftByShiftConfig):
        variants = ("md", "sar", "note")
        deltas = {"md": "free", "note": "positive"}
