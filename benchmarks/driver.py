"""Cost of a run of many trials outside the trials themselves: seconds and peak memory of the driver and of its commands.

    python benchmarks/driver.py [--trials 10000]

Runs a suite of ``--trials`` trials on Ray whose workers run one trial per source model and repeat its result for all
others, so that the driver is what is measured: its processor time while it schedules and stores trials, and its memory.
Each command is then measured in a process of its own, imports included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tta_bench.run.runner import TrialResult
    from tta_bench.suite.plan import Trial

MODELS, SEEDS = 2, 50  # of the suite
LOAD = "import sys, tta_bench; tta_bench.load_results(sys.argv[1])"
ROOT = pathlib.Path(__file__).resolve().parent.parent


def suite_text(rows: int) -> str:
    """A suite of ``rows`` methods on the source models of ``digits_c``, one shift and :data:`SEEDS` seeds."""
    models = yaml.safe_load((ROOT / "suites" / "digits_c.yaml").read_text())["models"]
    rates = [(row + 1) * 1e-6 for row in range(rows)]
    suite = {"name": "driver", "data": {"kind": "digits"}, "models": models,
             "methods": [{"name": "tent", "grid": {"lr": rates}}], "batch_size": 64, "corruptions": ["contrast"],
             "severities": [5], "seeds": list(range(SEEDS))}  # fmt: skip
    return yaml.safe_dump(suite)


def drive(suite: str, out: str) -> None:
    """Run the suite with repeated results; print processor time and peak memory as JSON."""
    from tta_bench.commands import run
    from tta_bench.schedule import cluster, scheduler
    from tta_bench.schedule.options import RunOptions

    class RepeatingWorker(cluster.Worker):
        """Runs the first trial of each source model and repeats its result; Ray sends the class to its workers."""

        def run(self, trial: Trial) -> TrialResult:
            results = self.__dict__.setdefault("results", {})
            if trial.model not in results:
                results[trial.model] = super().run(trial)
            return dataclasses.replace(results[trial.model], key=trial.key)

    def timed(*arguments: Any) -> None:
        start = time.process_time()
        schedule(*arguments)
        usage["seconds"] = time.process_time() - start

    cluster.Worker, schedule, scheduler.run = RepeatingWorker, scheduler.run, timed  # type: ignore[misc]
    usage: dict[str, float] = {}
    code = run.run(RunOptions(suite, out=out, yes=True), resume="")
    print(json.dumps({**usage, "mb": peak_mb(resource.getrusage(resource.RUSAGE_SELF))}))
    sys.exit(code)


def peak_mb(usage: resource.struct_rusage) -> float:
    """Peak resident memory, MB."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(title: str, *command: str) -> None:
    """Run a command of this Python and print its wall-clock seconds and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{title} failed with exit code {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    print(f"{title:8} {time.perf_counter() - start:8.1f} s {peak_mb(usage):8.0f} MB", flush=True)


def main() -> None:
    """Run the suite, then measure the commands on its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help=f"a multiple of {MODELS * SEEDS}")
    parser.add_argument("--drive", nargs=2, metavar=("SUITE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(*arguments.drive)
    rows, rest = divmod(arguments.trials, MODELS * SEEDS)
    if rest or not rows:
        parser.error(f"--trials must be a multiple of {MODELS * SEEDS}")
    with tempfile.TemporaryDirectory() as folder:
        suite, run = pathlib.Path(folder) / "driver.yaml", f"{folder}/run"
        suite.write_text(suite_text(rows))
        command = [sys.executable, __file__, "--drive", str(suite), run]
        driver = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        usage = json.loads(driver.stdout.splitlines()[-1])
        milliseconds = 1e3 * usage["seconds"] / arguments.trials
        print(
            f"{arguments.trials} trials: driver {milliseconds:.2f} ms of processor each, {usage['mb']:.0f} MB at most"
        )
        measure("plan", "-m", "tta_bench", "run", str(suite), "--out", f"{folder}/other", "--dry-run", "--yes")
        measure("resume", "-m", "tta_bench", "run", str(suite), "--out", run, "--yes")
        measure("load", "-c", LOAD, run)
        measure("report", "-m", "tta_bench", "report", run)


if __name__ == "__main__":
    main()
