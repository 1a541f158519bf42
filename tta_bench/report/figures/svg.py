"""An SVG that follows the reader's light or dark scheme, even where a page embeds it as an image."""

from __future__ import annotations

import re

from tta_bench.report.figures.style import ALERT, GRID, INK, MUTED, PAPER

_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", ALERT: "alert"}
_DARK = {"ink": "#e9eaec", "muted": "#a9adb3", "grid": "#3a3e44", "paper": "#16181c", "alert": "#ff8a80"}
_FONTS = "'DejaVu Sans', Verdana, 'Bitstream Vera Sans', sans-serif"


def adaptive(document: str, name: str) -> str:
    """Matplotlib's SVG, made to follow the reader's scheme.

    Args:
        document: as matplotlib wrote it, with ink in the colours of :mod:`tta_bench.report.figures.style`.
        name: of the figure: no id is in another figure, too.
    """
    document = re.sub(r"<metadata>.*?</metadata>\s*", "", document, flags=re.DOTALL)
    document = re.sub(r"<!DOCTYPE[^>]*>\s*", "", document)
    for colour, role in _ROLES.items():
        document = document.replace(colour, f"var(--{role})")
    document = _small(_renamed(document, name))
    return re.sub(r"(<svg[^>]*>)", rf"\1\n{_rules()}", document, count=1)


def _rules() -> str:
    light = "; ".join(f"--{role}: {colour}" for colour, role in _ROLES.items())
    dark = "; ".join(f"--{role}: {colour}" for role, colour in _DARK.items())
    rule = f":root {{ {light} }} text {{ font-family: {_FONTS} }}"
    return f"<style>{rule} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"


def _renamed(document: str, name: str) -> str:
    """Ids that something refers to get the figure's name; the others go."""
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', document))

    def own(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    document = re.sub(r' id="([^"]*)"', own, document)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", document)


def _small(document: str) -> str:
    """Without what repeats thousands of times and says nothing."""
    document = re.sub(r"font: (?:bold |700 )?[\d.]+px [^;\"]*", _short_font, document)
    document = re.sub(r"(\d\.\d\d)\d+", r"\1", document)  # a hundredth of a point is enough
    return re.sub(r">\s*\n\s*", ">\n", document)


def _short_font(match: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", match[0])
    weight = "; font-weight: bold" if re.search(r"bold|700", match[0]) else ""
    return f"font-size: {size[0] if size else '8px'}{weight}"
