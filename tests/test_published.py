"""Measured beside published: what is compared with what, why numbers need not agree, and --check."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from runs import verdicts, write_run

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.errors import UsageError
from tta_bench.protocols import ProtocolConfig
from tta_bench.registry import PROTOCOLS as KIND
from tta_bench.registry import installed
from tta_bench.report import error_tables, evidence, published
from tta_bench.report.matching import PROTOCOLS
from tta_bench.report.reference import Comparison, compare
from tta_bench.suite import parts

Cli = Callable[..., Outcome]
Cell = tuple[str, str, str, int]

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
R50 = {"R50-BN": {"tag": "resnet50.tv_in1k", **IMAGENET}}
LIKE_EATA: dict[str, Any] = {"dataset": "ImageNet-C", "batch_size": 64, "images": 50_000, "models": R50}


def rows_of(paper: str, **wanted: str) -> list[dict[str, str]]:
    with published.shipped().open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["paper"] == paper]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def eata_cells(model: str = "R50-BN") -> dict[Cell, np.ndarray | str]:
    """Verdicts with exactly the errors of EATA's Table 2; 1,000 images are enough for one decimal."""
    rows = rows_of("EATA", model="R50-BN", protocol="reset_per_corruption", metric="err%")
    return {(r["method_id"], model, f"{r['corruption']}-5", 0): verdicts(float(r["value"]), 1000) for r in rows}


def compared(run: pathlib.Path, file: pathlib.Path | None = None) -> dict[str, Comparison]:
    found = evidence.gather([run])
    return {one.paper: one for one in compare(found, error_tables.tables(found), file or published.shipped())}


def own(folder: pathlib.Path, *rows: Mapping[str, str]) -> pathlib.Path:
    """A file of published numbers that are like one of EATA's but for what is given."""
    file, like = folder / "own.csv", rows_of("EATA", corruption="fog", method_id="tent")[0]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(like))
        writer.writeheader()
        writer.writerows({**like, **row} for row in rows)
    return file


# -- what is compared with what ----------------------------------------------------------------------------------------


def test_a_run_with_a_papers_numbers_differs_nowhere(tmp_path: pathlib.Path) -> None:
    found = compared(write_run(tmp_path / "run", eata_cells(), **LIKE_EATA))
    rows = found["EATA"].rows
    assert {(row.method, row.label) for row in rows} == {
        ("source", "source"),
        ("Tent", "tent"),
        ("ETA", "eta"),
        ("EATA", "eata"),
    }
    assert {row.corruption for row in rows} == set(BENCHMARK)
    assert len(rows) == 60
    assert all(row.same and row.reason == "" and row.gap == 0 for row in rows)
    assert "52 of 112 published numbers have no counterpart here" in found["EATA"].unmatched


def test_every_paper_is_there_and_says_why_nothing_matches(tmp_path: pathlib.Path) -> None:
    found = compared(write_run(tmp_path / "run", eata_cells(), **LIKE_EATA))
    with published.shipped().open() as stream:
        assert list(found) == list(dict.fromkeys(row["paper"] for row in csv.DictReader(stream)))
    assert (
        found["Tent"].unmatched
        == "All 96 published numbers have no counterpart here: 96 of another data set (CIFAR-10-C)."
    )
    assert "of another protocol (label_shift_ir500000)" in found["SAR"].unmatched
    assert not found["SAR-issue5"].rows
    for one in found.values():
        assert one.rows or one.unmatched.startswith("All ")


def test_accuracy_becomes_error_and_avg_is_the_mean_over_the_15(tmp_path: pathlib.Path) -> None:
    vit = {"vit": {"tag": "vit_base_patch16_224.augreg2_in21k_ft_in1k", "mean": [0.5] * 3, "std": [0.5] * 3}}
    rows = rows_of("FOA", protocol="reset_per_corruption_bs64", metric="acc%", method_id="tent")
    cells: dict[Cell, np.ndarray | str] = {
        ("tent", "vit", f"{r['corruption']}-5", 0): verdicts(100 - float(r["value"]), 1000)
        for r in rows
        if r["corruption"] != "avg"
    }
    run = write_run(tmp_path / "run", cells, dataset="ImageNet-C", batch_size=64, images=50_000, models=vit)
    found = compared(run)
    foa = {row.corruption: row for row in found["FOA"].rows}
    assert set(foa) == {*BENCHMARK, "mean"}
    assert all(row.same and row.gap == 0 for row in foa.values())
    assert foa["mean"].published == pytest.approx(40.4)
    [mean] = found["MGTTA"].rows
    assert (mean.corruption, mean.published, mean.reason) == ("mean", pytest.approx(40.4), "")


