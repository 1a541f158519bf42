"""The report: what the table holds, what it never hides, and files that open."""

from __future__ import annotations

import csv
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import Outcome
from PIL import Image
from rich.console import Console

from tta_bench import results
from tta_bench.report import render
from tta_bench.report.figure import colours, draw
from tta_bench.report.table import ErrorTable, tables

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]


def made(rows: list[tuple[str, str, str, int, str, float | None]], all_images: bool = True) -> list[ErrorTable]:
    """Tables of (label, model, corruption, seed, status, error) at severity 5."""
    frame = pd.DataFrame(
        [
            {"label": label, "model": model, "corruption": corruption, "severity": 0 if corruption == "clean" else 5,
             "seed": seed, "status": status, "error_pct": error, "reason": "" if status == "ok" else f"{status} for a reason",
             "adapt_images": None, "error_after_pct": None, "dataset": "D", "protocol": "reset", "batch_size": 64, "key": f"{label}{model}{corruption}{seed}"}
            for label, model, corruption, seed, status, error in rows
        ]
    )  # fmt: skip
    plan = {"suite": "s_1", "all_images": all_images, "trials": [{"images": 1000}]}
    return tables(results.Results(pathlib.Path(), plan, frame, pd.DataFrame(), 0))


def ok(label: str, corruption: str, error: float, seed: int = 0) -> tuple[str, str, str, int, str, float]:
    return (label, "m", corruption, seed, "ok", error)


def test_the_mean_leaves_clean_out_and_the_best_are_marked() -> None:
    [table] = made([ok("a", "clean", 1), ok("a", "fog", 10), ok("a", "snow", 20), ok("b", "clean", 2), ok("b", "fog", 12),
                    ok("b", "snow", 10.04)])  # fmt: skip
    a, b = table.rows
    assert table.corruptions == ["clean", "snow", "fog"], "the published order"
    assert (a.mean.mean, b.mean.mean) == (15, pytest.approx(11.02))
    assert [table.is_best(a, c) for c in ("clean", "snow", "fog", "mean")] == [True, False, True, False]
    assert [table.is_best(b, c) for c in ("clean", "snow", "fog", "mean")] == [False, True, False, True]


def test_a_curve_over_adapt_images_has_tables_of_its_own_and_is_never_averaged() -> None:
    rows = [(n, corruption, after) for n in (64, None) for corruption, after in (("fog", 30.0), ("snow", 10.0))]
    frame = pd.DataFrame(
        [
            {"label": "a", "model": "m", "corruption": corruption, "severity": 5, "seed": 0, "status": "ok", "reason": "",
             "error_pct": 40.0 if n else 20.0, "error_after_pct": after + (n or 0) / 64, "adapt_images": n, "dataset": "D",
             "protocol": "reset", "batch_size": 64, "key": f"{corruption}{n}"}
            for n, corruption, after in rows
        ]
    ).astype({"adapt_images": "Int64"})  # fmt: skip
    plan = {"suite": "s", "all_images": True, "trials": [{"images": 1000}]}
    most, whole, after = tables(results.Results(pathlib.Path(), plan, frame, pd.DataFrame(), 0))
    assert most.rows[0].mean.mean == 20, "of the trials that adapt on all images"
    assert (whole.columns, after.columns) == (["64", "all"], ["64", "all"])
    assert [cell.mean for cell in whole.rows[0].cells.values()] == [40, 20]
    assert [cell.mean for cell in after.rows[0].cells.values()] == [21, 20]
    assert "after the first 64" in after.title
    assert "64 & all" in render.latex([after])


def test_cells_that_look_equal_are_both_best() -> None:
    [table] = made([ok("a", "fog", 10.01), ok("b", "fog", 10.04)])
    assert all(table.is_best(row, "fog") for row in table.rows)


def test_a_mean_over_fewer_cells_is_marked_and_compared_with_nothing() -> None:
    [table] = made([ok("a", "fog", 10), ok("a", "snow", 20), ok("b", "fog", 1), ("b", "m", "snow", 0, "failed", None),
                    ("c", "m", "fog", 0, "missing", None), ("c", "m", "snow", 0, "missing", None)])  # fmt: skip
    a, b, c = table.rows
    assert b.mean.text == "1.0*"
    assert (b.cells["snow"].text, c.mean.text) == ("failed", "missing")
    assert not table.is_best(b, "mean")
    assert not table.is_best(a, "mean"), "one row alone is no comparison"
    assert table.is_best(b, "fog")
    text = render.markdown([table])
    assert "fewer cells" in text
    assert "b on m: failed for a reason" in text


