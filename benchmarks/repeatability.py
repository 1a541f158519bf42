"""Whether a method repeated in a new process has the same bits, in each mode of computing.

    python benchmarks/repeatability.py [--models vit_base_patch16_224,resnet50_gn] [--methods source,tent] [--modes tf32;…]
                                       [--steps 20]

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
from collections.abc import Iterator

import torch
from gpu import CACHE, METHODS, MODES, Bench
from torch import Tensor

from tta_bench.precision import Mode
from tta_bench.run.engine import prepare_compiler

REPEATED = {**MODES, "tf32, deterministic": Mode("tf32"), "bfloat16, deterministic": Mode("bfloat16")}
REPEATABLE = "source,tent,eata,sar,mgg,cotta"


def scores(architecture: str, method: str, mode: str, steps: int) -> Tensor | str:
    """The scores of all steps, (steps, B, C), or why the method cannot run."""
    bench = Bench(architecture, REPEATED[mode], 0.0)
    step = bench.ours(method)
    if isinstance(step, str):
        return step
    return torch.stack([step(x).cpu() for x, _ in zip(itertools.cycle(bench.batches), range(steps), strict=False)])


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


def _run(job: tuple[str, str, str], file: pathlib.Path, steps: int) -> None:
    command = [sys.executable, __file__, "--job", "|".join(job), "--out", str(file), "--steps", str(steps)]
    subprocess.run(command, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="vit_base_patch16_224,resnet50_gn")
    parser.add_argument("--methods", default=REPEATABLE, help=", ".join(METHODS))
    parser.add_argument("--modes", default=";".join(REPEATED), help="separated by semicolons")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=6, help="at a time")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        prepare_compiler(torch.device("cuda"), CACHE / "compiled")
        architecture, methods, mode = options.job.split("|")
        found = {method: scores(architecture, method, mode, options.steps) for method in methods.split(",")}
        torch.save(found, options.out)
        return 0
    jobs = [(model, options.methods, mode) for model in options.models.split(",") for mode in options.modes.split(";")]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        runs = [
            [pathlib.Path(folder, f"{number}-{run}.pt") for number in range(len(jobs))] for run in ("first", "second")
        ]
        for files in runs:  # the second of a pair finds compiled code on disk
            list(pool.map(_run, jobs, files, itertools.repeat(options.steps)))
        for job, *pair in zip(jobs, *runs, strict=True):
            print(*_lines(job, *pair), sep="\n", flush=True)
    return 0


def _lines(job: tuple[str, str, str], first: pathlib.Path, second: pathlib.Path) -> Iterator[str]:
    model, _, mode = job
    if not (first.exists() and second.exists()):
        yield f"{model:22} {mode:33} failed, see above"
        return
    before, after = (torch.load(file, weights_only=True) for file in (first, second))
    for method in before:
        yield f"{model:22} {method:8} {mode:24} {compared(before[method], after[method])}"


if __name__ == "__main__":
    sys.exit(main())
