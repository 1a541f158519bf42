"""The figures of a report, each drawn once and saved in every format that is asked for."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from tta_bench.report.content import Content


@dataclass(frozen=True)
class Figure:
    """A figure on disk and for the page.

    Attributes:
        name: of its files, without ending.
        title: a few words.
        caption: what is drawn, under which conditions, in a sentence or two; also the page's text for who cannot see it.
        files: where it was saved, one path a format.
        svg: a whole SVG document for the page, whose text and lines follow the reader's light or dark scheme; empty where
            it was not asked for.
    """

    name: str
    title: str
    caption: str
    files: list[pathlib.Path]
    svg: str


def draw(content: Content, folder: pathlib.Path, formats: Sequence[str]) -> list[Figure]:
    """Draw every figure that there is something to draw for.

    Args:
        content: the report.
        folder: where files go.
        formats: some of png, pdf, svg; svg is not written to a file.
    """
    return []
