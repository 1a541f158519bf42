"""How the error table looks: on a terminal, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv as csv_module
import importlib.resources
import io
from collections.abc import Sequence

import jinja2
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tta_bench.report.table import Cell, ErrorTable, Row

SHORT = {
    "gaussian_noise": "gauss.", "shot_noise": "shot", "impulse_noise": "impul.", "defocus_blur": "defoc.",
    "glass_blur": "glass", "motion_blur": "motion", "zoom_blur": "zoom", "brightness": "bright.",
    "contrast": "contr.", "elastic_transform": "elast.", "pixelate": "pixel.", "jpeg_compression": "jpeg",
    "speckle_noise": "speck.", "gaussian_blur": "g.blur", "saturate": "satur.",
}  # fmt: skip
_FOOTNOTE = "* over fewer cells than the table has: not compared"


def _cells(table: ErrorTable, row: Row) -> list[tuple[Cell, bool]]:
    return [(row.mean if name == "mean" else row.cells[name], table.is_best(row, name)) for name in table.columns]


def notes(table: ErrorTable) -> list[str]:
    """What a reader must know besides the caption: marked means, and why cells are empty."""
    marked = any("*" in cell.text for row in table.rows for cell, _ in _cells(table, row))
    reasons = [f"{row.label} on {row.model}: {row.reason}" for row in table.rows if row.reason]
    return [*([_FOOTNOTE] if marked else []), *reasons]


def terminal(table: ErrorTable) -> Group:
    """For a terminal: best in bold; "SUBSET" where only a part of the images was used."""
    title = table.title + (" — SUBSET, not a result" if table.partial else "")
    shown = Table("model", "method", box=None, pad_edge=False, padding=(0, 1))
    for name in table.columns:
        shown.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    for model in table.models:
        for number, row in enumerate(r for r in table.rows if r.model == model):
            cells = [_styled(cell, best) for cell, best in _cells(table, row)]
            shown.add_row(Text(model if number == 0 else ""), Text(row.label), *cells)  # a label may hold brackets
    return Group(
        Text(title, style="italic"),
        shown,
        Text(table.caption, style="dim"),
        *(Text(note, style="yellow") for note in notes(table)),
    )


def _styled(cell: Cell, best: bool) -> Text:
    if cell.mean is None:
        return Text("–" if cell.state == "skipped" else cell.state, style="red" if cell.state == "failed" else "dim")
    return Text(cell.text, style="bold" if best else "")


def markdown(made: Sequence[ErrorTable]) -> str:
    """All tables in Markdown."""
    return "\n".join(_markdown(table) for table in made)


def _markdown(table: ErrorTable) -> str:
    header = ["model", "method", *table.columns]
    lines = [f"**{table.title}**{' (subset: not a result)' if table.partial else ''}", "", _line(header)]
    lines.append(_line(["---", "---", *["---:"] * len(table.columns)]))
    for row in table.rows:
        cells = [f"**{cell.text}**" if best else cell.text for cell, best in _cells(table, row)]
        lines.append(_line([row.model, row.label, *cells]))
    return "\n".join([*lines, "", table.caption, *(f"\n{note}" for note in notes(table)), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def csv(made: Sequence[ErrorTable]) -> str:
    """All tables in CSV: a line for each cell, with its state; numbers unrounded."""
    stream = io.StringIO()
    writer = csv_module.writer(stream, lineterminator="\n")
    writer.writerow(["table", "model", "label", "column", "error_pct", "std_over_seeds", "state", "best"])
    for table in made:
        for row in table.rows:
            for name, (cell, best) in zip(table.columns, _cells(table, row), strict=True):
                writer.writerow([table.title, row.model, row.label, name, cell.mean, cell.std, cell.state, best])
    return stream.getvalue()


_ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "×": r"$\times$", "·": r"$\cdot$"}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def latex(made: Sequence[ErrorTable]) -> str:
    """All tables as a LaTeX file that compiles alone; its table environments can be pasted into a paper."""
    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    environment.filters["tex"] = escape
    source = importlib.resources.files("tta_bench.report").joinpath("templates", "errors.tex.j2").read_text()
    return environment.from_string(source).render(
        tables=made, cells=_cells, short=lambda name: SHORT.get(name, name), notes=notes
    )
