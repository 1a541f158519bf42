"""Time until the first result, on this machine.

    python benchmarks/first_trial.py [SUITE] [--times 3] [--executor local ...]

Runs ``tta-bench run SUITE --limit 40 --only method=source`` with a warm image cache, each time into a new folder, and
prints medians of the seconds until the plan is made, until the first trial ends, and that the trial itself took.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time


def timed(suite: str, executor: str) -> tuple[float, float, float]:
    """(until the plan, until the first result, duration of the trial), seconds."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "tta_bench", "run", suite, "--limit", "40", "--only", "method=source"]
        command += ["--executor", executor, "--out", f"{out}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=out, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        planned = 0.0
        for line in process.stderr:
            now = time.perf_counter() - start
            if "results in" in line:
                planned = now
            if line.startswith("[1/"):
                process.wait()
                return planned, now, float(line.rpartition(", ")[2].removesuffix(" s\n"))
        sys.exit(f"no trial ended: exit code {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", nargs="?", default="digits_c")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--executor", nargs="+", default=["local", "ray"])
    options = parser.parse_args()
    for executor in options.executor:
        timed(options.suite, executor)  # fills the cache
        runs = [timed(options.suite, executor) for _ in range(options.times)]
        planned, first, took = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{executor:5} planned {planned:5.1f} s   first result {first:5.1f} s, of which its trial {took:.1f} s")


if __name__ == "__main__":
    main()
