"""``cost_ratio: measure``: a run measures what an adapting step costs, and each method gets a stream of its own."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Outcome, clock
from plugins import fork_this_process

from tta_bench import load_results, suite
from tta_bench.report import content
from tta_bench.report.content import ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.suite import plan
from tta_bench.suite.cost_ratios import CostRatio

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

MEASURED = "{kind: continual, adapt: {eta: 1.0, cost_ratio: measure}}"
BATCHES = 15  # of a calibration: 100 images in 5 batches of 20, in three visits

METHODS = """\
import pathlib

from tta_bench import adapter


class Fragile(adapter.Adapter):
    name = "fragile"

    def step(self, x):
        if pathlib.Path("broken").exists():
            raise ValueError("it is broken")
        return self.predict(x) + 1


class Unfit(adapter.Adapter):
    name = "unfit"
    needs = adapter.Needs(class_token=True)

    def step(self, x):
        return self.predict(x)


class Informed(adapter.Adapter):
    name = "informed"
    needs = adapter.Needs(source_images=True)

    def source_request(self):
        return adapter.SourceRequest(images=12, batch_size=6)

    def prepare(self, source):
        return {"images": sum(x.new_tensor(float(len(x))) for x in source)}

    def step(self, x):
        assert float(self.prepared["images"]) == 12
        return self.model(x).detach() * 2
"""


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Callable[..., None]:
    """Have runs fork this process, and its clock say how long each step and each plain pass of a calibration take."""

    def set_times(*steps: float, forward: float = 1.0) -> None:
        assert len(steps) == BATCHES
        monkeypatch.setattr("tta_bench.run.meters.time", clock(*[s for step in steps for s in (step, forward)]))

    fork_this_process(monkeypatch, tmp_path)
    return set_times


@pytest.fixture
def measured(suite_file: SuiteFile, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write the small suite with batches of 20 under a measured cost ratio, and the plugins beside it."""

    def write(methods: str = "[source, tent]", protocol: str = MEASURED) -> pathlib.Path:
        (tmp_path / "methods.py").write_text(METHODS)
        return suite_file(("[source, tent]", methods), ("batch_size: 40", f"protocol: {protocol}\nbatch_size: 20"),
                          ("name: small", "name: small\nplugins: [methods.py]"))  # fmt: skip

    return write


def planned(file: pathlib.Path, **ratios: float) -> plan.Plan:
    costs = {(label, "resnet_bn", 20, "float32"): CostRatio(ratio) for label, ratio in ratios.items()}
    return plan.make(suite.load(str(file)), costs=costs)


def prepared(out: str = "out") -> dict[str, dict[str, Any]]:
    """The content of the files of measured cost ratios, by method."""
    files = pathlib.Path(out, "prepared").glob("cost_ratio-*.json")
    return {file.name.split("-")[1]: json.loads(file.read_text()) for file in files}


def adapted(out: str, label: str) -> list[int]:
    rows = load_results(out, table="batches")
    return [int(value) for value in rows[rows["label"] == label]["adapted"]]


COMMAND = ("--executor", "local", "--out", "out")
# a slow warm-up, then a median of 3.25 with two outliers
STEPS = (50.0, 50.0, 50.0, 3.25, 3.25, 3.25, 3.0, 3.0, 3.0, 3.5, 3.5, 90.0, 0.1, 3.25, 3.25)


