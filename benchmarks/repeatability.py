"""Whether a method repeated in a new process has the same bits, in each mode of computing.

    python benchmarks/repeatability.py [--models vit_base_patch16_224,resnet50_gn] [--methods source,tent] [--modes tf32;…]

Each pair of processes runs the same steps on equal images, and their scores are compared: equal bit for bit or, over all
steps, the largest difference and the share of images that are given the same class. Random weights; needs a GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import pathlib
import subprocess
import sys
import tempfile

import torch
from gpu import CACHE, METHODS, MODES, Bench
from torch import Tensor

from tta_bench.run.engine import prepare_compiler

STEPS = 20
REPEATABLE = "source,tent,eata,sar,mgg,cotta"


def scores(architecture: str, method: str, mode: str) -> Tensor | str:
    """The scores of all steps, (STEPS, B, C), or why the method cannot run."""
    bench = Bench(architecture, MODES[mode], 0.0)
    step = bench.ours(method)
    if isinstance(step, str):
        return step
    return torch.stack([step(x).cpu() for x, _ in zip(itertools.cycle(bench.batches), range(STEPS), strict=False)])


def compared(first: Tensor | str, second: Tensor | str) -> str:
    """What a line of the table says."""
    if isinstance(first, str):
        return first
    if isinstance(second, str):
        return second
    if torch.equal(first, second):
        return "equal bit for bit"
    same = (first.argmax(-1) == second.argmax(-1)).float().mean()
    return f"largest difference {(first - second).abs().max():.2g}, same class {same:.2%}"


def _run(job: tuple[str, str, str], file: pathlib.Path) -> None:
    subprocess.run([sys.executable, __file__, "--job", "|".join(job), "--out", str(file)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="vit_base_patch16_224,resnet50_gn")
    parser.add_argument("--methods", default=REPEATABLE, help=", ".join(METHODS))
    parser.add_argument("--modes", default=";".join(MODES), help="separated by semicolons")
    parser.add_argument("--processes", type=int, default=6, help="at a time")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        prepare_compiler(torch.device("cuda"), CACHE / "compiled")
        architecture, methods, mode = options.job.split("|")
        torch.save({method: scores(architecture, method, mode) for method in methods.split(",")}, options.out)
        return 0
    folder = pathlib.Path(tempfile.mkdtemp())
    jobs = [(model, options.methods, mode) for model in options.models.split(",") for mode in options.modes.split(";")]
    files = {job: [folder / f"{number}-{time}.pt" for time in range(2)] for number, job in enumerate(jobs)}
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        for first in range(2):  # the second of a pair finds compiled code on disk
            list(pool.map(lambda job: _run(job, files[job][first]), jobs))  # noqa: B023
    for job in jobs:
        if not all(file.exists() for file in files[job]):
            print(f"{job[0]:22} {job[2]:33} failed, see above", flush=True)
            continue
        runs = [torch.load(file, weights_only=True) for file in files[job]]
        for method in runs[0]:
            print(f"{job[0]:22} {method:8} {job[2]:24} {compared(runs[0][method], runs[1][method])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
