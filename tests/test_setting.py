"""Settings: which numbers may stand in one table."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from runs import write_run

from tta_bench import load_results, suite
from tta_bench.report import content
from tta_bench.report.content import ReportOptions
from tta_bench.report.error_tables import names_of
from tta_bench.report.evidence import gather
from tta_bench.setting import Setting
from tta_bench.suite import plan
from tta_bench.suite.select import Filter

SETTING = Setting("D-C", "dirichlet", (("delta", "0.1"), ("visits", "2")), (3, 5), 64, "float64")


@pytest.mark.parametrize(
    "change",
    [{"dataset": "E-C"}, {"protocol": "reset"}, {"parameters": (("delta", "0.2"), ("visits", "2"))},
     {"severities": (5,)}, {"batch_size": 32}, {"precision": "float32"}],
)  # fmt: skip
def test_everything_that_differs_has_another_id(change: dict[str, Any]) -> None:
    assert dataclasses.replace(SETTING, **change).id != SETTING.id


def test_a_setting_comes_back_from_a_plan() -> None:
    assert Setting.of(json.loads(json.dumps(SETTING.values()))) == SETTING
    assert SETTING.told == "delta 0.1, visits 2"
    assert SETTING.text == "D-C, severity 3, 5, protocol dirichlet, delta 0.1, visits 2, batch size 64, float64"


@pytest.mark.parametrize("axis", ["delta", "severities", "batch_size", "precision"])
def test_without_an_axis_settings_that_differ_in_it_alone_are_one(axis: str) -> None:
    others = {
        "delta": dataclasses.replace(SETTING, parameters=(("delta", "1"), ("visits", "2"))),
        "severities": dataclasses.replace(SETTING, severities=(1,)),
        "batch_size": dataclasses.replace(SETTING, batch_size=1),
        "precision": dataclasses.replace(SETTING, precision="float32"),
    }
    for name, other in others.items():
        assert (other.without(axis) == SETTING.without(axis)) is (name == axis)
    assert SETTING.without("rounds") == SETTING, "at its default"
    for name in ("dataset", "protocol", "parameters"):
        with pytest.raises(KeyError, match="is not an axis"):
            SETTING.without(name)


def test_batch_size_and_precision_are_axes(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(("batch_size: 40", "batch_size: [20, 40]\nprecision: [float32, float64]"),
                      ("    mean:", "    preset: imagenet_vit_b16\n    mean:"))  # fmt: skip
    made = plan.make(suite.load(str(file)))
    assert made.axes == ("batch_size", "precision")
    found = {(t.label, t.setting.batch_size, t.setting.precision, t.stream.shifts[0].id) for t in made.trials}
    assert len(found) == len(made.trials) == 2 * 2 * 2 * 2
    assert len({t.key for t in made.trials}) == 16
    assert {(t.stream.batch_size, t.asked["batch_size"]) for t in made.trials} == {(20, 20), (40, 40)}
    rates = {t.stream.batch_size: t.config["lr"] for t in made.trials if t.label == "tent"}
    assert rates == {20: 1e-3 * 20 / 64, 40: 1e-3 * 40 / 64}, "the preset's rule acts on each"
    chosen = Filter(["batch_size=20,precision=float64"]).select(made.trials)
    assert [(t.label, t.mode.precision) for t in chosen] == [
        (n, "float64") for n in ("source", "tent") for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [("batch_size: [40, 40]", "40 is listed twice"), ("batch_size: []", "batch_size"),
     ("precision: [float16]", "unknown precision 'float16'"), ("batch_size: [40, x]", "batch_size")],
)  # fmt: skip
def test_wrong_axes_are_refused(suite_file: Callable[..., pathlib.Path], line: str, said: str) -> None:
    file = suite_file(("batch_size: 40", line if line.startswith("b") else f"batch_size: 40\n{line}"))
    with pytest.raises(suite.loader.UsageError, match=said):
        suite.load(str(file))


def test_two_values_of_a_parameter_never_share_a_table(tmp_path: pathlib.Path) -> None:
    cells = {("source", "m", f"{name}-5", 0): np.arange(100) >= 30 for name in ("fog", "snow")}
    write_run(tmp_path / "a", cells, parameters={"delta": 0.1})
    write_run(tmp_path / "b", {k: np.arange(100) >= 60 for k in cells}, parameters={"delta": 1.0})
    report = content.make(gather([tmp_path / "a", tmp_path / "b"]), ReportOptions())
    assert [[row.mean.mean for row in table.rows] for table in report.tables] == [[30.0], [60.0]]
    assert [("delta 0.1" in t.caption, "delta 1.0" in t.caption) for t in report.tables] == [
        (True, False),
        (False, True),
    ]
    assert len({table.name for table in report.tables}) == 2
    assert [len({row.trials for row in cost.rows}) for cost in report.costs] == [1, 1]
    assert len({cost.caption for cost in report.costs}) == 2
    costs = load_results(tmp_path / "a", tmp_path / "b", table="costs")
    assert costs["protocol_parameters"].tolist() == ["delta 0.1", "delta 1.0"]
    assert set(zip(costs["dataset"], costs["batch_size"], costs["precision"], strict=True)) == {("D", 10, "float32")}


ROUNDS = """
from tta_bench.protocols import ONE_OR_MORE, Protocol, ProtocolConfig
from typing import Annotated