def test_the_ratio_is_the_median_after_the_warm_up_and_sets_the_methods_stream(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None]
) -> None:
    timed(*STEPS)
    outcome = run_cli("run", measured(), *COMMAND)
    assert outcome.code == 0, outcome.err
    assert "cost_ratio-tent-resnet_bn: 3.25 (a step takes 3250.0 ms, a plain forward pass 1000.0 ms" in outcome.err
    assert "cost_ratio-source-resnet_bn: 1 (" in outcome.err
    assert adapted("out", "tent") == [1, 0, 0, 0, 1] * 2, "of each segment"
    assert adapted("out", "source") == [1] * 10, "what is a plain forward pass costs 1, whatever the clock says"
    rows = load_results("out").set_index("label")
    assert rows["cost_ratio"].to_dict() == {"source": 1.0, "tent": 3.25}
    files = prepared()
    assert files["source"]["by_definition"]
    tent = files["tent"]
    assert (tent["batches"], tent["warmup_batches"], tent["batch_size"], tent["device"]) == (12, 3, 20, "cpu")
    assert (tent["step_ms_median"], tent["forward_ms_median"]) == pytest.approx((3250.0, 1000.0))

    [view] = [table for table in content.make(gather([pathlib.Path("out")]), ReportOptions()).views
              if table.view == "adaptation"]  # fmt: skip
    assert "cost of an adapting step in plain forward passes: source 1, tent 3.25" in view.caption
    assert {row.label: row.cells["share"].mean for row in view.rows} == {"source": 100.0, "tent": 40.0}
    assert "adapt eta 1, cost_ratio measure" in view.caption


@pytest.mark.faults
def test_a_ratio_is_measured_once_and_taken_along_to_another_machine(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None]
) -> None:
    timed(*STEPS)
    assert run_cli("run", measured(), *COMMAND).code == 0
    timed(*[9.0] * BATCHES)
    again = run_cli("run", measured(), *COMMAND)
    assert "preparing" not in again.err
    assert "2 finished, 0 to run" in again.err
    shutil.copytree("out/prepared", "elsewhere/prepared")
    outcome = run_cli("run", measured(), "--executor", "local", "--out", "elsewhere")
    assert "preparing" not in outcome.err
    assert {p.name for p in pathlib.Path("out/trials").iterdir()} == {
        p.name for p in pathlib.Path("elsewhere/trials").iterdir()
    }


def test_a_damaged_ratio_is_named(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None]
) -> None:
    timed(*STEPS)
    assert run_cli("run", measured(), *COMMAND).code == 0
    [damaged, *_] = sorted(pathlib.Path("out/prepared").glob("cost_ratio-*.json"))
    damaged.write_text(damaged.read_text()[:40])
    outcome = run_cli("run", measured(), *COMMAND)
    assert outcome.code == 2
    assert f"{damaged.name}: the file is damaged" in outcome.err
    assert "hint: delete it: the ratio is measured again" in outcome.err


def test_a_dry_run_says_what_will_be_measured_and_measures_nothing(
    run_cli: Cli, measured: Callable[..., pathlib.Path]
) -> None:
    outcome = run_cli("run", measured(), *COMMAND, "--dry-run")
    assert outcome.code == 0
    assert "cost ratios to measure before the first trial: cost_ratio-source-resnet_bn, cost_ratio-tent-resnet_bn" \
        in outcome.err  # fmt: skip
    assert "0 finished, 2 to run" in outcome.err
    assert not pathlib.Path("out").exists()


def test_only_what_is_selected_is_measured(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None]
) -> None:
    timed(*STEPS)
    assert run_cli("run", measured(), *COMMAND, "--only", "method=source").code == 0
    assert set(prepared()) == {"source"}
    assert load_results("out").set_index("label")["status"].to_dict() == {"source": "ok", "tent": "missing"}
    outcome = run_cli("run", measured(), *COMMAND)
    assert outcome.code == 0
    assert "1 finished, 1 to run" in outcome.err
    assert adapted("out", "tent") == [1, 0, 0, 0, 1] * 2


