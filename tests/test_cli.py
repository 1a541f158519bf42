"""The command line: exit codes, resuming, failures in sight, what it prints where."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import LONG_S, Outcome, clean_environment, wait_until
from runs import result_rows

from tta_bench.store import results, schema
from tta_bench.suite import plan

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

FLAKY = """\
import pathlib
from tta_bench.adapter import Adapter, Config

class Flaky(Adapter):
    name = "flaky"
    class Config(Config):
        fixed: str
    def step(self, x):
        if not pathlib.Path(self.config.fixed).exists():
            raise RuntimeError("not [fixed] yet")
        return self.predict(x)
"""


def local(run_cli: Cli, *arguments: object) -> Outcome:
    return run_cli("run", *arguments, "--executor", "local", "--cpus-per-trial", 1)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tta_bench.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pandas', 'matplotlib', 'pydantic', 'timm', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=False).returncode == 0


def test_a_run_writes_tables_with_units_and_provenance(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    outcome = local(run_cli, suite_file())
    out = tmp_path / "results" / "small"
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{out}\n", "the run's folder is all of stdout"
    assert "[4/4] ok" in outcome.err
    assert "\x1b" not in outcome.err, "no colours where there is no terminal"
    tables = {name: pd.read_parquet(out / f"{name}.parquet") for name in schema.TABLES}
    for name, table in tables.items():
        assert list(table) == [column.name for column in schema.TABLES[name]]
        assert list(pd.read_csv(out / f"{name}.csv")) == list(table)
    shifts, batches = tables["shifts"], tables["batches"]
    assert shifts["label"].tolist() == ["source", "source", "tent", "tent"], "rows in plan order"
    assert len(batches) == 4 * 3
    last = batches.groupby("key", sort=False)["running_error_pct"].last()
    assert last.tolist() == pytest.approx(shifts["error_pct"].tolist()), "the online curve ends at the row's error"
    [session] = json.loads((out / "run.json").read_text())["sessions"]
    assert session["command"][:2] == ["tta-bench", "run"]
    assert {"torch", "timm", "ray", "numpy"} <= set(session["packages"])
    assert session["suite"]["methods"][1]["name"] == "tent"


def test_a_failing_method_stops_no_other_and_is_run_again_on_request(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    methods = f"[source, {{name: flaky, config: {{fixed: {tmp_path}/fixed}}}}, tent]"
    file = suite_file(("[source, tent]", methods), ("name: small", "name: small\nplugins: [flaky.py]"))
    first = local(run_cli, file, "--out", "out")
    assert first.code == 3
    assert "failed 2 times: RuntimeError: not [fixed] yet" in first.err
    segments = results.load(pathlib.Path("out")).segments
    assert segments["status"].tolist() == ["ok", "ok", "failed", "failed", "ok", "ok"]
    record = json.loads((tmp_path / "out" / "trials" / f"{segments['key'][2]}.json").read_text())
    assert 'raise RuntimeError("not [fixed] yet")' in record["traceback"]
    (tmp_path / "fixed").touch()
    assert local(run_cli, file, "--out", "out").code == 3, "a method's own failure is kept"
    assert local(run_cli, file, "--out", "out", "--retry-failed").code == 0
    assert set(results.load(pathlib.Path("out")).segments["status"]) == {"ok"}


def test_only_runs_a_part_and_the_rest_is_missing_not_absent(run_cli: Cli, suite_file: SuiteFile) -> None:
    assert local(run_cli, suite_file(), "--out", "out", "--only", "method=source").code == 0
    loaded = results.load(pathlib.Path("out"))
    assert loaded.segments["status"].tolist() == ["ok", "ok", "missing", "missing"]
    assert loaded.counts == {"ok": 2, "missing": 2}


def test_a_changed_suite_leaves_stale_trials_out(run_cli: Cli, suite_file: SuiteFile) -> None:
    local(run_cli, suite_file(), "--out", "out")
    outcome = local(run_cli, suite_file(("[source, tent]", "[{name: tent, config: {lr: 0.1}}]")), "--out", "out")
    assert "4 stale trial files ignored" in outcome.err
    assert set(results.load(pathlib.Path("out")).segments["label"]) == {"tent"}


def test_trials_that_a_plan_leaves_out_are_told_before_anything_runs(run_cli: Cli, suite_file: SuiteFile) -> None:
    local(run_cli, suite_file(), "--out", "out")
    outcome = local(run_cli, suite_file(), "--set", "methods=[tent]", "--set", "seeds=[1]", "--out", "out", "--dry-run")
    assert (
        f"4 trials in {pathlib.Path('out').absolute()} are of another plan: tables will leave them out" in outcome.err
    )
    assert results.load(pathlib.Path("out")).counts == {"ok": 4}


def folder_of(outcome: Outcome) -> str:
    """The name of the folder that a run says it writes to, and what it says of it."""
    [line] = [line for line in outcome.err.splitlines() if line.startswith("  results in ")]
    assert outcome.code == 0, outcome.err
    return line.rpartition("results/")[2]


def test_overrides_and_plugin_files_have_a_folder_of_their_own(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    """The rows of the suite as it is stay in its tables; the same command finds its folder again."""
    (tmp_path / "flaky.py").write_text(FLAKY)
    one = ("--set", "methods=[source]", "--plugin", "flaky.py")
    assert local(run_cli, suite_file()).out.strip() == str(tmp_path / "results" / "small")
    own = pathlib.Path(local(run_cli, suite_file(), *one).out.strip())
    assert re.fullmatch(r"small-flaky-methods-[0-9a-f]{6}", own.name)
    again = local(run_cli, suite_file(), *one, "--only", "method=source")
    assert (again.out.strip(), "2 finished, 0 to run" in again.err) == (str(own), True)
    assert [results.load(tmp_path / "results" / name).counts for name in ("small", own.name)] == [{"ok": 4}, {"ok": 2}]
    assert f"newest run: results/{own.name}" in run_cli("report", "--format", "md").err


@pytest.mark.parametrize(
    ("options", "folder"),
    [([], r"small"), (["--set", "cache=off"], r"small"), (["--set", "name=mine"], r"mine"),
     (["--plugin", "flaky.py"], r"small-flaky-\w{6}"), (["--limit", "40", "--set", "seeds=[1]"], r"small-limit40-seeds-\w{6}"),
     (["--set", "name=mine", "--set", "data.max_images=40"], r"mine-data.max_images-\w{6}")],
)  # fmt: skip
def test_the_folders_name_tells_what_was_changed(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, options: list[str], folder: str
) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    told = ", the folder of these --set and --plugin" if "-" in folder else ""
    assert re.fullmatch(folder + told, folder_of(local(run_cli, suite_file(), *options, "--dry-run")))


def test_other_values_have_other_folders(run_cli: Cli, suite_file: SuiteFile) -> None:
    folders = {folder_of(local(run_cli, suite_file(), "--set", f"seeds=[{n}]", "--dry-run")) for n in (1, 1, 2)}
    assert len(folders) == 2


def test_two_rows_that_ask_for_the_same_share_one_trial(run_cli: Cli, suite_file: SuiteFile) -> None:
    file = suite_file(("[source, tent]", "[source, {name: source, label: again}]"))
    assert "2 trials" in local(run_cli, file, "--out", "out").err
    shifts = results.load(pathlib.Path("out")).shifts
    assert shifts["label"].tolist() == ["source", "source", "again", "again"]
    assert shifts["error_pct"][0] == shifts["error_pct"][2]


def test_limit_is_in_the_folders_name(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    assert local(run_cli, suite_file(), "--limit", 30).out.strip() == str(tmp_path / "results" / "small-limit30")
    loaded = results.load(tmp_path / "results" / "small-limit30")
    assert set(loaded.shifts["images"]) == {30}
    assert not loaded.plan["all_images"]


UNEVEN = """
from tta_bench.data.kinds.digits import Digits

