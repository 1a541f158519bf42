"""``--dry-run --measure`` and ``--gpus-per-trial auto``: modes and shares of a GPU chosen by measurement."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, wait_until
from plugins import fork_this_process

from tta_bench import suite
from tta_bench.commands import measuring as command
from tta_bench.commands.comparison import Comparison
from tta_bench.commands.measuring import Measuring
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.precision import Mode
from tta_bench.run.measurement import Measured, agreement_pct, measured
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.cluster import Slot
from tta_bench.schedule.estimates import row_seconds
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.packing import Card, share_of_gpu, trials_at_once
from tta_bench.store import rundir
from tta_bench.suite import measuring, plan
from tta_bench.suite.plan import Plan

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

H100 = Card("NVIDIA H100", 81_000.0)
BF16, COMPILED = Mode("bfloat16"), Mode("bfloat16", "on")

METHODS = """\
from tta_bench import adapter


class Fragile(adapter.Adapter):
    name = "fragile"

    def step(self, x):
        raise ValueError("it is broken")


class Unfit(adapter.Adapter):
    name = "unfit"
    needs = adapter.Needs(class_token=True)

    def step(self, x):
        return self.predict(x)
"""


def planned(file: pathlib.Path, *sets: str) -> Plan:
    return plan.make(suite.load(str(file), sets=sets))


# -- from numbers to numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held_mib", "share", "at_once"),
    [
        (0.0, 0.25, 4),  # four trials at most
        (16_400.0, 0.25, 4),  # (1.2 · 16,400 + 512) / 81,000 = 0.24928
        (16_500.0, 0.2508, 3),  # 0.250765, rounded up
        (25_000.0, 0.3767, 2),  # 0.376691
        (33_323.0, 0.5, 2),  # 0.499995
        (33_330.0, 0.5001, 1),
        (68_000.0, 1.0, 1),  # 1.01373
    ],
)
def test_a_share_is_the_part_of_the_memory_with_its_margin(held_mib: float, share: float, at_once: int) -> None:
    assert share_of_gpu(held_mib, 81_000.0) == share
    assert trials_at_once(share) == at_once
    assert Slot(1, share).fits({"CPU": 64, "GPU": 2}) == 2 * at_once


def test_a_rows_duration_counts_its_images_and_the_start_of_each_process() -> None:
    assert row_seconds(images=5000, trials=5, image_s=0.01, first_s=6.0, at_once=1) == 56.0
    assert row_seconds(images=5000, trials=5, image_s=0.01, first_s=6.0, at_once=4) == 18.5
    assert row_seconds(images=1000, trials=1, image_s=0.01, first_s=6.0, at_once=4) == 4.0


def finished(device: str = "cpu", **changed: Any) -> TrialResult:
    """Seven batches of 20 images, three to warm up: steps of 10 ms, one that took long, and 40 ms of adapting."""
    batches = {
        "step_ms": np.array([500.0, 90.0, 90.0, 10.0, 10.0, 300.0, 40.0]),
        "data_ms": np.array([100.0, 2.0, 2.0, 2.0, 2.0, 2.0, 12.0]),
        "adapted": np.array([False] * 6 + [True]),
        "images": np.full(7, 20),
    }
    facts = {"trial_s": 4.0, "compile_s": 0.5, "device_held_mib": None}
    return TrialResult("key", "ok", facts=facts, batches=batches | changed, environment={"device": device},
                       images={"predicted": np.arange(140)})  # fmt: skip


def test_speed_is_that_of_typical_batches_after_the_warm_up() -> None:
    found = measured(finished(), warmup=3)
    assert found.images_per_s == pytest.approx(20 / ((3 * 10 + 40) / 4) * 1e3)
    assert found.image_s == pytest.approx((3 * 12 + 52) / 4 / 20 / 1e3), "a CPU waits, and then computes"
    assert measured(finished("cuda"), warmup=3).image_s == pytest.approx((3 * 10 + 40) / 4 / 20 / 1e3)
    slow = finished("cuda", data_ms=np.full(7, 80.0))
    assert measured(slow, warmup=3).image_s == pytest.approx(80 / 20 / 1e3), "a GPU that is kept waiting"
    assert found.start_s == pytest.approx(4.0 - 1.040 - 0.122)
    assert found.first_s == pytest.approx(found.start_s + 0.5)


def test_agreement_is_the_share_of_equal_classes() -> None:
    assert agreement_pct(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0])) == 75.0


def test_modes_are_the_reference_then_the_suites_then_faster_ones() -> None:
    assert measuring.compared_modes([Mode()], compiles=True) == [Mode(), Mode("tf32"), BF16, COMPILED]
    assert measuring.compared_modes([Mode("float64"), COMPILED], compiles=False) == [
        Mode(), Mode("float64"), COMPILED, Mode("tf32"), BF16,
    ]  # fmt: skip
    own = Mode(deterministic=False)
    assert measuring.compared_modes([own], compiles=False) == [
        Mode(), own, Mode("tf32", "off", False), Mode("bfloat16", "off", False),
    ]  # fmt: skip


# -- measuring trials --------------------------------------------------------------------------------------------------


def jobs(made: Plan, *modes: Mode) -> list[measuring.MeasuringTrial]:
    return list(measuring.measurings(made.materials, made.trials, modes, made.trials[-1].stream.shifts[-1], Digests()))


def test_a_row_runs_the_same_batches_in_each_mode_whatever_its_trials(suite_file: SuiteFile) -> None:
    made = planned(suite_file(), "seeds=[0, 1]", "batch_size=20")
    found = jobs(made, Mode(), BF16)
    assert [(job.row.text, job.trial.mode.text) for job in found] == [
        ("source, resnet_bn, batch 20", "float32"), ("source, resnet_bn, batch 20", "bfloat16"),
        ("tent, resnet_bn, batch 20", "float32"), ("tent, resnet_bn, batch 20", "bfloat16"),
    ]  # fmt: skip
    assert len({job.trial.asked["stream"] for job in found}) == 1
    assert len({job.trial.key for job in found}) == 4
    assert {job.trial.stream.length for job in found} == {300}, "100 images three times, for eleven batches of 20"
    assert not {trial.key for trial in made.trials} & {job.trial.key for job in found}


def test_a_window_is_measured_over_two_of_its_lengths(suite_file: SuiteFile) -> None:
    file = suite_file(("batch_size: 40", "protocol: {kind: continual, window: 16, reset: batch}\nbatch_size: 1"))
    [job, *_] = jobs(planned(file), Mode())
    stream = job.materials.streams().build(job.trial.model, job.trial.stream)
    assert job.row.text == "source, resnet_bn, batch 1, window 16, reset batch"
    assert job.warmup == 16
    assert np.diff(stream.bounds)[job.warmup :].tolist() == [16] * 16
    assert stream.adapt[job.warmup :].sum() == 1
    assert stream.reset_before[1:].all()


# -- --dry-run --measure -----------------------------------------------------------------------------------------------


def test_the_table_compares_modes_and_nothing_is_stored(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_this_process(monkeypatch, tmp_path)
    (tmp_path / "methods.py").write_text(METHODS)
    file = suite_file(
        ("[source, tent]", "[tent, unfit, fragile]"), ("name: small", "name: small\nplugins: [methods.py]")
    )
    outcome = run_cli("run", file, "--executor", "local", "--dry-run", "--measure")
    assert outcome.code == 3, "a row of the suite failed"
    assert "measuring 3 rows in 3 modes: float32; tf32; bfloat16" in outcome.err
    head, *lines = outcome.out.splitlines()
    assert head.split() == ["mode", "images/s", "compile", "memory", "agreement", "suite"]
    rows = [re.split(r"  +", line.strip()) for line in lines[:5]]
    assert [row[:-5] for row in rows[:3]] == [["tent, resnet_bn, batch 40", "float32"], ["tf32"], ["bfloat16"]]
    assert [row[-3] for row in rows[:3]] == ["–"] * 3, "no memory on a CPU"
    agreement = [float(row[-2].removesuffix(" %")) for row in rows[:3]]
    assert agreement[0] == 100.0
    assert 50 < agreement[2] <= 100
    assert rows[3] == ["unfit, resnet_bn, batch 40", "all", "skipped: the model has no class token"]
    assert rows[4] == ["fragile, resnet_bn, batch 40", "all", "failed: ValueError: it is broken"]
    assert lines[6] == "suite: its 6 trials in one mode take about, on this machine, 1 at a time:"
    assert re.fullmatch(r"  float32: \d+ s; without 1 row that failed", lines[7])
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "methods.py"}


def test_what_is_measured_must_not_look_like_a_run(run_cli: Cli, suite_file: SuiteFile) -> None:
    outcome = run_cli("run", suite_file(), "--executor", "local", "--measure")
    assert outcome.code == 2
    assert "--measure needs --dry-run" in outcome.err
    assert "hint: give both: the suite is measured instead of run" in outcome.err


def test_a_row_whose_process_ends_costs_no_other_its_numbers(
    suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_alone(materials: Any, trial: Any, options: Any) -> TrialResult:
        if trial.mode == BF16:
            raise Stopped(Problem("worker process 7 ended unexpectedly"))
        return replace(finished(), key=trial.key)

    monkeypatch.setattr(command.local, "run_alone", run_alone)
    made, said = planned(suite_file(("[source, tent]", "[source]"))), list[str]()
    assert subject(made, said).compare(made.trials) == 0, "bfloat16 is no mode of the suite"
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split(maxsplit=1) == ["bfloat16", "failed: worker process 7 ended unexpectedly"]
    assert lines[2].split()[:2] == ["tf32", "1,143"]
    assert said[-1] == "  source, resnet_bn, batch 40, bfloat16: failed: worker process 7 ended unexpectedly"


def test_the_sum_is_over_rows_in_each_mode(suite_file: SuiteFile) -> None:
    rows = measuring.by_row(planned(suite_file()).trials)
    source, tent = rows
    slow = Measured(100.0, 0.5, 10.0, 0.0, 20_000.0, np.array([1, 2, 3, 4]))
    fast = Measured(2000.0, 0.05, 10.0, 20.0, 3_000.0, np.array([1, 2, 3, 5]))
    outcomes = {source: {Mode(): slow, COMPILED: fast}, tent: {Mode(): slow, COMPILED: "failed: why"}}
    assert (
        Comparison(rows, outcomes, 2, H100).text()
        == """\
                             mode                images/s  compile      memory  agreement  suite