class Rounds(Protocol):
    "All shifts, several times."
    name = "rounds"

    class Config(ProtocolConfig):
        "Attributes: rounds: how often."
        rounds: Annotated[tuple[int, ...], *ONE_OR_MORE] = (2,)

    def parts(self, source):
        for visit in range(self.config.rounds[0]):
            for number, shift in enumerate(source.shifts):
                yield source.shuffled(shift.id, visit, [number])
"""


@pytest.mark.faults
def test_what_a_suite_varies_is_told_at_its_default_too(
    suite_file: Callable[..., pathlib.Path], run_cli: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "rounds.py").write_text(ROUNDS)
    varied = "batch_size: [20, 40]\nprecision: [float32, float64]\nplugins: [rounds.py]\nprotocol: {kind: rounds, rounds: [1, 2]}"
    file = suite_file(("batch_size: 40", varied), ("[source, tent]", "[source]"), ("[clean, contrast]", "[contrast]"))
    outcome = run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "run")
    lines = [line for line in outcome.err.splitlines() if line.startswith("[")]
    asked = [
        f"batch_size {b}, precision {p}, rounds {r}" for b in (20, 40) for p in ("float32", "float64") for r in (1, 2)
    ]
    assert sorted(line.split(" · ")[3] for line in lines) == sorted(asked)
    report = content.make(gather([tmp_path / "run"]), ReportOptions())
    captions = [(t.caption, t.title) for t in (*report.tables, *report.costs)]
    told = [f"rounds {r}, batch size {b}, {p}" for b in (20, 40) for p in ("float32", "float64") for r in (1, 2)]
    for words in told:
        assert sum(words in caption for caption, _ in captions) == 2, words
    assert len({table.name for table in report.tables}) == 8
    assert {cost.title.rpartition(", ")[2] for cost in report.costs} == {"float32", "float64"}


def test_what_is_varied_tells_no_settings_apart() -> None:
    varied = dataclasses.replace(SETTING, varied=(("precision", '"float64"'), ("rounds", "2")))
    assert (varied, varied.id, hash(varied)) == (SETTING, SETTING.id, hash(SETTING))
    assert Setting.of(json.loads(json.dumps(varied.values()))).varied == varied.varied
    assert varied.caption == "delta 0.1, rounds 2, visits 2"
    assert varied.without("rounds").without("precision").varied == ()
    assert dataclasses.replace(varied, precision="float32").mode_told == "float32"
    assert Setting("D", "reset", varied=(("adapt_images", "null"),)).varied_told == "adapt_images all"


@pytest.mark.faults
def test_curves_of_trials_that_differ_in_a_setting_alone_are_told_apart(
    suite_file: Callable[..., pathlib.Path], run_cli: Callable[..., Any]
) -> None:
    varied = "protocol: {kind: reset, adapt_images: [40, all]}\nbatch_size: [20, 40]\nprecision: [float32, float64]"
    file = suite_file(("batch_size: 40", varied), ("[source, tent]", "[source]"), ("[clean, contrast]", "[contrast]"))
    assert run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "run").code == 0
    curve = load_results("run", table="batches")
    assert curve["key"].nunique() == curve["setting"].nunique() == 8
    axes = ["batch_size", "precision", "protocol_parameters"]
    assert (curve.groupby(["label", "model", "seed", *axes])["key"].nunique() == 1).all()
    assert {int(n) for n in curve["batch_size"]} == {20, 40}


def test_clean_images_of_a_stream_stand_with_its_severity_alone(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(("severities: [5]", "severities: [3, 5]\nprotocol: {kind: continual}"))
    made = plan.make(suite.load(str(file)))
    assert [t.setting.severities for t in made.trials if t.label == "source"] == [(3,), (5,)]
    made = plan.make(suite.load(str(file), sets=["protocol.kind=reset"]))
    assert [t.setting.severities for t in made.trials if t.label == "source"] == [(), (3,), (5,)]


def test_titles_of_settings_that_differ_in_anything_differ() -> None:
    base = Setting("D", "reset")
    others = [replace(base, mask="none"), replace(base, precision="float64"), replace(base, batch_size=1),
              replace(base, dataset="E"), replace(base, parameters=(("delta", "0.1"),))]  # fmt: skip
    for other in others:
        assert len({title for _, title in names_of([base, other]).values()}) == 2
    titles = [title for _, title in names_of([base, *others]).values()]
    assert len(set(titles)) == 6
    assert [title for _, title in names_of([base, others[0]]).values()] == ["reset", "reset, class mask none"]
