"""Throughput of one GPU with several trials at a time compared with one; checks that results stay equal.

    python benchmarks/packing.py cifar10_c [--shares 1,0.5,0.25] [--rounds 1] [--keep DIR] --only model=vit_tiny

Each round runs the suite on Ray once for each share of the GPU per trial (``--gpus-per-trial``), in a new folder.
Throughput is the number of graded images over the time from the first trial's start to the last one's end, from the
trials' files: it excludes the start of workers and building of the image cache. Exits 1 if a result column or prediction
of any run differs from the first unpacked run's. Further options are passed to ``tta-bench run``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import timing
import torch

from tta_bench.store import results


def shares(text: str) -> list[float]:
    """Parse ``--shares``; the first is 1, the unpacked run that others are compared with."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None
    if numbers[0] != 1 or not all(0 < share < 1 for share in numbers[1:]):
        raise argparse.ArgumentTypeError(f"{text!r}: the first share must be 1, all others between 0 and 1")
    return numbers


def sweep(suite: str, share: float, further: Sequence[str], out: pathlib.Path) -> timing.Sweep:
    """Run the suite with ``share`` of a GPU per trial; exit with the run's exit code if it fails."""
    command = [sys.executable, "-m", "tta_bench", "run", suite, "--gpus-per-trial", f"{share:g}", "--out", str(out)]
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    done = subprocess.run([*command, *further], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu})  # fmt: skip
    if done.returncode:
        print(f"{done.stderr}the run with share {share:g} ended with exit code {done.returncode}", file=sys.stderr)
        sys.exit(done.returncode)
    return timing.read(out)


def differences(reference: pathlib.Path, run: pathlib.Path) -> list[str]:
    """Result columns and predictions of ``run`` that are not bit-identical to those of ``reference``."""
    columns = list[str]()
    tables, others = (results.load(folder).tables for folder in (reference, run))
    for table in ("segments", "shifts"):
        one, other = results.result_columns(tables[table]), results.result_columns(others[table])
        shared = [name for name in one if name in other]
        columns += [f"column {name}" for name in sorted({*one, *other}.difference(shared))]
        columns += [f"column {name}" for name in shared if not one[name].equals(other[name])]
    before, after = results.predictions(reference), results.predictions(run)
    count = sum(before.get(key) != after.get(key) for key in {**before, **after})
    return [*dict.fromkeys(columns), *([f"predictions of {count} of {len(before)} trials"] if count else [])]


def line(share: float, packed: timing.Sweep, unpacked: timing.Sweep, differing: Sequence[str]) -> str:
    """The printed result of one run."""
    throughput = (
        f"share {share:g}: {packed.workers} worker{'s' if packed.workers > 1 else ''}, {packed.trials} trials, "
        f"{packed.images:,} images in {packed.seconds:.1f} s, {packed.images_per_s:,.0f} images/s"
    )
    if share == 1 and not differing:
        return throughput
    equal = f"DIFFERENT: {', '.join(differing)}" if differing else "results equal bit for bit"
    return f"{throughput}, {packed.images_per_s / unpacked.images_per_s:.2f} times unpacked; {equal}"


def medians(rounds: Sequence[dict[float, timing.Sweep]]) -> list[str]:
    """A line per share: median throughput, and median ratio to the unpacked run of the same round."""
    lines = []
    for share in rounds[0]:
        speed = statistics.median(sweeps[share].images_per_s for sweeps in rounds)
        ratio = statistics.median(sweeps[share].images_per_s / sweeps[1.0].images_per_s for sweeps in rounds)
        lines.append(f"share {share:g}: {speed:,.0f} images/s, {ratio:.2f} times unpacked (medians of {len(rounds)})")
    return lines


def measure(arguments: argparse.Namespace, further: Sequence[str], folder: pathlib.Path) -> bool:
    """Run all rounds and print their throughput; returns whether all results are equal."""
    rounds, equal = [], True
    for number in range(arguments.rounds):
        sweeps: dict[float, timing.Sweep] = {}
        for share in arguments.shares:
            run = folder / f"share-{share:g}-{number}"
            sweeps[share] = sweep(arguments.suite, share, further, run)
            differing = differences(folder / "share-1-0", run)
            equal = equal and not differing
            print(line(share, sweeps[share], sweeps[1.0], differing), flush=True)
        rounds.append(sweeps)
    if len(rounds) > 1:
        print("\n".join(medians(rounds)))
    return equal


def main() -> None:
    """Parse arguments, check for a GPU, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("suite")
    parser.add_argument("--shares", type=shares, default=[1.0, 0.5, 0.25])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keep the runs in this new folder")
    arguments, further = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("packing.py measures trials that share a GPU, and this machine has none", file=sys.stderr)
        sys.exit(2)
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep} exists: its finished trials would not be rerun")
    with tempfile.TemporaryDirectory() as folder:
        equal = measure(arguments, further, (arguments.keep or pathlib.Path(folder)).absolute())
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
