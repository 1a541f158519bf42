"""Room that text takes, known before it is drawn, so that nothing overlaps and no layout engine has to draw twice."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

_DPI = 288  # fine enough that hinting does not matter
_SAFETY = 1.03  # other formats hint differently


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, _DPI)


@functools.lru_cache(maxsize=4096)
def width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line, inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return _SAFETY * float(_renderer().get_text_width_height_descent(text, font, ismath=False)[0]) / _DPI


def widest(texts: Iterable[str], size: float) -> float:
    """Width of the widest line, inches; 0 where there is none."""
    return max((width(text, size) for text in texts), default=0.0)


def shortened(text: str, room: float, size: float, weight: str = "normal") -> str:
    """``text``, its middle left out where it is wider than ``room`` inches."""
    keep = len(text)
    short = text
    while width(short, size, weight) > room and keep > 3:
        keep -= 1
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return short


def wrapped(text: str, room: float, size: float, lines: int = 100, weight: str = "normal") -> list[str]:
    """``text`` in lines of at most ``room`` inches; what needs more than ``lines`` ends in "…"."""
    done = [""]
    for word in text.split():
        longer = f"{done[-1]} {word}".strip()
        if done[-1] and width(longer, size, weight) > room:
            done.append(word)
        else:
            done[-1] = longer
    done = [shortened(line, room, size, weight) for line in done]
    if len(done) > lines:
        done = [*done[: lines - 1], shortened(done[lines - 1][:-2] + " …", room, size, weight)]
    return done
