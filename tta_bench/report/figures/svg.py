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
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', document))
    # tags alone: a label may look like anything
    document = re.sub(r"<[^>]+>", lambda tag: _small(_renamed(_coloured(tag[0]), name, used)), document)
    document = re.sub(r"(?:<g/>\s*)+", "", document)
    return re.sub(r"(<svg[^>]*>)", rf"\1\n{_rules()}", document, count=1)


def _rules() -> str:
    light = "; ".join(f"--{role}: {colour}" for colour, role in _ROLES.items())
    dark = "; ".join(f"--{role}: {colour}" for role, colour in _DARK.items())
    rule = f":root {{ {light} }} text {{ font-family: {_FONTS} }}"
    return f"<style>{rule} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"


def _coloured(tag: str) -> str:
    for colour, role in _ROLES.items():
        tag = tag.replace(colour, f"var(--{role})")
    return tag


def _renamed(tag: str, name: str, used: set[str]) -> str:
    """Ids that something refers to get the figure's name; the others go."""
    tag = re.sub(r' id="([^"]*)"', lambda own: f' id="{name}-{own[1]}"' if own[1] in used else "", tag)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", tag)


def _small(tag: str) -> str:
    """Without what repeats thousands of times and says nothing."""
    tag = re.sub(r"font-family: [^;\"]*(?:; )?", "", tag)  # the document's rule has it
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is enough
    return re.sub(r"\s+", " ", tag)