source, resnet_bn, batch 40  float32                  100        –  20,000 MiB    100.0 %   60 s
                             bfloat16, compiled     2,000     20 s   3,000 MiB     75.0 %   35 s
tent, resnet_bn, batch 40    float32                  100        –  20,000 MiB    100.0 %   60 s
                             bfloat16, compiled  failed: why

suite: its 4 trials in one mode take about, on this machine, 2 at a time:
  float32: 2 min; --gpus-per-trial auto would be 0.3027, 3 trials on a GPU
  bfloat16, compiled: 35 s; without 1 row that failed; --gpus-per-trial auto would be 0.25, 4 trials on a GPU"""
    )


# -- --gpus-per-trial auto ---------------------------------------------------------------------------------------------


def subject(made: Plan, said: list[str], **options: Any) -> Measuring:
    asked = RunOptions("small.yaml", gpus_per_trial="auto", cpus_per_trial=1, **options)
    return Measuring(made.materials, made.trials[-1].stream.shifts[-1], Digests(), asked, said.append)


@pytest.fixture
def on_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Callable[[float], None]:
    """Let this machine have the memory of an H100, of which a trial holds so much; trials run on the CPU."""
    fork_this_process(monkeypatch, tmp_path)
    monkeypatch.setattr(command, "card", lambda: H100)
    return lambda held_mib: monkeypatch.setattr("tta_bench.run.child.held_memory_mib", lambda device: held_mib)


def is_free(out: pathlib.Path) -> bool:
    """Whether no process holds a run's lock: a trial forked from this process has it until it has ended."""
    try:
        with rundir.locked(out):
            return True
    except UsageError:
        return False


