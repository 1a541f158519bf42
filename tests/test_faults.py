"""Real faults: for each, what docs/cluster.md says is done. See also test_scheduler.py (kills) and test_cluster.py (nodes)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from conftest import LONG_S, Outcome, clean_environment, wait_until
from runs import result_rows
from test_scheduler import descendants, same

from tta_bench.run.faults import Fault, next_action
from tta_bench.store import results

pytestmark = pytest.mark.faults
Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

PLUGIN = '''\
import os, pathlib, time
import torch
from tta_bench.adapter import Adapter, Config as Base

class Config(Base):
    folder: str

class Marks(Adapter):
    name = "marks"
    Config = Config

    def mark(self, text):
        with open(pathlib.Path(self.config.folder) / "marks", "a") as stream:
            stream.write(f"{self.name} {text} {os.getpid()} {time.monotonic()}\\n")

    def marked(self):
        file = pathlib.Path(self.config.folder) / "marks"
        return sum(line.startswith(self.name + " ") for line in file.read_text().splitlines()) if file.exists() else 0

    def step(self, x):
        self.mark("step")
        time.sleep(0.2)
        self.mark("done")
        return self.predict(x)

class Raises(Marks):
    name = "raises"
    def step(self, x):
        print("about to raise")
        raise ZeroDivisionError("a method's own error")

class Nan(Marks):
    name = "nan"
    def step(self, x):
        return self.predict(x) * float("nan")

class Hangs(Marks):
    name = "hangs"
    def step(self, x):
        self.mark("hangs")
        print("about to hang", flush=True)
        while True:
            pass

class Greedy(Marks):
    name = "greedy"
    def step(self, x):
        self.mark("begin")
        torch.empty(1 << 52, dtype=torch.uint8)

class GreedyOnce(Marks):
    name = "greedy_once"
    def step(self, x):
        if not self.marked():
            self.mark("begin")
            torch.empty(1 << 52, dtype=torch.uint8)
        self.mark("step")
        time.sleep(0.3)
        self.mark("done")
        return self.predict(x)

# what torch said on an H100 after an index past a tensor's end
CUDA_ERROR = """CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""

class Ruins(Marks):
    name = "ruins"
    def step(self, x):
        self.mark("ruins")
        if torch.cuda.is_available():  # then as it happens
            torch.zeros(1, device="cuda")[torch.tensor([9], device="cuda")]
            torch.cuda.synchronize()
        raise getattr(torch, "AcceleratorError", RuntimeError)(CUDA_ERROR)  # the class is of torch 2.8

class Deletes(Marks):
    name = "deletes"
    def step(self, x):
        for file in pathlib.Path(self.config.folder).glob("data/*/*.png"):
            file.rename(file.with_suffix(".gone"))
        return self.predict(x)
