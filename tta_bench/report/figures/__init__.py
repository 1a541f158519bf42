"""The figures of a report, each drawn once and saved in every format that is asked for."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

from tta_bench.files import write_atomically
from tta_bench.report.content import Content
from tta_bench.report.figures import adapt_images, cost, errors, heatmap, online, ranks, severity, updates
from tta_bench.report.figures.section import Drawn, sections
from tta_bench.report.figures.style import house_style
from tta_bench.report.figures.svg import adaptive

_ALL = (errors.draw, severity.draw, online.draw, cost.draw, updates.draw, heatmap.draw, ranks.draw, adapt_images.draw)
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 150, "pil_kwargs": {"compress_level": 4}},  # twice as fast as usual, files a tenth larger
    "pdf": {"metadata": {"CreationDate": None}},  # a figure drawn again is the same file
}


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
        folder: where files go; made where it is not there and a figure is.
        formats: some of png, pdf, svg; svg is not written to a file.
    """
    if not formats:
        return []
    with house_style():
        return [_saved(figure, folder, formats) for figure in drawn(content)]


def drawn(content: Content) -> Iterator[Drawn]:
    """Every figure that there is something to draw for, not saved yet; to be called within ``style.house_style``."""
    for section in sections(content):
        for each in _ALL:
            yield from each(section)


def _saved(figure: Drawn, folder: pathlib.Path, formats: Sequence[str]) -> Figure:
    files = [_file(figure, folder, name) for name in formats if name != "svg"]
    return Figure(figure.name, figure.title, figure.caption, files, _svg(figure) if "svg" in formats else "")


def _file(figure: Drawn, folder: pathlib.Path, suffix: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.{suffix}"
    options = _OPTIONS.get(suffix, {})
    write_atomically(path, lambda stream: figure.figure.savefig(stream, format=suffix, facecolor="white", **options))
    return path


def _svg(figure: Drawn) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": figure.name}):
        figure.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return adaptive(stream.getvalue(), figure.name)
