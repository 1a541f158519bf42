"""How figures look: one colour a method everywhere, in figures and on the page."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's colours, which stay apart for colour-blind readers; grey is for the source model
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
_SOURCE = "#9A9A9A"


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, the same in every panel; more labels than colours repeat them."""
    others = [label for label in labels if label != "source"]
    chosen = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(others)}
    return {label: chosen.get(label, _SOURCE) for label in labels}
