"""The tables in LaTeX (booktabs), a file each, which compiles alone and can be ``\\input``."""

from __future__ import annotations

import functools
import importlib.resources
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jinja2

from tta_bench.files import write_text
from tta_bench.report.citing import Cited
from tta_bench.report.content import Content
from tta_bench.report.render import grids
from tta_bench.report.render.grid import Grid, GridCell, GridRow
from tta_bench.report.table import identifier

_HEIGHT = 40  # rows on a page
_WIDE = 6  # columns; with more, a table of a two-column paper takes both

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
    "/": r"/\allowbreak{}", "@": r"@\allowbreak{}",  # of a long address
    "[": "{[}", "]": "{]}", "*": "{*}",  # at the start of a line they would be options of the line break
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\ldots{}", "‘": "`", "’": "'", "“": "``", "”": "''",
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


def write(content: Content, folder: pathlib.Path, *, cite: bool = False) -> list[pathlib.Path]:
    """Write each table to ``<folder>/tables/<name>.tex``; returns the files.

    Args:
        content: the report.
        folder: of the files.
        cite: put citations behind methods and source models.
    """
    paths = []
    cited = content.cited if cite else Cited()
    for grid in grids.grids(content):
        if grid.groups:  # else nothing was compared with that paper
            path = folder / "tables" / f"{grid.name}.tex"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, latex(grid, cited, identifier(content.title)))
            paths.append(path)
    return paths


def escape(text: str) -> str:
    """Text escaped for LaTeX, in arguments and tables, too; letters of other scripts become their code points."""
    return "".join(map(_escaped, re.sub(r"[ \t\r\n]+", " ", text))).replace("--", "-{}-")


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii() or "À" <= character <= "ÿ":
        return character if character.isprintable() else " "
    return rf"\texttt{{U+{ord(character):04X}}}"


def citation(keys: Iterable[str]) -> str:
    """``~\\cite{a,b}``; nothing without keys."""
    joined = ",".join(keys)
    return rf"~\cite{{{joined}}}" if joined else ""


def latex(grid: Grid, cited: Cited | None = None, suite: str = "") -> str:
    """A table as a LaTeX file; what is cited stands behind names of methods and source models.

    Its label has the name of the ``suite``, an identifier: a paper may take tables of several.
    """
    cited = cited or Cited()
    printed = grid.taking([i for i, column in enumerate(grid.columns) if column.kind != "interval"])
    parts = list(printed.pages(_HEIGHT))
    return _template().render(pages=[_page(part, i + 1, len(parts), cited, suite) for i, part in enumerate(parts)])


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True, autoescape=False,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    template = importlib.resources.files("tta_bench.report.render").joinpath("templates", "table.tex.j2")
    return environment.from_string(template.read_text(encoding="utf-8"))


def _page(grid: Grid, number: int, pages: int, cited: Cited, suite: str) -> dict[str, Any]:
    groups, rules = _groups(grid)
    wide = len(grid.columns) > _WIDE
    return {
        "environment": "table*" if wide else "table",
        "caption": _caption(grid, number, pages),
        "label": "-".join(filter(None, ["ttabench", suite, grid.name, str(number) if number > 1 else ""])),
        "separation": "2.2pt" if len(grid.columns) > 10 else "4pt",
        "alignment": "".join("l" if column.kind == "text" else "r" for column in grid.columns),
        "groups": groups,
        "rules": rules,
        "head": " & ".join(["Method", *(escape(column.head) for column in grid.columns)]),
        "width": len(grid.columns) + 1,
        "sections": [
            {
                "title": escape(group.title) + citation(entry.key for entry in cited.models.get(group.title, ())),
                "lines": [_line(row, cited) for row in group.rows],
            }
            for group in grid.groups
        ],
    }


def _caption(grid: Grid, number: int, pages: int) -> str:
    warning = [rf"\textbf{{{escape(grid.warning)}.}}"] if grid.warning else []
    if number > 1:
        return " ".join([*warning, escape(grid.caption[0]), f"Part {number} of {pages}."])
    legend = [text for text in grid.legend if not text.startswith("95 %")]
    starred = [
        escape(text).replace("{*}", r"$^{\dagger}$") if text == grids.STARRED else escape(text) for text in legend
    ]
    part = [f"Part 1 of {pages}."] if pages > 1 else []
    return " ".join([*warning, *map(escape, grid.caption), *starred, *part])


def _groups(grid: Grid) -> tuple[str, str]:
    """(the row of column groups, the rules below it), both empty where there are no groups."""
    cells, rules, first = [""], [], 2
    for name, columns in grid.column_groups:
        last = first + len(columns) - 1
        cells.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{escape(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
        first = last + 1
    return (" & ".join(cells), " ".join(rules)) if rules else ("", "")


def _line(row: GridRow, cited: Cited) -> str:
    entries = {entry.key: None for label in row.labels if row.name for entry in cited.labels.get(label, ())}
    return " & ".join([escape(row.name) + citation(entries), *map(_cell, row.cells)])


def _cell(cell: GridCell) -> str:
    value = escape(cell.value)
    style = {"best": rf"\textbf{{{value}}}", "second": rf"\underline{{{value}}}", "tied": rf"\underline{{{value}}}"}
    scripts = r"^{\dagger}" if cell.starred else ""
    scripts += rf"_{{\pm{cell.spread}}}" if cell.spread else ""
    return style.get(cell.mark, value) + (f"${scripts}$" if scripts else "")
