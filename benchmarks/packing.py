"""Images per second that one GPU grades when trials share it, over one trial at a time; results must stay equal.

    python benchmarks/packing.py cifar10_c [--shares 1,0.5,0.25] [--rounds 1] [--keep DIR] --only model=vit_tiny

Runs the suite, once a round, with each share of the GPU for a trial (``--gpus-per-trial``): the same trials on Ray, every
time from the start. Images per second are all images graded over the time from the first trial's start to the last one's
end, as their files say, so that the workers' start and the making of images are left out. Exits 1 where a result column
or an image's prediction of any run differs from the first unpacked run's. Further options go to ``tta-bench run``.
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
    """The numbers of ``--shares``; the first is 1, for the others are compared with it."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between them") from None
    if found[0] != 1 or not all(0 < share < 1 for share in found[1:]):
        raise argparse.ArgumentTypeError(f"{text!r}: the first is 1, the unpacked run, and each further one below 1")
    return found


def sweep(suite: str, share: float, further: Sequence[str], out: pathlib.Path) -> timing.Sweep:
    """Run the suite with ``share`` of a GPU a trial; exit as the run does where it does not end well."""
    command = [sys.executable, "-m", "tta_bench", "run", suite, "--gpus-per-trial", f"{share:g}", "--out", str(out)]
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    done = subprocess.run([*command, *further], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": one})  # fmt: skip
    if done.returncode:
        print(f"{done.stderr}the run with share {share:g} ended with exit code {done.returncode}", file=sys.stderr)
        sys.exit(done.returncode)
    return timing.read(out)


def differences(reference: pathlib.Path, run: pathlib.Path) -> list[str]:
    """What of ``run`` is not, bit for bit, what it is in ``reference``."""
    found = list[str]()
    tables, others = (results.load(folder).tables for folder in (reference, run))
    for table in ("segments", "shifts"):
        one, other = results.result_columns(tables[table]), results.result_columns(others[table])
        shared = [name for name in one if name in other]
        found += [f"column {name}" for name in sorted({*one, *other}.difference(shared))]
        found += [f"column {name}" for name in shared if not one[name].equals(other[name])]
    before, after = results.predictions(reference), results.predictions(run)
    count = sum(before.get(key) != after.get(key) for key in {**before, **after})
    return [*dict.fromkeys(found), *([f"predictions of {count} of {len(before)} trials"] if count else [])]


def line(share: float, found: timing.Sweep, unpacked: timing.Sweep, differing: Sequence[str]) -> str:
    """What is said of one run."""
    said = (
        f"share {share:g}: {found.workers} worker{'s' if found.workers > 1 else ''}, {found.trials} trials, "
        f"{found.images:,} images in {found.seconds:.1f} s, {found.images_per_s:,.0f} images/s"
    )
    if share == 1 and not differing:
        return said
    equal = f"DIFFERENT: {', '.join(differing)}" if differing else "results equal bit for bit"
    return f"{said}, {found.images_per_s / unpacked.images_per_s:.2f} times unpacked; {equal}"


def medians(rounds: Sequence[dict[float, timing.Sweep]]) -> list[str]:
    """A line for each share: the median of its rounds, and of the rounds' ratios over unpacked."""
    lines = []
    for share in rounds[0]:
        speed = statistics.median(found[share].images_per_s for found in rounds)
        ratio = statistics.median(found[share].images_per_s / found[1.0].images_per_s for found in rounds)
        lines.append(f"share {share:g}: {speed:,.0f} images/s, {ratio:.2f} times unpacked (medians of {len(rounds)})")
    return lines


def measure(arguments: argparse.Namespace, further: Sequence[str], folder: pathlib.Path) -> bool:
    """Run all rounds, print what came out; whether all results are equal."""
    rounds, equal = [], True
    for number in range(arguments.rounds):
        found: dict[float, timing.Sweep] = {}
        for share in arguments.shares:
            run = folder / f"share-{share:g}-{number}"
            found[share] = sweep(arguments.suite, share, further, run)
            differing = differences(folder / "share-1-0", run)
            equal = equal and not differing
            print(line(share, found[share], found[1.0], differing), flush=True)
        rounds.append(found)
    if len(rounds) > 1:
        print("\n".join(medians(rounds)))
    return equal


def main() -> None:
    """Measure on a GPU, in a folder that is kept on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("suite")
    parser.add_argument("--shares", type=shares, default=[1.0, 0.5, 0.25])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="write the runs there, a new folder")
    arguments, further = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("packing.py measures trials that share a GPU, and this machine has none", file=sys.stderr)
        sys.exit(2)
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep} is there already: its finished trials would not be run again")
    with tempfile.TemporaryDirectory() as folder:
        equal = measure(arguments, further, (arguments.keep or pathlib.Path(folder)).absolute())
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
