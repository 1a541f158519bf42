"""What a report of a large run takes: seconds and peak memory of ``tta-bench report``, in a fresh process.

    python benchmarks/report.py [--batches 50] [--repeats 3] [--check] [--format html,csv]

The run is of 2,700 trials: 10 methods × 2 models × 15 corruptions × 3 severities × 3 seeds, with canned results of so many
batches of 64 images. Printed are medians; ``--check`` exits 1 where 10 s or 1 GB is exceeded. Further options go to
``tta-bench report``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import scale

from tta_bench import suite
from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.store import records, rundir
from tta_bench.suite import plan

RATES = [f"{n}.0e-4" for n in range(1, 10)]
LIMIT_S, LIMIT_MB = 10.0, 1000.0


def write_run(folder: pathlib.Path, batches: int) -> tuple[pathlib.Path, int]:
    """Write the run; returns its folder and number of trials."""
    scale.make_images(folder / "images")
    file, run = folder / "large.yaml", folder / "run"
    text = scale.SUITE.format(images=folder / "images", rates="[1.0e-4]", seeds=[0, 1, 2])
    for line, new in (("methods: ", f"[source, {{name: tent, grid: {{lr: [{', '.join(RATES)}]}}}}]"),
                      ("corruptions: ", f"[{', '.join(BENCHMARK)}]"), ("severities: ", "[1, 3, 5]")):  # fmt: skip
        [old] = [found for found in text.splitlines() if found.startswith(line)]
        text = text.replace(old, line + new)
    file.write_text(text)
    made = plan.make(suite.load(str(file)))
    run.mkdir()
    records.write_plan(run, made)
    session = rundir.begin_session(run, {})
    labels = list(dict.fromkeys(trial.label for trial in made.trials))
    with scale.fsyncs(lambda _: None):  # nobody needs this run after a power cut
        for trial in made.trials:
            [shift] = trial.stream.shifts
            error = (
                0.1
                + 0.05 * shift.severity
                + 0.005 * BENCHMARK.index(shift.corruption)
                + 0.01 * labels.index(trial.label)
            )
            records.write(run, scale.canned(trial, batches, error), trial.asked, session)
    return run, len(made.trials)


def measure(run: pathlib.Path, further: list[str]) -> tuple[float, float]:
    """(seconds, MB at most) of one report, in a process of its own."""
    command = [sys.executable, "-m", "tta_bench", "report", str(run), *further]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(errors.decode())
    return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> int:
    """Make the run, measure, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=50, help="of 64 images, in each trial")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is exceeded")
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run, trials = write_run(pathlib.Path(folder), options.batches)
        found = [measure(run, further) for _ in range(options.repeats)]
    seconds, memory = (statistics.median(values) for values in zip(*found, strict=True))
    print(f"report of {trials} trials × {options.batches} batches: {seconds:.1f} s (limit {LIMIT_S:g}), "
          f"peak {memory:.0f} MB (limit {LIMIT_MB:g}); {os.cpu_count()} CPUs")  # fmt: skip
    return int(options.check and (seconds > LIMIT_S or memory > LIMIT_MB))


if __name__ == "__main__":
    sys.exit(main())
