"""What a person sees: everything that there is, in the width that there is."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import re

import numpy as np
import pytest
from rich.console import Console
from runs import verdicts, write_run

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.report import content, evidence
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.render import data, grids, markdown, page, terminal

WHOLE = ("clean", *BENCHMARK)


def shift(name: str) -> str:
    return name if name == "clean" else f"{name}-5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Two source models, 15 corruptions, two seeds; a cell that failed, some that are missing or cannot be."""
    cells: dict[tuple[str, str, str, int], np.ndarray | str] = {}
    for model in ("vit_b16", "resnet50_gn"):
        for place, label in enumerate(("source", "tent", "sar", "norm", "mgg[lr=0.01]")):
            for seed in (0, 1):
                for number, name in enumerate(WHOLE):
                    error = 60 - 10 * place + number + seed
                    cells[label, model, shift(name), seed] = "skipped" if label == "norm" else verdicts(error, 200)
    cells["sar", "vit_b16", "fog-5", 0] = cells["sar", "vit_b16", "fog-5", 1] = "failed"
    cells["tent", "vit_b16", "snow-5", 1] = "missing"
    run = write_run(tmp_path_factory.mktemp("runs") / "run", cells, dataset="ImageNet-C", suite="imagenet_c")
    return content.make(evidence.gather([run]), ReportOptions())


def shown(made: Content, width: int, *, colours: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=colours, color_system="standard" if colours else None)
    terminal.show(made, console)
    return stream.getvalue()


@pytest.mark.parametrize("width", [300, 120, 80])
def test_every_column_is_there_and_no_line_is_wider_than_the_terminal(made: Content, width: int) -> None:
    text = shown(made, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for head in ("clean", "gauss", "motn", "jpeg", "mean", "95 % int."):
        assert any(re.search(rf"(^| ){head}( |$)", line) for line in lines), head
    assert "…" not in text, "nothing is cut"


def test_a_pipe_gets_the_spread_of_each_cell_and_120_columns_that_of_means(made: Content) -> None:
    wide = next(line for line in shown(made, 300).splitlines() if line.startswith(" source "))
    assert wide.count("±") == 17
    narrow = next(line for line in shown(made, 120).splitlines() if line.startswith(" source "))
    assert (narrow.count("±"), len(re.findall(r"\d+\.\d", narrow))) == (1, 17 + 1 + 2)


def test_what_has_no_result_is_shown_and_explained_what_failed_first(made: Content) -> None:
    text = shown(made, 300)
    sar, tent, norm = (
        next(line for line in text.splitlines() if line.startswith(f" {name} ")) for name in ("sar", "tent", "norm")
    )
    assert " fail " in sar
    assert sar.count("*") == 1, "its mean is over fewer cells"
    assert tent.count("*") == 2, "so are a cell without one of its seeds, and the mean"
    assert norm.split() == ["norm", *["–"] * 17]
    assert "*: mean over fewer trials than planned" in text
    failed, missing, skipped = (
        text.index(part) for part in ("sar on vit_b16: 2 cells failed (fog-5; seeds 0, 1): failed for a reason", "tent on vit_b16: 1 cell missing", "norm on vit_b16: 32 cells skipped (16 shifts")
    )  # fmt: skip
    assert failed < missing < skipped


def test_marks_are_styles_and_are_explained_once(made: Content) -> None:
    text = shown(made, 300, colours=True)
    assert re.search(r"\x1b\[1m\d+\.\d\x1b\[0m", text), "bold"
    assert re.search(r"\x1b\[4m\d+\.\d\x1b\[0m", text), "underlined, without the blanks beside it"
    assert text.count("Bold: ") == 1
    assert "\x1b" not in shown(made, 300)


def test_labels_with_brackets_are_whole(made: Content) -> None:
    assert " mgg[lr=0.01] " in shown(made, 300)
    folded = shown(made, 60)
    assert "mgg[lr=0.01" in folded
    assert max(map(len, folded.splitlines())) <= 60


def test_titles_warn_of_what_is_no_result(made: Content) -> None:
    tables = [dataclasses.replace(table, partial=True, mixed=("a and b differ in torch",)) for table in made.tables]
    text = shown(dataclasses.replace(made, tables=tables), 300)
    title = next(line for line in text.splitlines() if line.startswith("imagenet_c: error"))
    assert title.endswith("— SUBSET OF THE IMAGES, NOT A RESULT; MIXED: a and b differ in torch")


def test_costs_and_notes_are_there(made: Content) -> None:
    text = shown(dataclasses.replace(made, notes=["Something that a reader [must] know."]), 120)
    assert "Cost: x86_64 (node), 1 thread, torch 2.13.0" in text
    assert "×source" in text
    assert "Note: Something that a reader [must] know." in text


def test_one_seed_says_that_the_spread_is_not_known(tmp_path: pathlib.Path) -> None:
    cells: dict = {(label, "m", "fog-5", 0): verdicts(error) for label, error in (("source", 50), ("tent", 20))}
    one = content.make(evidence.gather([write_run(tmp_path / "run", cells)]), ReportOptions(baseline="x"))
    [legend] = [grid.legend for grid in grids.grids(one) if grid.name == "errors-severity-5"]
    assert "With one seed, the spread over seeds is unknown and not part of the tests." in legend
    assert "No row has the label x: numbers relative to it are left out." in one.notes


def test_columns_that_are_chosen_keep_their_cells(made: Content) -> None:
    grid = grids.grids(made)[0]
    chosen = grid.taking([3, 0])
    assert chosen.columns == [grid.columns[3], grid.columns[0]]
    assert [row.cells for row in chosen.rows] == [[row.cells[3], row.cells[0]] for row in grid.rows]


def test_a_pipe_is_told_of_no_mark_that_it_does_not_show(made: Content) -> None:
    for sentence in ("Bold: significantly lower", "Underlined:"):
        assert sentence in shown(made, 300, colours=True)
        assert sentence not in shown(made, 300)
    assert "*: mean over fewer trials than planned; not tested." in shown(made, 300)
    assert not re.search("bold|underlined", shown(made, 300), re.IGNORECASE)


def test_the_text_of_a_failure_is_bounded_everywhere(tmp_path: pathlib.Path) -> None:
    reason = "RuntimeError: " + "x" * 5000 + " the end"
    cells = {("source", "m", "fog-5", 0): verdicts(10, 100), ("tent", "m", "fog-5", 0): "failed"}
    model = {"tag": "m", "weights_sha256": "ab", "mean": [0.5] * 3, "std": [0.2] * 3}
    report = content.make(evidence.gather([write_run(tmp_path / "run", cells, models={"m": model})]), ReportOptions())
    gaps = [dataclasses.replace(report.gaps[0], reason=f"{number} {reason}") for number in range(30)]
    rows = [dataclasses.replace(row, reason=reason) for row in report.tables[0].rows]
    report = dataclasses.replace(report, gaps=gaps, tables=[dataclasses.replace(report.tables[0], rows=rows)])
    [markdown_file] = markdown.write(report, tmp_path)
    page_file = page.write(report, [], tmp_path / "index.html")
    for text in (shown(report, 120), markdown_file.read_text(), page_file.read_text()):
        assert "x" * 400 not in "".join(text.split())
        assert "the end" in text
    assert "10 more cells without a result, for 10 other reasons" in " ".join(shown(report, 120).split())
    assert reason in data.frames(report)["gaps"]["reason"][0], "the data have all of it"