'''


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "faulty.py"
    path.write_text(PLUGIN)
    return path


def methods(folder: pathlib.Path, *names: str) -> str:
    return "[source, " + ", ".join(f"{{name: {n}, config: {{folder: {folder}}}}}" for n in names) + "]"


def rows(run: pathlib.Path) -> pd.DataFrame:
    return results.load(run).segments.set_index("label")


def test_faults_of_methods_are_rows_and_stop_nothing_else(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, plugin: pathlib.Path
) -> None:
    names = ("marks", "raises", "nan", "hangs", "greedy", "greedy_once")
    file = suite_file(("[source, tent]", methods(tmp_path, *names)), ("[clean, contrast]", "[contrast]"))
    out = tmp_path / "out"
    outcome = run_cli("run", file, "--plugin", plugin, "--workers", 2, "--timeout", 30, "--out", out)
    assert outcome.code == 3, outcome.err
    found = rows(out)
    assert found["status"].to_dict() == {
        "source": "ok", "marks": "ok", "greedy_once": "ok",
        "raises": "failed", "nan": "failed", "hangs": "failed", "greedy": "failed",
    }  # fmt: skip
    assert found["attempts"].to_dict() == {
        "source": 1, "marks": 1, "greedy_once": 2, "raises": 1, "nan": 1, "hangs": 1, "greedy": 2,
    }  # fmt: skip
    errors = results.load(out).shifts.set_index("label")["error_pct"]
    assert errors["greedy_once"] == errors["source"]
    assert found.loc["raises", "reason"] == "ZeroDivisionError: a method's own error"
    assert "not finite" in found.loc["nan", "reason"]
    assert found.loc["hangs", "reason"] == "no result after 30 s (--timeout)"
    assert found.loc["greedy", "reason"].startswith(
        "out of memory, even with exclusive use of the device: RuntimeError"
    )
    log = {label: (out / path).read_text() for label, path in found["log"].items()}
    assert "about to raise" in log["raises"]
    assert "ZeroDivisionError" in log["raises"]
    assert "about to hang" in log["hangs"]
    assert "attempt before: memory" in log["greedy_once"]
    alone_from, alone_to, hung = _alone(tmp_path / "marks")
    others = [t for name, t in _marks(tmp_path / "marks") if name not in ("greedy_once", "greedy")]
    assert not [t for t in others if alone_from < t < alone_to], "its second attempt had the machine to itself"
    assert not pathlib.Path(f"/proc/{hung}").exists(), "the hanging process was ended"
    again = run_cli("run", file, "--plugin", plugin, "--workers", 1, "--timeout", 30, "--out", out)
    assert "7 finished, 0 to run" in again.err, "a method's own fault is run again only with --retry-failed"


def _marks(file: pathlib.Path) -> list[tuple[str, float]]:
    split = [line.split() for line in file.read_text().splitlines()]
    return [(name, float(when)) for name, _, _, when in split]


def _alone(file: pathlib.Path) -> tuple[float, float, int]:
    """(first, last) moment of the successful attempt of greedy_once, and the process that hung."""
    split = [line.split() for line in file.read_text().splitlines()]
    mine = [float(when) for name, what, _, when in split if name == "greedy_once" and what != "begin"]
    return min(mine), max(mine), next(int(pid) for name, _, pid, _ in split if name == "hangs")


def test_the_action_after_each_kind_of_fault() -> None:
    lost, memory = Fault("infrastructure", ""), Fault("memory", "")
    assert next_action([lost]) == next_action([lost, lost]) == "retry"
    assert next_action([lost] * 3) == "fail"
    assert next_action([lost], retries=0) == "fail"
    assert next_action([memory]) == "retry_exclusive"
    assert next_action([lost, memory]) == "retry_exclusive"
    assert next_action([memory, lost]) == "retry_exclusive", "a lost worker does not end exclusive use"
    assert next_action([memory, memory]) == "fail"
    assert next_action([Fault("timeout", "")]) == next_action([Fault("method", "")]) == "fail"


def test_a_cuda_error_ends_its_worker_and_no_other_trial(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, plugin: pathlib.Path
) -> None:
    file = suite_file(("[source, tent]", methods(tmp_path, "ruins", "marks").replace("source, ", "")),
                      ("[clean, contrast]", "[contrast]"))  # fmt: skip
    out = tmp_path / "out"
    outcome = run_cli("run", file, "--plugin", plugin, "--workers", 1, "--out", out)
    assert outcome.code == 3, outcome.err
    found = rows(out)
    assert found["status"].to_dict() == {"ruins": "failed", "marks": "ok"}
    assert found["attempts"].to_dict() == {"ruins": 1, "marks": 1}
    assert "CUDA error: device-side assert triggered" in found.loc["ruins", "reason"]
    split = [line.split() for line in (tmp_path / "marks").read_text().splitlines()]
    assert split[0][:2] == ["ruins", "ruins"], "it came first, or there would be nothing to see"
    ruined, *later = [int(pid) for _, _, pid, _ in split]
    assert later
    assert ruined not in later, "the only worker was replaced"
    assert not pathlib.Path(f"/proc/{ruined}").exists()
    again = run_cli("run", file, "--plugin", plugin, "--workers", 1, "--out", out)
    assert "2 finished, 0 to run" in again.err, "it is the method's own fault: run again only with --retry-failed"


def test_a_cuda_error_ends_no_other_trial_without_ray(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, plugin: pathlib.Path
) -> None:
    file = suite_file(("[source, tent]", methods(tmp_path, "ruins", "marks")), ("[clean, contrast]", "[contrast]"))
    outcome = run_cli("run", file, "--plugin", plugin, "--executor", "local", "--out", tmp_path / "out")
    assert outcome.code == 3
    assert rows(tmp_path / "out")["status"].to_dict() == {"source": "ok", "ruins": "failed", "marks": "ok"}
    assert len({line.split()[2] for line in (tmp_path / "marks").read_text().splitlines()}) == 2, "two processes"


@pytest.fixture
def images(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(digit_folder, tmp_path / "data")
    return tmp_path / "data"


def test_a_data_file_deleted_during_a_run(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, plugin: pathlib.Path, images: pathlib.Path
) -> None:
    data = f'data: {{kind: folder, root: "{images}", preprocess: none, strengths: cifar}}'
    file = suite_file(("data: {kind: digits, max_images: 100}", data), ("[clean, contrast]", "[contrast]"),
                      ("[source, tent]", f"[{{name: deletes, config: {{folder: {tmp_path}}}}}, source]"),
                      ("batch_size: 40", "batch_size: 30"))  # fmt: skip
    out = tmp_path / "out"
    options = ("--plugin", plugin, "--workers", 1, "--cache", "off", "--out", out)
    outcome = run_cli("run", file, *options)
    assert outcome.code == 3, outcome.err
    found = rows(out)
    assert found.loc["deletes", "status"] == "ok"
    assert found.loc["source", "status"] == "failed"
    assert found.loc["source", "attempts"] == 3
    assert "3 attempts failed" in found.loc["source", "reason"]
    assert str(images) in found.loc["source", "reason"]
    assert "data" in outcome.err, "the machine is checked again and what it lacks is said"
    for gone in images.glob("*/*.gone"):
        gone.rename(gone.with_suffix(".png"))
    assert run_cli("run", file, *options).code == 0, "it is run again without being asked for"
    assert rows(out).loc["source", "status"] == "ok"


def test_a_cache_entry_damaged_before_or_during_a_run_is_made_again(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    own = tmp_path / "own"
    options = ("--executor", "local", "--cpus-per-trial", 1, "--cache", own)
    assert run_cli("run", suite_file(), *options, "--out", tmp_path / "sound").code == 0

    def damage() -> None:
        for file in own.glob("*/images.npy"):
            pixels = np.load(file, mmap_mode="r+")
            pixels[:, 5:20] ^= 0xFF
            pixels.flush()

    damage()
    assert run_cli("run", suite_file(), *options, "--out", tmp_path / "before").code == 0
    same(tmp_path / "before", tmp_path / "sound")

    from tta_bench.schedule import scheduler

    with pytest.MonkeyPatch.context() as patch:  # after the run has looked at the cache, before a trial does
        real = scheduler.run
        patch.setattr(scheduler, "run", lambda *arguments: (damage(), real(*arguments)))
        assert run_cli("run", suite_file(), *options, "--out", tmp_path / "during").code == 0
    same(tmp_path / "during", tmp_path / "sound")


def test_the_loss_of_the_local_ray_stops_the_run_with_the_command_to_go_on(
    suite_file: SuiteFile, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    file = suite_file(("seeds: [0]", "seeds: [0, 1, 2, 3]"), ("[source, tent]", "[tent, sar]"))
    command = [sys.executable, "-m", "tta_bench", "run", str(file), "--out", str(tmp_path / "run"), "--workers", "1"]
    driver = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                              env=clean_environment(TTA_BENCH_CACHE=str(cache)))  # fmt: skip
    wait_until(lambda: any((tmp_path / "run" / "trials").glob("*.json")), seconds=LONG_S)
    [raylet] = [pid for pid in descendants(driver.pid) if _command(pid).endswith("/raylet")]
    os.kill(raylet, signal.SIGKILL)
    _, said = driver.communicate(timeout=LONG_S)
    assert driver.returncode == 3, said
    assert "Ray's raylet on this machine ended unexpectedly" in said
    assert f"To resume:\n  {shlex.join(['tta-bench', *command[3:]])}" in said
    kept = {path.name for path in (tmp_path / "run" / "trials").iterdir()}
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False,
                          env=clean_environment(TTA_BENCH_CACHE=str(cache))).returncode == 0  # fmt: skip
    assert kept < {path.name for path in (tmp_path / "run" / "trials").iterdir()}


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_stops_the_run_and_loses_nothing(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, small_disk: pathlib.Path
) -> None:
    file = suite_file(("seeds: [0]", "seeds: [0, 1, 2, 3, 4, 5, 6, 7]"))
    options = ("--executor", "local", "--cpus-per-trial", 1)
    outcome = run_cli("run", file, *options, "--out", small_disk / "run")
    assert outcome.code == 3
    assert "cannot write results: No space left on device" in outcome.err
    assert "To resume:" in outcome.err
    assert "Traceback" not in outcome.err
    shutil.copytree(small_disk / "run", tmp_path / "kept", ignore=shutil.ignore_patterns("status.*", ".*"))
    done = len(list((tmp_path / "kept" / "trials").glob("*.json")))
    assert 0 < done < 32
    outcome = run_cli("run", file, *options, "--out", tmp_path / "kept")
    assert outcome.code == 0
    assert f"{done} finished, {32 - done} to run" in outcome.err
    assert run_cli("run", file, *options, "--out", tmp_path / "whole").code == 0
    pd.testing.assert_frame_equal(result_rows(tmp_path / "kept"), result_rows(tmp_path / "whole"), check_exact=True)


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
@pytest.mark.parametrize("how", ["once", "twice", "killed"])
def test_no_process_is_left_behind(
    how: str, suite_file: SuiteFile, tmp_path: pathlib.Path, plugin: pathlib.Path, cache: pathlib.Path
) -> None:
    file = suite_file(("[source, tent]", methods(tmp_path, "marks", "hangs")), ("[clean, contrast]", "[contrast]"),
                      ("seeds: [0]", "seeds: [0, 1]"))  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "tta_bench",
        "run",
        str(file),
        "--plugin",
        str(plugin),
        "--workers",
        "2",
        "--out",
        "out",
    ]
    driver = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(TTA_BENCH_CACHE=str(cache)),
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    marks = tmp_path / "marks"
    wait_until(lambda: marks.exists() and "hangs" in marks.read_text(), driver)
    below = descendants(driver.pid)
    assert len(below) > 2
    if how == "killed":
        driver.kill()
    else:
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole group
        if how == "twice":
            time.sleep(0.3)
            os.kill(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=LONG_S)
    assert driver.returncode == {"once": 130, "twice": 130, "killed": -9}[how]
    if how == "once":
        assert "interrupted; finished trials are kept. To resume:\n  tta-bench run" in said.decode()
    wait_until(lambda: not [pid for pid in below if _runs(pid)], seconds=60)
    state = subprocess.run([sys.executable, "-m", "tta_bench", "status", "out"], cwd=tmp_path, capture_output=True, text=True,
                           env=clean_environment(), check=True).stdout  # fmt: skip
    if how == "twice":  # the first may have been written down before the second came
        assert "interrupted" in state or "killed: process" in state
    else:
        assert {"once": "interrupted", "killed": "killed: process"}[how] in state
    assert "of 6 trials" in state


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie. Ray's two agents look after their parent once a minute: not ours."""
    try:
        if "Agent" in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
            return False
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_disk_that_is_full_at_the_end_is_said(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, small_disk: pathlib.Path
) -> None:
    run_cli("run", suite_file(), "--executor", "local", "--only", "method=source", "--out", tmp_path / "run")
    shutil.copytree(tmp_path / "run", small_disk / "run", ignore=shutil.ignore_patterns("*.parquet", "*.csv"))
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb") as stream:
        while True:
            stream.write(bytes(512))
            stream.flush()
    with pytest.raises(OSError, match="No space left on device"):
        results.write_tables(small_disk / "run")
