"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.report.content import Content
from tta_bench.report.render import grids
from tta_bench.report.render.grid import Grid, GridCell

_STYLES = {"best": "bold", "second": "underline", "tied": "underline", "": ""}
_STATES = {"failed": "red", "missing": "yellow", "skipped": "dim"}
_NAMES = 12  # characters that names of methods get at least; longer ones are folded


def show(content: Content, console: Console) -> None:
    """Print the report; without styles where ``console`` is no terminal."""
    explained: set[str] = set()  # each sentence of a legend is printed once
    several = [table.name for table in content.calibration[1:]]
    for grid in grids.grids(content):
        if grid.name not in several:
            _print(grid, console, explained)
    if several:
        more = "one further setting" if len(several) == 1 else f"{len(several)} further settings"
        console.print(Text(f"Calibration in {more} is in the report's files.", style="dim"))
    for status, sentence in grids.gap_sentences(content):
        console.print(Text(sentence, style=_STATES.get(status, "")))
    for note in content.notes:
        console.print(Text(f"Note: {note}", style="yellow"))


def _print(grid: Grid, console: Console, explained: set[str]) -> None:
    title = Text(grid.title, style="bold")
    if grid.warning:
        title.append(f" — {grid.warning}", style="bold red")
    console.print(title)
    if grid.groups:
        for part in _fitting(grid, console.width):
            console.print(_table(part))
    unseen = grids.OF_MARKS if console.color_system is None else ()  # in a pipe nothing is bold or underlined
    legend = [sentence for sentence in grid.legend if sentence not in explained and sentence not in unseen]
    explained.update(legend)
    console.print(Text(" ".join(grid.caption), style="dim"))
    if legend:
        console.print(Text(" ".join(legend), style="dim"))
    console.print()


def _table(grid: Grid) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    shown.add_column("method", overflow="fold")
    for column in grid.columns:
        shown.add_column(Text(column.short), justify="left" if column.kind == "text" else "right", no_wrap=True)
    for group in grid.groups:
        shown.add_row(Text(group.title, style="cyan"))
        for row in group.rows:
            shown.add_row(Text(f" {row.name}"), *map(_styled, row.cells))
    return shown


def _styled(cell: GridCell) -> Text:
    text = Text()  # its own style would also underline the blanks beside it
    text.append(_value(cell), style=_STYLES[cell.mark] or _STATES.get(cell.state, ""))
    if cell.spread:
        text.append(f"±{cell.spread}", style="dim")
    return text.append("*") if cell.starred else text


def _value(cell: GridCell) -> str:
    return "fail" if cell.value == "failed" else cell.value  # as wide as a number


# -- width ------------------------------------------------------------------------------------------------------------


def _fitting(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid if it fits; else without the spread in each cell; else in parts, one below the other."""
    bare = grid.without_spread()
    names = _names(grid)
    for candidate, least in ((grid, names), (bare, names), (bare, min(names, _NAMES))):
        if sum(_widths(candidate)) - 1 <= width - least:  # no blank after the last
            yield candidate
            return
    room = width - min(names, max(_NAMES, width // 3))
    yield from (bare.taking(positions) for positions in _parts(bare, room))


def _names(grid: Grid) -> int:
    names = [group.title for group in grid.groups] + [f" {row.name}" for row in grid.rows]
    return max(map(cell_len, names)) + 1


def _widths(grid: Grid) -> list[int]:
    """Width of each column in characters, with the blank after it."""
    return [
        1 + max(cell_len(column.short), *(cell_len(_styled(row.cells[i]).plain) for row in grid.rows))
        for i, column in enumerate(grid.columns)
    ]


def _parts(grid: Grid, room: int) -> list[list[int]]:
    """Positions of the columns of each part: as many as fit, column groups together; a first column of text is in each."""
    widths = _widths(grid)
    always = [0] if grid.columns[0].kind == "text" else []
    parts: list[list[int]] = [[*always]]
    for positions in _blocks(grid, len(always)):
        whole = sum(widths[i] for i in (*always, *positions)) <= room
        for piece in [positions] if whole else [[i] for i in positions]:
            if len(parts[-1]) > len(always) and sum(widths[i] for i in (*parts[-1], *piece)) > room:
                parts.append([*always])
            parts[-1] += piece
    return parts


def _blocks(grid: Grid, first: int) -> Iterator[list[int]]:
    """Positions of neighbouring columns of one group."""
    positions: list[int] = []
    for i in range(first, len(grid.columns)):
        if positions and grid.columns[i].group != grid.columns[i - 1].group:
            yield positions
            positions = []
        positions.append(i)
    yield positions