def test_a_mean_over_other_corruptions_is_not_compared(tmp_path: pathlib.Path) -> None:
    cells = {cell: v for cell, v in eata_cells().items() if cell[2] != "fog-5"}
    file = own(tmp_path, {"corruption": "avg"}, {"corruption": "fog"}, {"corruption": "snow"})
    [one] = compared(write_run(tmp_path / "run", cells, **LIKE_EATA), file).values()
    assert [row.corruption for row in one.rows] == ["snow"]
    assert one.unmatched.endswith("2 of a corruption, or a mean over corruptions, that the run has not (mean, fog).")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"severity": "3"}, "another severity (3)"),
        ({"protocol": "mixed_domains"}, "another protocol (mixed_domains)"),
        ({"protocol": "continual"}, "another protocol (continual)"),
        ({"method_id": "lame", "method": "LAME"}, "of a method that was not run (LAME)"),
        ({"method_id": ""}, "of a method that was not run (Tent)"),
        ({"model": "WRN-28-10", "weights": ""}, "another source model (WRN-28-10)"),
        ({"dataset": "ImageNet-R", "corruption": "none", "severity": "-"}, "another data set (ImageNet-R)"),
        ({"comparable": "no"}, "marked as not comparable"),
        ({"metric": "seconds", "value": "259"}, "no error"),
    ],
)
def test_what_does_not_match_is_said(tmp_path: pathlib.Path, changed: dict[str, str], why: str) -> None:
    [one] = compared(write_run(tmp_path / "run", eata_cells(), **LIKE_EATA), own(tmp_path, changed)).values()
    assert one.rows == []
    assert why in one.unmatched


def test_reruns_and_further_tables_are_all_shown(tmp_path: pathlib.Path) -> None:
    file = own(tmp_path, {"value": "42.5"}, {"value": "43.0", "source": "table 7"})
    [one] = compared(write_run(tmp_path / "run", eata_cells(), **LIKE_EATA), file).values()
    assert [round(row.published, 1) for row in one.rows] == [42.5, 43.0]


# -- protocols ---------------------------------------------------------------------------------------------------------

WITHOUT_COUNTERPART = {"Table9_exp2", "50000_images_RTX3090", "claim"}
MD: dict[str, Any] = {"variant": "md"}


def under(tmp_path: pathlib.Path, published_protocol: str, **about: Any) -> Comparison:
    """Tent on fog, one number of the protocol beside a run of it."""
    cells = {cell: v for cell, v in eata_cells().items() if cell[:3:2] == ("tent", "fog-5")}
    run = write_run(tmp_path / "run", cells, **{**LIKE_EATA, **about})
    [one] = compared(run, own(tmp_path, {"protocol": published_protocol})).values()
    return one


def test_every_published_protocol_has_a_counterpart_or_is_known_to_have_none() -> None:
    with published.shipped().open() as stream:
        names = {row["protocol"] for row in csv.DictReader(stream)}
    assert names - set(PROTOCOLS) == WITHOUT_COUNTERPART
    assert set(PROTOCOLS) - names == {"reset"}, "the word for files of one's own"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_counterpart_is_what_a_suite_can_have(name: str) -> None:
    one = PROTOCOLS[name]
    config = parts.read(KIND, {"kind": one.kind, **one.parameters}, installed())
    assert isinstance(config, ProtocolConfig)
    assert config.parameters() == one.parameters, "no value is at its default"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_of_the_same_protocol_is_compared_without_a_reason(tmp_path: pathlib.Path, name: str) -> None:
    one = PROTOCOLS[name]
    [row] = under(tmp_path, name, protocol=one.kind, parameters=dict(one.parameters)).rows
    assert (row.reason, row.same) == ("", True)