class Uneven(Digits):
    "Digits, of which fewer are clean."
    name = "uneven"

    def labels_of(self, shift):
        return self.labels[:40 if shift.name == "clean" else 60]
"""


@pytest.mark.parametrize(("kind", "counts"), [("reset", [40, 50]), ("continual", [50]), ("mixed", [50])])
def test_a_part_of_the_images_is_no_result_where_the_first_shift_is_whole(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, kind: str, counts: list[int]
) -> None:
    """40 clean images and 60 others, of which 50 are used."""
    (tmp_path / "uneven.py").write_text(UNEVEN)
    file = suite_file(("{kind: digits, max_images: 100}", "{kind: uneven}"), ("[source, tent]", "[source]"),
                      ("batch_size: 40", f"batch_size: 40\nprotocol: {{kind: {kind}}}"),
                      ("name: small", "name: small\nplugins: [uneven.py]"))  # fmt: skip
    outcome = local(run_cli, file, "--limit", 50, "--out", "out")
    assert (outcome.code, f"{' or '.join(map(str, counts))} images per shift" in outcome.err) == (0, True), outcome.err
    report = run_cli("report", "out", "--format", "md")
    assert "SUBSET OF THE IMAGES, NOT A RESULT" in report.out, report.err
    loaded = results.load(tmp_path / "out")
    assert (loaded.plan["all_images"], sorted({t["images"] for t in loaded.plan["trials"]})) == (False, counts)
    assert sorted(loaded.shifts["images"]) == [40, 50]
    shutil.copytree("out", "copy")
    merged = run_cli("merge", "out", "copy", "--suite", file, "--out", "merged")
    assert merged.code == 0, merged.err
    assert set(results.load(tmp_path / "merged").segments["status"]) == {"ok"}
    assert local(run_cli, file, "--limit", 60, "--out", "all").code == 0
    assert results.load(tmp_path / "all").plan["all_images"]


def test_dry_run_writes_nothing(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    outcome = local(run_cli, suite_file(), "--dry-run", "--cache", tmp_path / "cache")
    assert outcome.code == 0
    assert "4 to run" in outcome.err
    assert "2 shifts to build" in outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.yaml"]


@pytest.mark.parametrize("option", ["--out", "--cache"])
@pytest.mark.parametrize(
    ("place", "reason"), [("/proc/x", "No such file"), ("file/x", "Not a directory"), ("x" * 300, "too long")]
)
def test_a_dry_run_tries_the_places_that_a_run_writes(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, option: str, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    outcome = local(run_cli, suite_file(), "--dry-run", option, place)
    assert outcome.code == 2
    assert f"{place}: the {'run' if option == '--out' else 'image'}" in outcome.err
    assert f"cannot be written: {reason}" in outcome.err or f"cannot be written: File name {reason}" in outcome.err
    assert f"with {option} DIR" in outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "small.yaml"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nowhere", "", "auto"])
def test_a_dry_run_asks_the_cluster(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    outcome = run_cli("run", suite_file(), "--dry-run", "--address", address)
    assert outcome.code == 2
    assert "--address" in outcome.err
    assert "1 problem; nothing was run" in outcome.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--gpus-per-trial", "nan"), ("--gpus-per-trial", "inf"), ("--gpus-per-trial", "1.5"), ("--gpus-per-trial", "0"),
     ("--timeout", "nan"), ("--timeout", "inf"), ("--timeout", "1e300"), ("--timeout", "0")],
)  # fmt: skip
def test_a_number_that_no_trial_can_have_is_refused(
    run_cli: Cli, suite_file: SuiteFile, option: str, value: str
) -> None:
    outcome = run_cli("run", suite_file(), "--dry-run", option, value)
    assert outcome.code == 2
    assert option in outcome.err


def test_a_very_large_plan_has_to_be_confirmed(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "more than 10,000 trials" in run_cli("run", "--help").out
    assert plan.MOST_TRIALS == 10_000
    monkeypatch.setattr(plan, "MOST_TRIALS", 3)
    refused = local(run_cli, suite_file(), "--dry-run")
    assert refused.code == 2
    assert "more than 3 trials" in refused.err
    assert "--yes" in refused.err
    assert local(run_cli, suite_file(), "--dry-run", "--yes").code == 0


def test_without_a_cache_the_numbers_are_the_same(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    local(run_cli, suite_file(), "--out", "on")
    local(run_cli, suite_file(), "--out", "off", "--cache", "off")
    tables = [result_rows(pathlib.Path(name)) for name in ("on", "off")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_cache_that_does_not_fit_stops_the_run(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    outcome = local(run_cli, suite_file(), "--cache", tmp_path / "cache")
    assert outcome.code == 2
    assert "0.00 GiB are free" in outcome.err
    assert "--cache off" in outcome.err


def test_a_second_run_on_a_folder_is_refused_by_name(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, pathlib; from tta_bench.store.rundir import locked\n"
         "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()", str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        outcome = local(run_cli, suite_file(), "--out", "out")
        assert outcome.code == 2
        assert f"the run is in use by process {holder.pid} on " in outcome.err
    finally:
        holder.kill()
        holder.wait()
    assert local(run_cli, suite_file(), "--out", "out").code == 0, "the lock dies with its process"


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_finished_and_prints_how_to_go_on(
    suite_file: SuiteFile, tmp_path: pathlib.Path, cache: pathlib.Path, run_cli: Cli, number: signal.Signals
) -> None:
    """To the whole group, as a terminal and a scheduler send it."""
    (tmp_path / "slow.py").write_text(FLAKY.replace("if not", "import time; time.sleep(1)\n        if not"))
    (tmp_path / "fixed").touch()
    methods = f"[source, {{name: flaky, config: {{fixed: {tmp_path}/fixed}}}}]"
    file = suite_file(("[source, tent]", methods), ("name: small", "name: small\nplugins: [slow.py]"))
    command = [sys.executable, "-m", "tta_bench", "run", str(file), "--executor", "local", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               start_new_session=True, env=clean_environment(TTA_BENCH_CACHE=str(cache)))  # fmt: skip
    wait_until(lambda: len(list((tmp_path / "out" / "trials").glob("*.json"))) >= 2, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert f"tta-bench run {file} --executor local --out out" in err.decode()
    assert "Traceback" not in err.decode()
    outcome = local(run_cli, file, "--out", "out")
    assert "2 finished, 2 to run" in outcome.err
    assert outcome.code == 0


def test_a_preset_that_a_method_lacks_is_said_at_the_start_and_in_its_rows(
    run_cli: Cli, suite_file: Callable[..., pathlib.Path]
) -> None:
    changes = (
        ("stem: cifar", "stem: cifar\n    preset: cifar10"),
        ("[source, tent]", "[source, norm, tent, {name: norm, label: n2}]"),
    )
    file = suite_file(*changes, ("[clean, contrast]", "[contrast]"))
    said = "  norm has no preset 'cifar10' for model 'resnet_bn': its defaults are used"
    for more in (["--dry-run"], ["--out", "out", "--only", "method=norm"]):
        lines = run_cli("run", file, "--executor", "local", *more).err.splitlines()
        assert [line for line in lines if "no preset" in line] == [said], (
            "once, and not of source, which has nothing to set"
        )
    rows = results.load(pathlib.Path("out")).segments.set_index("label")
    assert rows["preset_missing"].to_dict() == {"source": "", "norm": "cifar10", "tent": "", "n2": "cifar10"}
    assert rows["preset"].to_dict() == {"source": "", "norm": "", "tent": "cifar10", "n2": ""}


def test_methods_lists_origin_needs_and_hyperparameters(run_cli: Cli) -> None:
    listed = run_cli("methods").out
    assert all(name in listed for name in ("source", "norm", "tent", "tta-bench 0.1.0", "batch norm"))
    shown = run_cli("methods", "tent").out
    for part in ("arXiv 2006.10726", "lr", "0.00025", "imagenet_vit_b16", "0.001", "Tent's code", "backward"):
        assert part in shown
    pathlib.Path("needy.py").write_text(
        "from tta_bench.adapter import Adapter, Needs\nclass Needy(Adapter):\n    name = 'needy'\n"
        "    needs = Needs(class_token=True, linear_head=True, packages=('peft', 'clip'))\n    def step(self, x): return x\n"
    )
    needy = run_cli("methods", "needy", "--plugin", "needy.py").out
    assert "class token, linear head, package peft, package clip" in needy
    wrong = run_cli("methods", "tnet")
    assert wrong.code == 2
    assert "did you mean 'tent'?" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["run", "digit_c"], "no such suite: digit_c"), (["report", "nowhere"], "not a run"), (["report"], "no run in results/"),
     (["run", "digits_c", "--set", "seeds"], "not of the form key=value"), (["run", "digits_c", "--limit", "x"], "'x'")],
)  # fmt: skip
def test_usage_errors_exit_2(run_cli: Cli, arguments: list[str], message: str) -> None:
    outcome = run_cli(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
