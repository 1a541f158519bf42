"""``tta-bench report``: print the tables of runs, write page, LaTeX, Markdown, data and figures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.report import content, evidence, figures, published
from tta_bench.report import verify as verification
from tta_bench.report.check import Check, judge
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.reference import compare
from tta_bench.report.render import data, latex, markdown, page, paper, terminal

_PIPE_WIDTH = 300


def write(
    runs: Sequence[str],
    formats: Sequence[str],
    out: str | None,
    known: Sequence[str],
    *,
    baseline: str,
    reference: str | None,
    check: str | None,
    tolerance: float,
    mix: bool,
    shared_timings: bool,
    join_families: bool,
    verify: bool,
    cite: bool = False,
) -> int:
    """Print the tables of runs and write their report.

    Args:
        runs: folders; none: the newest below ``results/``.
        formats: which files to write.
        out: where; None: ``<first run>/report``.
        known: all formats.
        baseline: label of the method that errors and step times are relative to.
        reference: file of published numbers to compare with; empty: the one that comes with the package; None: none.
        check: file of published numbers that the run must agree with, or None.
        tolerance: largest difference that passes, points of error.
        mix: allow runs that differ in images, versions or precision.
        shared_timings: also show times taken on a shared device, in separate tables.
        join_families: all families of shifts in one table, with one mean.
        verify: recompute every number from the predictions.
        cite: put citations behind methods and source models of LaTeX tables.

    Returns:
        The exit code: 3 where the run does not agree with ``check`` or with its own predictions, else 0.

    Raises:
        UsageError: no such run, format, label or file, or runs that cannot share a table.
    """
    for name in formats:
        if name not in known:
            raise UsageError(Problem(f"--format: unknown format {name!r}", hint=near_miss(name, known)))
    numbers = published.shipped() if reference == "" else pathlib.Path(reference) if reference else None
    checked = Check(pathlib.Path(check), tolerance) if check else None
    for file in [*([numbers] if numbers else []), *([checked.file] if checked else [])]:
        published.load(file)  # before anything slow
    console = Console(stderr=True)
    if not runs:
        console.print(f"newest run: {newest()}", markup=False, highlight=False, soft_wrap=True)
    folders = [pathlib.Path(run) for run in runs] or [newest()]
    gathered = evidence.gather(folders, mix=mix)
    for damage in (damage for run in gathered.runs for damage in run.damaged):
        console.print(f"damaged, and left out: {damage}", markup=False, highlight=False, soft_wrap=True)
    disagreements, recomputed = verification.verify(gathered.runs) if verify else ([], 0)
    if baseline not in (*gathered.labels, ReportOptions.baseline):
        raise UsageError(
            Problem(f"--baseline: no row has the label {baseline!r}", hint=near_miss(baseline, gathered.labels))
        )
    report = content.make(gathered, ReportOptions(baseline, numbers, shared_timings, join_families))
    judged = judge(compare(gathered, report.tables, checked.file), checked) if checked else None
    _show(report)
    folder = pathlib.Path(out) if out else folders[0] / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _files(report, folder, formats, cite=cite):
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        hint = "choose a folder that can be written with --out DIR"
        raise UsageError(Problem(f"the report cannot be written: {error}", str(folder), hint=hint)) from error
    print(folder)
    for problem in report.cited.problems:
        console.print(f"left out of references.bib: {problem}", markup=False, highlight=False, soft_wrap=True)
    for line in judged.lines if judged else []:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if verify:
        outcome = (
            f"{len(disagreements)} disagreements" if disagreements else "all numbers follow from their predictions"
        )
        for line in [f"verify: {recomputed} trials recomputed, {outcome}", *(f"  {line}" for line in disagreements)]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if (judged is None or judged.passed) and not disagreements else 3


def _show(report: Content) -> None:
    shown = Console()
    if not shown.is_terminal:
        shown = Console(width=_PIPE_WIDTH)  # a file or a pipe has no width: rich would cut the tables to 80 columns
    terminal.show(report, shown)


def newest() -> pathlib.Path:
    """The newest run in ``results/``.

    Raises:
        UsageError: there is none.
    """
    plans = sorted(pathlib.Path("results").glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise UsageError(Problem("no run in results/", hint="give a run's folder, or make one: tta-bench run digits_c"))
    return plans[-1].parent


def _files(report: Content, folder: pathlib.Path, formats: Sequence[str], *, cite: bool) -> list[pathlib.Path]:
    """Write all formats; figures are drawn once for all of theirs."""
    paths = [path for name in formats if name in _WRITERS for path in _WRITERS[name](report, folder)]
    if "tex" in formats:
        paths += [*latex.write(report, folder, cite=cite), *paper.write(report, folder)]
    wanted = [name for name in ("png", "pdf") if name in formats]
    drawn = figures.draw(report, folder / "figures", [*wanted, *(["svg"] if "html" in formats else [])])
    paths += [path for figure in drawn for path in figure.files]
    return paths + ([page.write(report, drawn, folder / "index.html")] if "html" in formats else [])


_WRITERS: dict[str, Callable[[Content, pathlib.Path], list[pathlib.Path]]] = {
    "md": markdown.write,
    "csv": data.write_csv,
    "parquet": data.write_parquet,
}