@pytest.mark.parametrize(
    ("name", "protocol", "parameters", "reason"),
    [
        ("continual", "continual", {}, "order of images: own, published md"),
        ("reset_per_corruption", "reset", {"variant": "sar"}, "order of images: sar, published not stated"),
        ("correlated_sorted", "continual", {"delta": 0.0}, "order of images: own, published md"),
        ("label_shift_ir500000", "label_shift", {"variant": "sar", "class_order": "order.npz"}, ""),
        ("episodic_online", "reset", {"adapt": {"eta": 1.0, "cost_ratio": 2.5}}, "cost ratio 2.5, published measured"),
    ],
)
def test_another_order_by_the_same_rule_is_a_reason(
    tmp_path: pathlib.Path, name: str, protocol: str, parameters: dict[str, Any], reason: str
) -> None:
    [row] = under(tmp_path, name, protocol=protocol, parameters=parameters).rows
    assert row.reason == reason


@pytest.mark.parametrize(
    ("name", "protocol", "parameters"),
    [
        ("continual", "continual", {**MD, "delta": 0.0}),
        ("continual", "continual", {**MD, "reset": "batch"}),
        ("continual", "continual", {**MD, "window": 64}),
        ("continual", "continual", {**MD, "images": 5000}),
        ("continual", "mixed", MD),
        ("mixed_correlated_dir0.01", "mixed", {**MD, "delta": 0.1}),
        ("correlated_sorted", "continual", MD),
        ("label_shift_ir500000", "label_shift", {"variant": "sar", "imbalance_ratio": 1000.0}),
        ("episodic_online", "reset", {}),
        ("episodic_online", "reset", {"adapt": {"eta": 0.5, "cost_ratio": "measure"}}),
        ("episodic_offline", "reset", {"adapt": {"eta": 1.0, "cost_ratio": "measure"}}),
        ("reset_per_corruption", "reset", {"probe": {"shift": "clean"}}),
    ],
)
def test_other_parameters_are_another_protocol(
    tmp_path: pathlib.Path, name: str, protocol: str, parameters: dict[str, Any]
) -> None:
    one = under(tmp_path, name, protocol=protocol, parameters=parameters)
    assert one.rows == []
    assert f"1 of another protocol ({name})" in one.unmatched


def test_a_protocol_without_a_counterpart_is_said(tmp_path: pathlib.Path) -> None:
    one = under(tmp_path, "Table9_exp2", protocol="label_shift", parameters={})
    assert one.rows == []
    assert "1 of a protocol without a counterpart here (Table9_exp2)" in one.unmatched


# -- why numbers need not agree ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "changed", "reason"),
    [
        ({"images": 5000}, {}, "5,000 images, published 50,000"),
        ({"all_images": False, "images": 500}, {}, "a subset of 500 images"),
        ({"dataset": "ImageNet-C (generated)"}, {}, "generated corruptions"),
        ({"models": {"R50-BN": {"tag": "resnet50.a1_in1k", **IMAGENET}}}, {}, "other weights, published torchvision ResNet50 IMAGENET1K_V1"),
        ({"models": {"R50-BN": {**R50["R50-BN"], "mean": [0.5] * 3}}}, {}, "other preprocessing, published ImageNet mean/std"),
        ({}, {"protocol": "reset_per_corruption_bs64"}, ""),
        ({"batch_size": 32}, {"protocol": "reset_per_corruption_bs64"}, "batch size 32, published 64"),
        ({"adapt_images": 100}, {}, "adapted on the first 100 images"),
        ({"session": {"suite": {"methods": [{"name": "tent", "config": {"lr": 0.1}}]}}}, {}, "set in the suite: lr"),
        ({"session": {"suite": {"methods": [{"name": "tent", "label": "t", "config": {"lr": 0.1}}]}}}, {}, ""),
        ({"session": {"suite": {"methods": [{"name": "tent", "papers": ["EATA"], "config": {"lr": 0.1}}]}}}, {}, ""),
        ({"session": {"suite": {"methods": [{"name": "tent", "papers": ["ROID"], "config": {"lr": 0.1}}]}}}, {}, "set in the suite: lr"),
        ({}, {"weights": "", "preprocessing": ""}, ""),
    ],
)  # fmt: skip
def test_reasons(tmp_path: pathlib.Path, about: dict[str, Any], changed: dict[str, str], reason: str) -> None:
    cells = {cell: v for cell, v in eata_cells().items() if cell[:3:2] == ("tent", "fog-5")}
    run = write_run(tmp_path / "run", cells, **{**LIKE_EATA, **about})
    [one] = compared(run, own(tmp_path, changed)).values()
    [row] = one.rows
    assert (row.reason, row.same) == (reason, not reason)
    assert row.measured == pytest.approx(42.5)


