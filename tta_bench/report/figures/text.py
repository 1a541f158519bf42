"""Room that text takes, known before it is drawn, so that nothing overlaps and no layout engine has to draw twice."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

_SIZE, _DPI = 10.0, 720  # so large that rounding does not matter
_SAFETY = 1.02  # other formats place letters a little differently


def width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line, inches."""
    return _SAFETY * size * sum(_advance(character, weight) for character in text)


@functools.lru_cache(maxsize=4096)
def _advance(character: str, weight: str) -> float:
    """Room that a character takes at size 1, inches: kerning only makes lines shorter."""
    font = FontProperties(family="DejaVu Sans", size=_SIZE, weight=weight)
    few, many = (_renderer().get_text_width_height_descent(character * n, font, ismath=False)[0] for n in (2, 10))
    return float(many - few) / 8 / _DPI / _SIZE


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, _DPI)


def widest(texts: Iterable[str], size: float) -> float:
    """Width of the widest line, inches; 0 where there is none."""
    return max((width(text, size) for text in texts), default=0.0)


def shortened(text: str, room: float, size: float, weight: str = "normal") -> str:
    """``text``, its middle left out where it is wider than ``room`` inches."""
    short, keep = text, len(text)
    while width(short, size, weight) > room and keep > 3:
        keep -= 1
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return short


def wrapped(text: str, room: float, size: float, lines: int = 100, weight: str = "normal") -> list[str]:
    """``text`` in lines of at most ``room`` inches; what needs more than ``lines`` ends in "…"."""
    done = [""]
    for word in text.split(" "):  # not at spaces that do not break
        longer = f"{done[-1]} {word}".strip()
        if not done[-1] or width(longer, size, weight) <= room:
            done[-1] = longer
        elif len(done) < lines:
            done.append(word)
        else:
            while done[-1] and width(f"{done[-1]} …", size, weight) > room:
                done[-1] = done[-1][:-1]
            done[-1] += " …"
            break
    return [shortened(line, room, size, weight) for line in done]