def test_spread_over_seeds_and_the_caption_say_what_is_known() -> None:
    [table] = made([ok("a", "fog", 10, 0), ok("a", "fog", 14, 1), ok("a", "snow", 20, 0), ok("a", "snow", 20, 1)])
    assert table.rows[0].cells["fog"].text == "12.0±2.8"
    assert table.rows[0].mean.text == "16.0±1.4", "the spread of the seeds' means"
    assert "over 2 seeds" in table.caption
    [single] = made([ok("a", "fog", 10)], all_images=False)
    assert "one seed, so no spread is known" in single.caption
    assert "not a result" in single.caption


def test_a_label_with_brackets_is_shown_whole() -> None:
    [table] = made([ok("mgg[lr=0.01,objective=entropy]", "fog", 10)])
    console = Console(width=200, record=True)
    console.print(render.terminal(table))
    assert "mgg[lr=0.01,objective=entropy]" in console.export_text()


def test_csv_keeps_the_numbers_unrounded() -> None:
    [table] = made([ok("a", "fog", 10.123456789), ("b", "m", "fog", 0, "skipped", None)])
    rows = list(csv.DictReader(render.csv([table]).splitlines()))
    assert [(r["label"], r["column"], r["error_pct"], r["state"]) for r in rows] == [
        ("a", "fog", "10.123456789", "ok"), ("a", "mean", "10.123456789", "ok"), ("b", "fog", "", "skipped"),
        ("b", "mean", "", "skipped")]  # fmt: skip


HARD = [ok("a_b & 100%", "fog", 10), ok("a_b & 100%", "snow", 9), ok("~^\\{}$#", "fog", 10), ok("~^\\{}$#", "snow", 8),
        ok("x", "fog", 1, 1), ("x", "m", "snow", 0, "failed", None)]  # fmt: skip


def test_latex_compiles_as_it_is(tmp_path: pathlib.Path) -> None:
    text = render.latex(made(HARD))
    assert r"a\_b \& 100\% & 9.0 & 10.0" in text
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    (tmp_path / "t.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_figure_opens(tmp_path: pathlib.Path, suffix: str) -> None:
    path = draw(made(HARD), tmp_path / f"f.{suffix}")
    if suffix == "pdf":
        assert path.read_bytes().startswith(b"%PDF")
    else:
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10, "something is drawn"


def test_a_method_has_one_colour_everywhere() -> None:
    assert colours(["source", "a", "b"]).items() < colours(["source", "a", "b", "c"]).items()
    assert len(set(colours(["source", "a", "b", "c", "d"]).values())) == 5


def test_report_writes_every_format_and_prints_the_table(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    run_cli("run", suite_file(), "--executor", "local")
    outcome = run_cli("report", "--format", "tex,md,csv,png,pdf")
    out = tmp_path / "results" / "small" / "report"
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "results/small/report"
    assert sorted(p.name for p in out.iterdir()) == [
        "errors.csv",
        "errors.md",
        "errors.pdf",
        "errors.png",
        "errors.tex",
    ]
    assert "newest run: results/small" in outcome.err
    assert "SUBSET" in outcome.out
    segments = results.load(tmp_path / "results" / "small").segments
    error = segments.set_index(["label", "shift"]).loc[("tent", "contrast-5"), "error_pct"]
    assert f"{error:.1f}" in next(line for line in outcome.out.splitlines() if "tent" in line)
    wrong = run_cli("report", "--format", "docx")
    assert wrong.code == 2
    assert "unknown format 'docx'" in wrong.err


def test_a_run_of_another_schema_is_refused(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    run_cli("run", suite_file(), "--executor", "local", "--only", "method=source")
    plan = tmp_path / "results" / "small" / "plan.json"
    plan.write_text(plan.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    outcome = run_cli("report", "results/small")
    assert outcome.code == 2
    assert "schema version 99, this tta-bench reads 2" in outcome.err