def test_the_same_architecture_under_another_name_is_compared_with_its_reason(tmp_path: pathlib.Path) -> None:
    models = {"mine": {"tag": "resnet50.a1_in1k", **IMAGENET}}
    run = write_run(tmp_path / "run", eata_cells("mine"), **{**LIKE_EATA, "models": models})
    assert {row.reason for row in compared(run)["EATA"].rows} == {
        "other weights, published torchvision ResNet50 IMAGENET1K_V1"
    }
    models["mine"]["options"] = {"layers": [1, 1, 1, 1]}
    run = write_run(tmp_path / "changed", eata_cells("mine"), **{**LIKE_EATA, "models": models})
    assert compared(run)["EATA"].rows == [], "another network than its tag says"


def test_seeds_are_a_note_and_no_reason(tmp_path: pathlib.Path) -> None:
    cells = {(*cell[:3], seed): v for cell, v in eata_cells().items() for seed in (0, 1)}
    rows = compared(write_run(tmp_path / "run", cells, **LIKE_EATA))["EATA"].rows
    assert {(row.reason, row.note) for row in rows} == {("", "measured: mean of 2 seeds")}


# -- the file ----------------------------------------------------------------------------------------------------------


def test_every_problem_of_a_file_is_named_with_its_place(tmp_path: pathlib.Path) -> None:
    file = own(tmp_path, {"value": "high"}, {"value": "142"}, {"severity": "worst"}, {"comparable": "perhaps"})
    with pytest.raises(UsageError) as raised:
        published.load(file)
    places = [(problem.where, problem.message) for problem in raised.value.problems]
    assert places == [
        (f"{file}:2", "value 'high' is not a number from 0 to 100"),
        (f"{file}:3", "value '142' is not a number from 0 to 100"),
        (f"{file}:4", "severity 'worst' is not 0 to 5"),
        (f"{file}:5", "comparable is 'perhaps'"),
    ]
    assert all(problem.hint for problem in raised.value.problems)


def test_a_file_without_a_column_or_without_anything_is_refused(tmp_path: pathlib.Path, run_cli: Cli) -> None:
    file = tmp_path / "own.csv"
    file.write_text("paper,arxiv,source,dataset,model,protocol,severity,method,coruption,metric,value,method_id,weights,preprocessing,images,comparable\n")  # fmt: skip
    write_run(tmp_path / "run", {("source", "m", "fog-5", 0): verdicts(10)})
    outcome = run_cli("report", "run", "--reference", file)
    assert outcome.code == 2
    assert f"{file}: no column 'corruption'\n  hint: did you mean 'coruption'?" in outcome.err
    outcome = run_cli("report", "run", "--check", tmp_path / "none.csv")
    assert outcome.code == 2
    assert "published numbers cannot be read" in outcome.err
    outcome = run_cli("report", "--reference", tmp_path / "run")
    assert "give the runs first" in outcome.err


# -- --check -----------------------------------------------------------------------------------------------------------


def check(run_cli: Cli, run: pathlib.Path, file: pathlib.Path, tolerance: float) -> Outcome:
    return run_cli("report", run, "--format", "csv", "--check", file, "--tolerance", tolerance)


@pytest.fixture
def eata_file(tmp_path: pathlib.Path) -> pathlib.Path:
    return own(tmp_path, *rows_of("EATA", model="R50-BN"))


