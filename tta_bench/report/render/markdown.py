"""The report as one Markdown file, for a pull request or a wiki."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from tta_bench.files import write_text
from tta_bench.report.content import Content
from tta_bench.report.render import grids
from tta_bench.report.render.grid import Grid, GridCell, GridRow
from tta_bench.report.words import plain

_SPECIAL = r"\`*_{}[]<>#|~$"  # markup on GitHub, in tables and text


def write(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the report to ``<folder>/errors.md``."""
    path = folder / "errors.md"
    write_text(path, "\n".join(_lines(content)))
    return [path]


def _lines(content: Content) -> Iterator[str]:
    yield f"# {_escaped(content.title)}"
    if content.warning:
        yield f"\n**{_escaped(content.warning)}**"
    for grid in grids.grids(content):
        yield from _table(grid)
    yield f"\n## Setting\n\n{_escaped(plain(content.setting))}"
    for heading, sentences in (
        ("Without a result", [sentence for _, sentence in grids.gap_sentences(content)]),
        ("Notes", content.notes),
    ):
        if sentences:
            yield from (f"\n## {heading}\n", *(f"- {_escaped(sentence)}" for sentence in sentences))
    yield ""


def _table(grid: Grid) -> Iterator[str]:
    yield f"\n## {_escaped(grid.title)}"
    if grid.warning:
        yield f"\n**{_escaped(grid.warning)}**"
    if grid.groups:
        heads = [_escaped(column.head) for column in grid.columns]
        rules = [":---" if column.kind == "text" else "---:" for column in grid.columns]
        yield "\n" + _row(["source model", "method", *heads])
        yield _row([":---", ":---", *rules])
        for group in grid.groups:
            for number, row in enumerate(group.rows):
                yield _row([_escaped(group.title) if number == 0 else "", *_cells(row)])
    yield "\n" + _escaped(" ".join([*grid.caption, *grid.legend]))


def _cells(row: GridRow) -> list[str]:
    return [_escaped(row.name), *map(_cell, row.cells)]


def _cell(cell: GridCell) -> str:
    value = _escaped(cell.value)
    styles = {"best": f"**{value}**", "second": f"<ins>{value}</ins>", "tied": f"<ins>{value}</ins>"}
    spread = f"±{cell.spread}" if cell.spread else ""
    return styles.get(cell.mark, value) + spread + (r"\*" if cell.starred else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in " ".join(text.split()))
