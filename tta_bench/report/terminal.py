"""What a person sees on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.report import grids
from tta_bench.report.content import Content
from tta_bench.report.grid import Column, Entry, Grid

_STYLES = {"best": "bold", "second": "underline", "tied": "italic underline", "": ""}
_STATES = {"failed": "red", "missing": "yellow", "skipped": "dim"}
_NAMES = 14  # characters that names of methods get at least; longer ones are folded


def show(content: Content, console: Console) -> None:
    """Print everything that the report says; styles are left out where ``console`` is no terminal."""
    said: set[str] = set()  # what marks mean is said once
    for grid in grids.grids(content):
        _print(grid, console, said)
    for status, sentence in grids.gaps(content):
        console.print(Text(sentence, style=_STATES.get(status, "")))
    for note in content.notes:
        console.print(Text(f"Note: {note}", style="yellow"))


def _print(grid: Grid, console: Console, said: set[str]) -> None:
    title = Text(grid.title, style="bold")
    if grid.warning:
        title.append(f" — {grid.warning}", style="bold red")
    console.print(title)
    if grid.sections:
        for part in _fitting(grid, console.width):
            console.print(_table(part))
    legend = [sentence for sentence in grid.legend if sentence not in said]
    said.update(legend)
    console.print(Text(" ".join(grid.caption), style="dim"))
    if legend:
        console.print(Text(" ".join(legend), style="dim"))
    console.print()


def _table(grid: Grid) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    shown.add_column("method", overflow="fold")
    for column in grid.columns:
        shown.add_column(Text(column.short), justify="left" if column.kind == "text" else "right", no_wrap=True)
    for section in grid.sections:
        shown.add_row(Text(section.title, style="cyan"))
        for line in section.lines:
            shown.add_row(Text(f" {line.name}"), *(_styled(entry) for entry in line.entries))
    return shown


def _styled(entry: Entry) -> Text:
    text = Text(entry.value, style=_STYLES[entry.mark] or _STATES.get(entry.state, ""))
    if entry.spread:
        text.append(f"±{entry.spread}", style="dim not bold not underline")
    return text.append("*") if entry.starred else text


# -- what fits ---------------------------------------------------------------------------------------------------------


def _fitting(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid where it fits; else without the spread in each cell; else in parts, one above the other."""
    room = width - min(_names(grid), max(_NAMES, width // 4))
    for made in (grid, _without_spread(grid)):
        if sum(_widths(made)) <= room:
            yield made
            return
    made = _without_spread(grid)
    yield from (made.taking(positions) for positions in _parts(made, room))


def _names(grid: Grid) -> int:
    names = [section.title for section in grid.sections]
    names += [f" {line.name}" for section in grid.sections for line in section.lines]
    return max(map(cell_len, names)) + 1


def _widths(grid: Grid) -> list[int]:
    """Characters that each column takes, the blank after it included."""
    return [
        1 + max(cell_len(column.short), *(cell_len(entry.text) for entry in grid.column(i)))
        for i, column in enumerate(grid.columns)
    ]


def _without_spread(grid: Grid) -> Grid:
    """Only means keep their spread over seeds."""

    def bare(column: Column, entry: Entry) -> Entry:
        return replace(entry, spread="") if column.kind == "cell" else entry

    sections = [
        replace(
            section,
            lines=[
                replace(line, entries=[bare(c, e) for c, e in zip(grid.columns, line.entries, strict=True)])
                for line in section.lines
            ],
        )
        for section in grid.sections
    ]
    return replace(grid, sections=sections)


def _parts(grid: Grid, room: int) -> list[Sequence[int]]:
    """Positions of the columns of each part: as many as fit, groups and the mean with its interval kept together."""
    widths, parts = _widths(grid), [[0] * 0]
    for positions in _blocks(grid):
        for piece in [positions] if sum(widths[i] for i in positions) <= room else [[i] for i in positions]:
            if parts[-1] and sum(widths[i] for i in (*parts[-1], *piece)) > room:
                parts.append([])
            parts[-1] += piece
    return list(parts)


def _blocks(grid: Grid) -> Iterator[list[int]]:
    position = 0
    for _, columns in grid.groups:
        yield list(range(position, position + len(columns)))
        position += len(columns)
