"""Tidy tables to what goes into a paper: a terminal table, a page, LaTeX, Markdown, data and figures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console

from tta_bench import results
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.report import content, data, evidence, figures, latex, markdown, page, terminal
from tta_bench.report.content import Content, Options

_PIPE_WIDTH = 300


def write(
    runs: Sequence[str], formats: Sequence[str], out: str | None, known: Sequence[str], options: Options, *, mix: bool
) -> None:
    """Print the tables of runs and write their report.

    Args:
        runs: folders; none: the newest below ``results/``.
        formats: which files to write.
        out: where; None: ``<first run>/report``.
        known: all formats there are.
        options: what the report says.
        mix: put runs together whose images, versions or precision differ.

    Raises:
        UsageError: no such run, an unknown format, or runs that must not stand in one table.
    """
    for name in formats:
        if name not in known:
            raise UsageError(Problem(f"--format: unknown format {name!r}", hint=near_miss(name, known)))
    console = Console(stderr=True)
    if not runs:
        console.print(f"newest run: {newest()}", markup=False, highlight=False, soft_wrap=True)
    folders = [pathlib.Path(run) for run in runs] or [newest()]
    found = evidence.gather(folders, mix=mix)
    for run in found.runs:
        results.write_tables(run)
    made = content.make(found, options)
    shown = Console()
    if not shown.is_terminal:
        shown = Console(width=_PIPE_WIDTH)  # a file or a pipe has no width: rich would cut the table to 80 columns
    terminal.show(made, shown)
    folder = pathlib.Path(out) if out else folders[0] / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(made, folder, formats):
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


def _files(made: Content, folder: pathlib.Path, formats: Sequence[str]) -> list[pathlib.Path]:
    """Write all formats; figures are drawn once for all of theirs."""
    paths = [path for name in formats if name in _WRITERS for path in _WRITERS[name](made, folder)]
    wanted = [name for name in ("png", "pdf") if name in formats]
    drawn = figures.draw(made, folder / "figures", [*wanted, *(["svg"] if "html" in formats else [])])
    paths += [path for figure in drawn for path in figure.files]
    return paths + ([page.write(made, drawn, folder / "index.html")] if "html" in formats else [])


_WRITERS: dict[str, Callable[[Content, pathlib.Path], list[pathlib.Path]]] = {
    "tex": latex.write,
    "md": markdown.write,
    "csv": data.write_csv,
    "parquet": data.write_parquet,
}
