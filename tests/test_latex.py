"""LaTeX and Markdown: what stands in the tables, and files that compile wherever a paper puts them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from runs import verdicts, write_run

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.report import content, evidence, published
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.mce import MceRow, MceTable
from tta_bench.report.render import latex, markdown
from tta_bench.report.render.grid import Column, Grid, GridCell, GridRow, RowGroup

HARD = "~^\\{}$#_%&"
HARDER = '[*] --"<|>`/@ \n ü Ж ±'
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Everything that a report can hold: 15 corruptions, clean, curves, costs, published numbers, mCE; hard labels."""
    cells: dict[tuple[str, str, str, int], np.ndarray | str] = {}
    for model in ("R50-BN", "a_b & 100%"):
        for place, label in enumerate(("source", "tent", "norm", "mgg[lr=0.01,objective=entropy]", HARD, HARDER)):
            for seed in (0, 1, 2):
                for number, name in enumerate(("clean", *BENCHMARK)):
                    error = max(70 - 8 * place + (seed if label != HARDER else 0) - number, 1)
                    shift = name if name == "clean" else f"{name}-5"
                    cells[label, model, shift, seed] = "skipped" if label == "norm" else verdicts(error, 300)
    cells[HARD, "R50-BN", "fog-5", 1] = cells["tent", "R50-BN", "jpeg_compression-5", 0] = "failed"
    cells["source", "a_b & 100%", "clean", 0] = cells["source", "a_b & 100%", "clean", 1] = "missing"
    cells["source", "a_b & 100%", "clean", 2] = "missing"
    folder, models = (
        tmp_path_factory.mktemp("runs"),
        {m: {"tag": "resnet50.tv_in1k", **IMAGENET} for m in ("R50-BN", "a_b & 100%")},
    )
    about = {"dataset": "ImageNet-C", "batch_size": 64, "all_images": False, "models": models}
    runs = [
        write_run(folder / "all", cells, **about, suite="x_1", facts={"error_after_pct": 12.3}),
        write_run(folder / "some", {k: v for k, v in cells.items() if k[3] < 2}, **about, suite="x_1", adapt_images=64,
                  facts={"error_after_pct": 12.3}),
    ]  # fmt: skip
    whole = content.make(evidence.gather(runs), ReportOptions(reference=published.shipped()))
    ce = {name: 70.0 + i for i, name in enumerate(BENCHMARK)}
    return dataclasses.replace(whole, mce=[MceTable("Corruption error, per cent.", [MceRow(HARD, "m", 77.0, ce)], ["b on m (1 of 75 cells without a result)"])])  # fmt: skip


@pytest.fixture(scope="module")
def folder(made: Content, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The LaTeX files of ``made``."""
    folder = tmp_path_factory.mktemp("report")
    latex.write(made, folder)
    return folder / "tables"


def compiled(folder: pathlib.Path, name: str, times: int = 1) -> str:
    """pdflatex's log; references are known from the second time on."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (texlive-latex-recommended, lmodern)")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
    for _ in range(times):
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
        log = (folder / f"{name}.log").read_text(errors="replace")
        assert done.returncode == 0, log[-3000:]
    return log


def assert_clean(log: str) -> None:
    for complaint in ("Overfull", "Undefined control sequence", "multiply defined", "undefined references", "Float too large",
                      "incomplete", "Missing character"):  # fmt: skip
        assert complaint not in log, log[max(0, log.find(complaint) - 300) : log.find(complaint) + 300]


def test_each_table_is_a_file(folder: pathlib.Path) -> None:
    assert sorted(path.stem for path in folder.glob("*.tex")) == [
        "cost-1", "errors-collapse-5", "errors-curve-5", "errors-curve-after-5", "errors-severity-5", "mce-1", "published-eata",
        "published-onlinetta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "cost-1",
        "errors-collapse-5",
        "errors-curve-5",
        "errors-curve-after-5",
        "errors-severity-5",
        "mce-1",
        "published-eata",
        "published-onlinetta",
    ],
)
def test_each_file_compiles_alone(folder: pathlib.Path, name: str) -> None:
    log = compiled(folder, name)
    assert_clean(log)
    assert "1 page" in log


ARTICLE, COLUMNS = r"\documentclass{article}", r"\documentclass[twocolumn]{article}"
JOURNAL = r"\documentclass[10pt,twocolumn]{article}\usepackage[textwidth=516pt,textheight=680pt]{geometry}"


