"""Tidy tables to what goes into a paper: a terminal table, CSV, Markdown, LaTeX and a figure."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console

from tta_bench import results
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.report import figure, render
from tta_bench.report.table import ErrorTable, tables

_PIPE_WIDTH = 300


def write(runs: Sequence[str], formats: Sequence[str], out: str | None, known: Sequence[str]) -> None:
    """Print a run's table and write its report.

    Args:
        runs: at most one run's folder; none: the newest below ``results/``.
        formats: which files to write.
        out: where; None: ``<run>/report``.
        known: all formats there are.

    Raises:
        UsageError: no such run, or an unknown format.
    """
    for name in formats:
        if name not in known:
            raise UsageError(Problem(f"--format: unknown format {name!r}", hint=near_miss(name, known)))
    if len(runs) > 1:
        raise UsageError(Problem(f"{len(runs)} runs given; a report is made of one", hint="make one report a run"))
    console = Console(stderr=True)
    if not runs:
        console.print(f"newest run: {newest()}", markup=False, highlight=False, soft_wrap=True)
    loaded = results.load(pathlib.Path(runs[0]) if runs else newest())
    results.write_tables(loaded)
    made = tables(loaded)
    shown = Console()
    if not shown.is_terminal:
        shown = Console(width=_PIPE_WIDTH)  # a file or a pipe has no width: rich would cut the table to 80 columns
    for table in made:
        shown.print(render.terminal(table))
    folder = pathlib.Path(out) if out else loaded.path / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        for path in _WRITERS[name](made, folder):
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    print(folder)


def newest() -> pathlib.Path:
    """The run below ``results/`` that was written to last.

    Raises:
        UsageError: there is none.
    """
    plans = sorted(pathlib.Path("results").glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise UsageError(
            Problem("no run below results/", hint="give a run's folder, or make one: tta-bench run digits_c")
        )
    return plans[-1].parent


def _text(
    name: str, make: Callable[[Sequence[ErrorTable]], str]
) -> Callable[[Sequence[ErrorTable], pathlib.Path], list[pathlib.Path]]:
    def write_text(made: Sequence[ErrorTable], folder: pathlib.Path) -> list[pathlib.Path]:
        path = folder / name
        results.write_atomically(path, lambda stream: stream.write(make(made).encode()))
        return [path]

    return write_text


def _figure(suffix: str) -> Callable[[Sequence[ErrorTable], pathlib.Path], list[pathlib.Path]]:
    def write_figure(made: Sequence[ErrorTable], folder: pathlib.Path) -> list[pathlib.Path]:
        path = folder / f"errors.{suffix}"
        return [figure.draw(made, path)]

    return write_figure


_WRITERS: dict[str, Callable[[Sequence[ErrorTable], pathlib.Path], list[pathlib.Path]]] = {
    "tex": _text("errors.tex", render.latex),
    "md": _text("errors.md", render.markdown),
    "csv": _text("errors.csv", render.csv),
    "png": _figure("png"),
    "pdf": _figure("pdf"),
}
