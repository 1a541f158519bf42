"""A run on two Ray nodes of this machine with real faults, compared with an undisturbed run of the same suite.

    python benchmarks/cluster_faults.py cifar10_c --limit 256 --only method=source|norm|tent

After a quarter of the trials a worker process is killed (SIGKILL), after half a node is removed, after three quarters the
driver is killed and the run resumed. Exits 1 if result columns or predictions then differ from those of the undisturbed
local run, or a row is missing or duplicated. Further options are passed to ``tta-bench run``.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.cluster_utils import Cluster

from tta_bench.store import results

PATIENCE_S = 300.0


def finished(run: pathlib.Path) -> int:
    """Number of trials on disk."""
    return len(list((run / "trials").glob("*.json")))


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """Return once ``condition`` holds; exit if it does not for too long, or the driver ends first."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if driver.poll() is not None:
            sys.exit(f"the driver ended before a fault was injected (exit code {driver.returncode}): use more trials")
        if time.monotonic() > deadline:
            sys.exit(f"no progress for {PATIENCE_S:.0f} s")
        time.sleep(0.05)


def a_worker(run: pathlib.Path) -> int | None:
    """Process of a worker that runs a trial, from the run's status."""
    try:
        lines = json.loads((run / "status.json").read_text())["workers"]
    except (OSError, ValueError):
        return None
    matches = [re.search(r"process (\d+): (?!idle)", line) for line in lines]
    return next((int(match[1]) for match in matches if match), None)


def disturbed(command: list[str], run: pathlib.Path, total: int) -> int:
    """Run ``command`` on two nodes with three faults; returns the exit code of the resumed run."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    command = [*command, "--address", cluster.address, "--out", str(run)]
    try:
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: finished(run) >= total // 4 and a_worker(run) is not None, driver)
        os.kill(a_worker(run) or 0, signal.SIGKILL)
        print(f"worker killed after {finished(run)} of {total} trials", flush=True)
        wait_for(lambda: finished(run) >= total // 2, driver)
        cluster.remove_node(second, allow_graceful=False)
        print(f"node removed after {finished(run)}", flush=True)
        wait_for(lambda: finished(run) >= 3 * total // 4, driver)
        driver.kill()
        driver.wait()
        print(f"driver killed after {finished(run)}", flush=True)
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    finally:
        cluster.shutdown()


def main() -> None:
    """Run both, compare, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    arguments, further = parser.parse_known_args()
    command = [sys.executable, "-m", "tta_bench", "run", arguments.suite, "--cpus-per-trial", "1", *further]
    with tempfile.TemporaryDirectory() as folder:
        calm, wild = pathlib.Path(folder) / "calm", pathlib.Path(folder) / "wild"
        subprocess.run([*command, "--executor", "local", "--out", str(calm)], stdout=subprocess.DEVNULL, check=True)
        total = finished(calm)
        code = disturbed(command, wild, total)
        one, other = (results.load(run) for run in (calm, wild))
        attempts = other.segments.groupby("key")["attempts"].first()
        equal = all(
            results.result_columns(getattr(one, name)).equals(results.result_columns(getattr(other, name)))
            for name in ("segments", "shifts")
        )
        equal = equal and results.predictions(calm) == results.predictions(wild)
    again = int((attempts > 1).sum())
    verdict = "equal bit for bit" if equal else "DIFFER"
    print(f"{total} trials, {again} with more than one attempt; exit code {code}; results {verdict}")
    sys.exit(0 if equal and code == 0 else 1)


if __name__ == "__main__":
    main()