@pytest.mark.parametrize("head", [ARTICLE, COLUMNS, JOURNAL], ids=["article", "two columns", "journal"])
def test_all_together_in_a_paper(folder: pathlib.Path, tmp_path: pathlib.Path, head: str) -> None:
    paths = sorted(folder.glob("*.tex"))
    for path in paths:
        shutil.copy(path, tmp_path)
    names = [path.stem for path in paths]
    labels = [re.search(r"\\label\{(.*?)\}", path.read_text())[1] for path in paths]  # type: ignore[index]
    body = "\n".join(rf"\input{{{n}}} See \ref{{{label}}}." for n, label in zip(names, labels, strict=True))
    text = (
        head
        + "\\usepackage{booktabs}\\usepackage{graphicx}\n\\begin{document}\n"
        + body
        + "\nThe end.\n\\end{document}\n"
    )
    (tmp_path / "paper.tex").write_text(text)
    log = compiled(tmp_path, "paper", times=2)
    assert_clean(log)
    captions = re.findall(r"\\numberline \{(\d+)\}", "".join(path.read_text() for path in tmp_path.glob("*.aux")))
    assert captions == [str(n + 1) for n in range(len(names))]


def test_captions_state_the_conditions(folder: pathlib.Path) -> None:
    text = (folder / "errors-severity-5.tex").read_text()
    [caption] = re.findall(r"^\\caption\{(.*)\}$", text, re.MULTILINE)
    for part in ("SUBSET OF THE IMAGES, NOT A RESULT", "severity 5", "protocol reset", "batch size 64", "3 seeds (0, 1, 2)",
                 r"R50-BN, a\_b \& 100\%", "Holm's correction", "paired over images and seeds", r"$^{\dagger}$: mean over fewer trials"):  # fmt: skip
        assert part in caption, caption
    assert r"\multicolumn{3}{c}{Noise}" in text
    assert r"\cmidrule(lr){3-5} \cmidrule(lr){6-9} \cmidrule(lr){10-13} \cmidrule(lr){14-17}" in text


def test_cells_without_a_result_say_so(folder: pathlib.Path) -> None:
    lines = (folder / "errors-severity-5.tex").read_text().splitlines()
    norm = next(line for line in lines if line.startswith("norm"))
    assert norm.count(r"\textendash{}") == 17
    assert any(line.startswith("source & n/") for line in lines), "clean was not run"
    tent = next(line for line in lines if line.startswith("tent"))
    assert len(re.findall(r"\^\{\\dagger\}", tent)) == 2, "one cell has two seeds of three, and so has the mean"


@pytest.mark.parametrize(
    ("mark", "printed"), [("best", r"\textbf{1.0}$_{\pm0.1}$"), ("second", r"\underline{1.0}$_{\pm0.1}$"), ("tied", r"\underline{1.0}$_{\pm0.1}$"), ("", r"1.0$_{\pm0.1}$")]
)  # fmt: skip
def test_marks(mark: str, printed: str) -> None:
    cell = GridCell("1.0", "0.1", mark)  # type: ignore[arg-type]
    grid = Grid("n", "t", (), ["c."], [], [Column("a", "A", "mean")], [RowGroup("m", [GridRow("x", [cell])])])
    assert f"x & {printed} \\\\" in latex.latex(grid)


def test_an_interval_is_left_to_the_other_formats(made: Content, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "95 " not in (folder / "errors-severity-5.tex").read_text()
    [path] = markdown.write(made, tmp_path)
    assert "| 95 % int. |" in path.read_text()


def test_a_long_table_goes_on_a_second_page() -> None:
    rows = [GridRow(f"m{i}", [GridCell("1.0")]) for i in range(30)]
    groups = [RowGroup("one", rows), RowGroup("two", rows)]
    grid = Grid("errors-x", "t", ("WARNING",), ["First.", "Second."], [], [Column("a", "A", "mean")], groups)
    text = latex.latex(grid)
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:ttabench-errors-x", "tab:ttabench-errors-x-2"]
    own = latex.latex(grid, suite="imagenet-c")
    assert re.findall(r"\\label\{(.*)\}", own)[0] == "tab:ttabench-imagenet-c-errors-x"
    assert "First. Part 2 of 2." in text
    assert text.count("WARNING") == 2


def test_text_is_escaped() -> None:
    assert latex.escape(HARD) == (r"\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$\#\_\%\&")
    assert latex.escape("[x]--*\n y") == "{[}x{]}-{}-{*} y"
    assert latex.escape("Ж") == r"\texttt{U+0416}"


def test_markdown_says_everything(made: Content, tmp_path: pathlib.Path) -> None:
    [path] = markdown.write(made, tmp_path)
    text = path.read_text()
    for part in ("# x\\_1", "**SUBSET OF THE IMAGES, NOT A RESULT**", "severity 5", "## Cost: x86\\_64", "## Published numbers: EATA",
                 "## Published numbers: Tent", "## Mean corruption error", "## Without a result", "failed for a reason", "## Notes"):  # fmt: skip
        assert part in text, part
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, "each line of a table has all columns"
    assert r"\~^\\\{\}\$\#\_%&" in text