def test_memory_is_measured_once_and_sets_the_share(
    suite_file: SuiteFile, tmp_path: pathlib.Path, on_h100: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, out = planned(suite_file()), list[str](), tmp_path / "out"
    assert subject(made, said, dry_run=True).packed(made.trials, out).gpus_per_trial == 1.0
    assert said == ["--gpus-per-trial auto: memory of 2 rows to measure first; until then a whole GPU each"]
    assert not out.exists()
    on_h100(25_000.0)
    options = subject(made, said).packed(made.trials, out)
    assert options.gpus_per_trial == 0.3767
    assert said[1] == "preparing memory-source-resnet_bn"
    assert said[-1] == (
        "--gpus-per-trial auto: 0.3767, 2 trials on a GPU: source, resnet_bn, batch 40, float32 held 25,000 of the "
        "81,000 MiB of NVIDIA H100"
    )
    files = sorted((out / "prepared").glob("memory-*.json"))
    assert [json.loads(file.read_text())["held_mib"] for file in files] == [25_000.0] * 2
    assert not (out / "trials").exists()

    on_h100(1.0)
    said.clear()
    assert subject(made, said).packed(made.trials, out).gpus_per_trial == 0.3767
    assert not any("preparing" in line for line in said), "a resumed run does not measure again"
    files[0].write_text("{")
    wait_until(lambda: is_free(out))
    assert subject(made, said).packed(made.trials, out).gpus_per_trial == 0.3767
    assert said.count("preparing memory-source-resnet_bn") == 1, "a damaged file is measured again"
    monkeypatch.setattr(command, "card", lambda: Card("NVIDIA A100", 40_000.0))
    wait_until(lambda: is_free(out))
    assert subject(made, said).packed(made.trials, out).gpus_per_trial == 0.25, "on another GPU it is"


def test_workers_get_the_share(run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measuring, "_share", lambda *_: 0.5)
    monkeypatch.setattr("tta_bench.schedule.scheduler.torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("tta_bench.schedule.scheduler.available_cpus", lambda: 16)
    outcome = run_cli("run", suite_file(), "--gpus-per-trial", "auto", "--dry-run")
    assert "4 trials on 4 Ray workers of 0.5 GPU each, on this machine" in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "this machine has no GPU to measure on; trials share its CPU cores as ever"),
     (("--executor", "local"), "with --executor local one trial at a time has the whole device")],
)  # fmt: skip
def test_without_a_gpu_to_share_it_says_so(
    run_cli: Cli, suite_file: SuiteFile, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    outcome = run_cli("run", suite_file(), "--gpus-per-trial", "auto", "--dry-run", *options)
    assert outcome.code == 0
    assert f"--gpus-per-trial auto: {message}" in outcome.err
    assert run_cli("run", suite_file(), "--gpus-per-trial", "most", "--dry-run").code == 2


def test_the_row_that_holds_most_decides_and_one_that_may_hold_more_needs_all() -> None:
    held = command.Held
    small, large = held("tent", 1_000.0), held("sar", 25_000.0)
    skipped, broken = held("norm", None, "no batch norm"), held("mine", None, "ValueError", "method")
    share, why = command.chosen_share([small, skipped, large, broken], H100)
    assert (share, why) == (0.3767, "sar held 25,000 of the 81,000 MiB of NVIDIA H100")
    too_large = held("memo", None, "CUDA out of memory", "memory")
    assert command.chosen_share([small, too_large], H100) == (1.0, "that of memo is not known: CUDA out of memory")
    assert command.chosen_share([skipped], H100) == (1.0, "no row was measured")
