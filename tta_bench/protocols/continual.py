"""Continual: one shift after another, never reset (CoTTA, Wang et al. 2022, arXiv 2203.13591, section 4)."""

from __future__ import annotations

from tta_bench.protocols.reset import Reset


class Continual(Reset):
    """One segment a shift, never reset."""

    name = "continual"
    resets = "never"
