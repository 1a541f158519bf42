"""The figures of a report, each drawn once and saved in every requested format."""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from matplotlib.figure import Figure

from tta_bench.files import write_atomically
from tta_bench.report.content import Content
from tta_bench.report.figures import (
    by_adapt_images,
    by_corruption,
    by_cost,
    by_severity,
    by_updates,
    by_view,
    heatmap,
    online,
    ranks,
)
from tta_bench.report.figures.section import Drawing, sections
from tta_bench.report.figures.style import house_style

_KINDS = (by_corruption, by_severity, online, by_cost, by_updates, heatmap, ranks, by_adapt_images, by_view)
_OPTIONS: dict[str, dict[str, Any]] = {  # no dates: the same figure is the same file
    "png": {"dpi": 200},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk and for the page.

    Attributes:
        name: of its files, without ending.
        title: a few words.
        caption: what the figure shows and under which conditions; also the page's alternative text.
        files: where it was saved, one path a format.
        width: inches.
        svg: an SVG document for the page, None where it was not requested.
    """

    name: str
    title: str
    caption: str
    files: list[pathlib.Path]
    width: float
    svg: bytes | None


def draw(content: Content, folder: pathlib.Path, formats: Sequence[str]) -> list[SavedFigure]:
    """Draw and save all figures of a report.

    Args:
        content: the report.
        folder: of the files; created if necessary.
        formats: some of png, pdf, svg; svg is not written to a file.
    """
    if not formats:
        return []
    with house_style():
        return [_save(drawing, folder, formats) for drawing in drawings(content)]


def drawings(content: Content) -> Iterator[Drawing]:
    """All figures of a report, not saved yet; call it inside ``style.house_style``."""
    for section in sections(content):
        for kind in _KINDS:
            yield from kind.draw(section)


def _save(drawing: Drawing, folder: pathlib.Path, formats: Sequence[str]) -> SavedFigure:
    text, figure = drawing.text, drawing.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for all formats
    files = [folder / f"{text.name}.{suffix}" for suffix in formats if suffix != "svg"]
    for path in files:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, functools.partial(_render, figure, path.suffix[1:]))
    svg = io.BytesIO()
    if "svg" in formats:
        _render(figure, "svg", svg)
    return SavedFigure(text.name, text.title, text.caption, files, figure.get_figwidth(), svg.getvalue() or None)


def _render(figure: Figure, suffix: str, stream: IO[bytes]) -> None:
    figure.savefig(stream, format=suffix, **_OPTIONS.get(suffix, {}))