@pytest.mark.faults
def test_a_method_that_cannot_be_measured_has_rows_with_the_reason_and_costs_no_other_its_results(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    timed(*STEPS)
    (tmp_path / "broken").touch()
    file = measured("[fragile, unfit, informed, source]")
    outcome = run_cli("run", file, *COMMAND)
    assert outcome.code == 3
    rows = load_results("out", table="segments").drop_duplicates("label").set_index("label")
    assert rows["status"].to_dict() == {"fragile": "failed", "unfit": "skipped", "informed": "ok", "source": "ok"}
    assert rows.loc["fragile", "reason"] == "its cost ratio could not be measured: ValueError: it is broken"
    assert rows.loc["unfit", "reason"] == "its cost ratio could not be measured: the model has no class token"
    assert rows.loc["informed", "source_images"] == 12
    assert (rows.loc["informed", "cost_ratio"], rows.loc["source", "cost_ratio"]) == (3.25, 1.0)
    assert rows["cost_ratio"].isna().to_dict() == {"fragile": True, "unfit": True, "informed": False, "source": False}
    trial = json.loads(pathlib.Path(f"out/trials/{rows.loc['fragile', 'key']}.json").read_text())
    assert "raise ValueError" in trial["traceback"]

    (tmp_path / "broken").unlink()
    assert "preparing" not in run_cli("run", file, *COMMAND).err
    outcome = run_cli("run", file, *COMMAND, "--retry-failed")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("preparing cost_ratio") == 1
    assert load_results("out").set_index("label")["status"].to_dict()["fragile"] == "ok"


@pytest.mark.faults
def test_parts_of_a_suite_merge_where_the_ratios_were_taken_along(
    run_cli: Cli, measured: Callable[..., pathlib.Path], timed: Callable[..., None]
) -> None:
    timed(*STEPS)
    assert run_cli("run", measured(), *COMMAND).code == 0
    for label in ("source", "tent"):
        shutil.copytree("out/prepared", f"{label}/prepared")
        assert run_cli("run", measured(), *COMMAND[:2], "--out", label, "--only", f"method={label}").code == 0
    for options in ((), ("--suite", measured())):
        outcome = run_cli("merge", "source", "tent", "--out", f"merged{len(options)}", *options)
        assert outcome.code == 0, outcome.err
        assert load_results(f"merged{len(options)}")["status"].tolist() == ["ok"] * 2 * 2


# -- keys and settings -------------------------------------------------------------------------------------------------


def test_the_number_is_in_the_key_and_its_word_in_the_setting(measured: Callable[..., pathlib.Path]) -> None:
    one, other = (planned(measured(), source=1.0, tent=ratio).trials for ratio in (2.1, 2.9))
    [of_one, of_other] = [next(trial for trial in trials if trial.label == "tent") for trials in (one, other)]
    assert of_one.asked["stream"] == of_other.asked["stream"], "both adapt on every third batch"
    assert of_one.key != of_other.key
    assert of_one.asked["cost_ratio"] == 2.1
    assert of_one.setting == of_other.setting
    assert of_one.setting.told == "adapt eta 1, cost_ratio measure"
    assert (of_one.cost_ratio, of_other.cost_ratio) == (2.1, 2.9)
    assert {trial.key for trial in one if trial.label == "source"} == {t.key for t in other if t.label == "source"}


def test_a_given_number_keeps_its_key_and_its_rows_beside_a_measured_one(
    measured: Callable[..., pathlib.Path],
) -> None:
    given = MEASURED.replace("measure", "3.0")
    alone = planned(measured(protocol=given)).trials
    assert {trial.cost_ratio for trial in alone} == {3.0}
    assert not any("cost_ratio" in trial.asked for trial in alone)
    both = planned(measured(protocol=f"[{MEASURED}, {given}]"), source=3.0, tent=3.0).trials
    assert len({trial.key for trial in both}) == len(both) == 4
    assert {trial.key for trial in alone} < {trial.key for trial in both}
    assert len({trial.setting.id for trial in both}) == 2


def test_without_a_measurement_a_trial_has_an_obstacle_and_the_same_segments(
    measured: Callable[..., pathlib.Path],
) -> None:
    made = planned(measured(), source=1.0)
    source, tent = made.trials
    assert source.obstacle is None
    assert tent.obstacle is not None
    assert tent.obstacle.reason == "its cost ratio has not been measured"
    assert tent.stream.shifts == source.stream.shifts
    assert tent.key != planned(measured(), source=1.0, tent=1.0).trials[1].key