def test_a_run_with_a_papers_numbers_passes_at_tolerance_0(
    run_cli: Cli, eata_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    outcome = check(run_cli, write_run(tmp_path / "run", eata_cells(), **LIKE_EATA), eata_file, 0)
    assert outcome.code == 0, outcome.err
    assert f"check {eata_file}: 0 of 60 published numbers differ by more than 0 points" in outcome.err
    assert outcome.out.splitlines()[-1].endswith("run/report"), "the folder is stdout's last line"


def test_one_number_that_is_off_by_0_6_fails(run_cli: Cli, eata_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cells = eata_cells()
    cells["tent", "R50-BN", "fog-5", 0] = verdicts(42.5 + 0.6, 1000)
    run = write_run(tmp_path / "run", cells, **LIKE_EATA)
    outcome = check(run_cli, run, eata_file, 0.5)
    assert outcome.code == 3
    assert "1 of 60 published numbers differ by more than 0.5 points" in outcome.err
    assert "  EATA: Tent (tent on R50-BN), fog: published 42.5, measured 43.10, difference +0.60\n" in outcome.err
    assert outcome.err.count("published 4") == 1, "only what differs is listed"
    assert (run / "report" / "data" / "errors.csv").is_file(), "the report is written all the same"
    assert check(run_cli, run, eata_file, 0.6).code == 0


def test_a_check_that_checks_nothing_fails(run_cli: Cli, eata_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", eata_cells(), **{**LIKE_EATA, "images": 5000})
    outcome = check(run_cli, run, eata_file, 100)
    assert outcome.code == 3
    assert "nothing was checked: no published number has the run's settings" in outcome.err
    assert "EATA: 60 with other settings: 5,000 images, published 50,000" in outcome.err


def test_other_settings_are_listed_and_not_counted(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    file = own(tmp_path, {}, {"corruption": "snow", "value": "1.0", "images": "5000"})
    outcome = check(run_cli, write_run(tmp_path / "run", eata_cells(), **LIKE_EATA), file, 0)
    assert outcome.code == 0, outcome.err
    assert "0 of 1 published numbers differ" in outcome.err
    assert (
        "snow: published 1.0, measured 52.90, difference +51.90 (not counted: 50,000 images, published 5,000)"
        in outcome.err
    )


@pytest.mark.parametrize("state", ["failed", "missing"])
def test_a_cell_without_its_number_fails(
    run_cli: Cli, tmp_path: pathlib.Path, eata_file: pathlib.Path, state: str
) -> None:
    cells = {**eata_cells(), ("tent", "R50-BN", "fog-5", 0): state}
    outcome = check(run_cli, write_run(tmp_path / "run", cells, **LIKE_EATA), eata_file, 0.5)
    assert outcome.code == 3
    assert f"EATA: Tent (tent on R50-BN), fog: published 42.5, {state}" in outcome.err


def test_rounding_of_the_published_number_is_no_difference(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    file = own(tmp_path, {"value": "42.5"}, {"corruption": "snow", "value": "53"})
    cells: dict[Cell, np.ndarray | str] = {
        ("tent", "R50-BN", "fog-5", 0): verdicts(42.54, 10_000),
        ("tent", "R50-BN", "snow-5", 0): verdicts(52.6, 10_000),
    }
    run = write_run(tmp_path / "run", cells, **LIKE_EATA)
    assert check(run_cli, run, file, 0).code == 0
    assert check(run_cli, run, own(tmp_path, {"value": "42.6"}), 0).code == 3


def test_a_baseline_that_no_row_has_is_refused(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("tent", "m", "fog-5", 0): verdicts(10)})
    outcome = run_cli("report", run, "--format", "csv", "--baseline", "tnt")
    assert outcome.code == 2
    assert "--baseline: no row has the label 'tnt'\n  hint: did you mean 'tent'?" in outcome.err
    outcome = run_cli("report", run, "--format", "csv")
    assert outcome.code == 0, outcome.err
    assert "No row has the label source: numbers relative to it are left out." in outcome.out
