"""Speed-up of two workers over one, on a sweep of equal trials with one thread each.

    python benchmarks/scaling.py [--limit 1000] [--pairs 3] [--check 1.8]

Trials: Tent on one CIFAR-10 network under 16 shifts (environment variables of suites/cifar10_c.yaml). A sweep's time is
from the first trial's start to the last one's end, from their files. Prints medians, and the median ratio of the pairs.
``--check R`` exits 1 if that ratio is below R.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import timing


def sweep(workers: int, limit: int, out: pathlib.Path) -> float:
    """Seconds from the first trial's start to the last one's end."""
    command = [sys.executable, "-m", "tta_bench", "run", "cifar10_c", "--only", "method=tent,model=resnet18_bn",
               "--limit", str(limit), "--workers", str(workers), "--cpus-per-trial", "1", "--out", str(out)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})  # fmt: skip
    return timing.read(out).seconds


def main() -> None:
    """Measure pairs, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--check", type=float)
    arguments = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.pairs):
            one = sweep(1, arguments.limit, pathlib.Path(folder) / f"one{number}")
            two = sweep(2, arguments.limit, pathlib.Path(folder) / f"two{number}")
            pairs.append((one, two))
            print(f"one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f}", flush=True)
    ratio = statistics.median(one / two for one, two in pairs)
    one, two = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    print(f"medians: one worker {one:.1f} s, two {two:.1f} s; {ratio:.2f} times faster, efficiency {50 * ratio:.0f} %")
    if arguments.check and ratio < arguments.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
