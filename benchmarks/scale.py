"""What large runs cost the harness itself: planning, resuming, reading and writing results, and the driver.

    python benchmarks/scale.py [--figures plan,resume] [--trials 10000] [--planned 100000] [--batches 5] [--check]

A run of ``--trials`` trials that are all finished is made once, of canned results of ``--batches`` batches of 64 images,
written as a run writes them. Each figure is then measured ``--repeats`` times, each time in a fresh process, after its
imports; printed are medians, with the peak of resident memory. ``--check`` exits 1 where a limit is exceeded.

    plan     ``plan.make`` of ``--planned`` trials
    resume   ``tta-bench run`` on the finished run: plan, statuses, tables; nothing is left to run
    load     ``results.load`` of it
    write    ``results.write`` of one trial: processor time, and how much of the wall time is fsync
    driver   ``tta-bench run`` of ``--trials`` trials that do nothing, on Ray: the driver's processor time a trial, with
             that of the process that makes the tables at its end; the peak of memory is the driver's alone
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process that starts the others stays small: a child's peak memory begins at its parent's
    from tta_bench.run.runner import TrialResult
    from tta_bench.suite.plan import Plan, Trial

BATCH = 64
SHIFTS, MODELS, MOST_SEEDS = 25, 2, 40  # of the suite; the rows of its one method make up the number of trials
IMAGES = 1000
IMPORTED: list[float] = []  # the peak of this process's memory after its imports, MB

SUITE = """\
name: scale
data: {{kind: folder, root: {images}, source: {images}, strengths: cifar, preprocess: none}}
models:
  - name: resnet_bn
    architecture: resnet18
    options: {{num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}}
    stem: cifar
    weights: "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
  - name: vit_ln
    architecture: vit_tiny_patch16_224
    options: {{num_classes: 10, img_size: 32, patch_size: 4, embed_dim: 64, depth: 6, num_heads: 4}}
    weights: "package:tta_bench.data.kinds/weights/digits_vit_ln.safetensors"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
methods: [{{name: eata, grid: {{lr: {rates}}}}}]
batch_size: 64
corruptions: [gaussian_noise, shot_noise, fog, snow, contrast]
severities: [1, 2, 3, 4, 5]
seeds: {seeds}
"""


@dataclass(frozen=True)
class Case:
    """What is measured, and where.

    Attributes:
        folder: holds the suites and the finished run.
        trials: of the finished run.
        planned: trials that are planned.
        batches: batches of each finished trial.
    """

    folder: pathlib.Path
    trials: int
    planned: int
    batches: int

    @property
    def run(self) -> pathlib.Path:
        """The finished run."""
        return self.folder / "run"

    def empty_folder(self) -> pathlib.Path:
        """A folder that stays until the end: file systems are slow to make files where many were just deleted."""
        return pathlib.Path(tempfile.mkdtemp(dir=self.folder))

    def suite(self, trials: int) -> pathlib.Path:
        """The file of a suite of so many trials; it is written where it is not there yet."""
        path = self.folder / f"scale-{trials}.yaml"
        if not path.exists():
            seeds = max(1, min(MOST_SEEDS, trials // (SHIFTS * MODELS)))
            rows, rest = divmod(trials, SHIFTS * MODELS * seeds)
            if rest or not rows:
                sys.exit(f"{trials} trials: not a multiple of {SHIFTS * MODELS * seeds}")
            rates = ", ".join(f"{row + 1}.0e-6" for row in range(rows))
            path.write_text(SUITE.format(images=self.folder / "images", rates=f"[{rates}]", seeds=list(range(seeds))))
        return path


def make_images(folder: pathlib.Path) -> None:
    """A folder of noise, in ten classes, as the source models have: nothing of it is ever decoded."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        file = folder / f"class_{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)


# -- canned results ----------------------------------------------------------------------------------------------------


def canned(trial: Trial, batches: int, error: float = 0.3) -> TrialResult:
    """A result of the size and shape that a real trial has; an image is classified wrongly with probability ``error``."""
    import numpy as np

    from tta_bench.run.runner import TrialResult

    rng = np.random.default_rng(trial.seed)
    images, numbers = batches * BATCH, np.arange(batches)
    correct = rng.random(images) >= error
    [shift] = trial.stream.shifts
    costs = {"step_ms_median": 5.1, "step_ms_p95": 6.2, "images_per_s": 12000.5, "warmup_ms": 30.25,
             "data_ms_median": 0.4, "peak_memory_mib": None}  # fmt: skip
    place = {"position": 0, "segment": shift.id, "visit": 0, "role": "stream"}
    segment = {**place, "images": images, "batches": batches, "images_forwarded": images, "images_backwarded": images,
               "updates": batches, "most_predicted_pct": 100.0 * float(rng.random()), **costs}  # fmt: skip
    row = {**place, "shift": shift.id, "corruption": shift.name, "severity": shift.severity or 0, "images": images,
           "correct": int(correct.sum()), "error_pct": 100.0 * float((~correct).mean()),
           "class_mean_error_pct": 100.0 * float(rng.random()), "confidence_mean": float(rng.random())}  # fmt: skip
    facts = {"adapted_parameters": 2000, "batch_statistics": "per-batch", "checkpoint": "", "reset_keeps": "ema",
             "needs_backward": True, "needs_source_images": True, "needs_checkpoint": False, "needs_min_batch": 2,
             "needs_norm_kinds": "batch,group,layer", "needs_class_token": False, "needs_linear_head": False,
             "needs_packages": "", "source_images": 797, "prepare_s": 1.5, "trial_s": 2.5}  # fmt: skip
    where = {"host": "node-1", "pid": 1234, "device": "cpu", "device_name": "x86_64", "threads": 1, "torch": "2.6.0",
             "python": "3.11.7"}  # fmt: skip
    per_batch = {"batch": numbers, "segment": np.zeros(batches, dtype=np.int16), "images": np.full(batches, BATCH),
                 "adapted": np.ones(batches, dtype=bool), "step_ms": rng.random(batches),
                 "data_ms": rng.random(batches)}  # fmt: skip
    per_image = {
        "shift": np.zeros(images, dtype=np.int16),
        "visit": np.zeros(images, dtype=np.int16),
        "graded": np.ones(images, dtype=bool),
        "image": rng.permutation(images).astype(np.int32),
        "batch": np.repeat(numbers, BATCH).astype(np.int32),
        "predicted": rng.integers(0, 10, images, dtype=np.int32),
        "correct": correct,
        "confidence": rng.random(images, dtype=np.float32),
    }
    return TrialResult(trial.key, "ok", facts=facts, segments=[segment], shifts=[row], batches=per_batch,
                       images=per_image, environment=where)  # fmt: skip


def planned(case: Case, trials: int) -> Plan:
    """The plan of the suite of so many trials."""
    from tta_bench import suite
    from tta_bench.suite import plan

    made = plan.make(suite.load(str(case.suite(trials))))
    assert len(made.trials) == trials
    return made


# -- what is measured; each in a process of its own --------------------------------------------------------------------


def make_run(case: Case) -> dict[str, float]:
    """Make what the other measurements work on; nothing is measured."""
    from tta_bench.store import records

    make_images(case.folder / "images")
    made = planned(case, case.trials)
    case.run.mkdir()
    records.write_plan(case.run, made)
    with fsyncs(lambda _: None):  # nobody needs this run after a power cut
        for trial in made.trials:
            records.write(case.run, canned(trial, case.batches), trial.asked, 0)
    return {}


@contextmanager
def fsyncs(instead: Callable[[int], None]) -> Iterator[None]:
    """``os.fsync`` is something else."""
    before = os.fsync
    os.fsync = instead  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = before


@contextmanager
def stopwatch(name: str) -> Iterator[dict[str, float]]:
    """Seconds of the wall clock under ``name``, and of the processor, which other programs disturb less: of this process
    and those that it has waited for.
    """
    found: dict[str, float] = {}
    wall, processor = time.perf_counter(), time.process_time() + _of_children()
    yield found
    found |= {name: time.perf_counter() - wall, f"{name} processor": time.process_time() + _of_children() - processor}


def plan_cost(case: Case) -> dict[str, float]:
    """Seconds that planning takes."""
    _import_all()
    with stopwatch("plan") as found:
        planned(case, case.planned)
    return found


def resume_cost(case: Case) -> dict[str, float]:
    """Seconds of ``tta-bench run`` where every trial is finished."""
    _import_all()
    from tta_bench.commands import run as sweep

    options = sweep.Options(str(case.suite(case.trials)), out=str(case.run))
    with stopwatch("resume") as found:
        code = sweep.run(options, resume="")
    assert code == 0
    return found


def load_cost(case: Case) -> dict[str, float]:
    """Seconds of reading the finished run."""
    _import_all("pyarrow.parquet", "tta_bench.store.results")
    from tta_bench.store import results

    with stopwatch("load") as found:
        loaded = results.load(case.run)
    assert loaded.counts == {"ok": case.trials}
    assert len(loaded.batches) == case.trials * case.batches
    return found


def write_cost(case: Case) -> dict[str, float]:
    """Milliseconds of writing a trial's result: of the processor, of the wall clock, and waiting for the disk."""
    _import_all()
    from tta_bench.store import records

    trials = planned(case, case.trials).trials[:1000]
    made = [canned(trial, case.batches) for trial in trials]
    waited, sync = 0.0, os.fsync

    def timed(descriptor: int) -> None:
        nonlocal waited
        start = time.perf_counter()
        sync(descriptor)
        waited += time.perf_counter() - start

    folder = case.empty_folder()
    with fsyncs(timed):
        wall, processor = time.perf_counter(), time.process_time()
        for trial, result in zip(trials, made, strict=True):
            records.write(folder, result, trial.asked, 0)
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
    per_trial = 1e3 / len(trials)
    return {"write": processor * per_trial, "write wall": wall * per_trial, "write fsync": waited * per_trial}


def driver_cost(case: Case) -> dict[str, float]:
    """Milliseconds of the driver's processor for a trial that does nothing: a ``tta-bench run`` on Ray, shared out."""
    _import_all()
    from tta_bench.commands import run as sweep
    from tta_bench.schedule import cluster

    class Idle(cluster.Worker):
        """A worker whose trials cost nothing, and say so; Ray sends this class to its processes."""

        def run(self, trial: Trial) -> TrialResult:
            start = time.perf_counter()
            result = canned(trial, case.batches)
            return dataclasses.replace(result, facts={**result.facts, "trial_s": time.perf_counter() - start})

    cluster.Worker = Idle  # type: ignore[misc]
    out = case.empty_folder()
    options = sweep.Options(str(case.suite(case.trials)), out=str(out), cache="off")
    wall, processor, thread = time.perf_counter(), time.process_time(), time.thread_time()
    code = sweep.run(options, resume="")
    spent = {"driver": time.process_time() - processor, "driver wall": time.perf_counter() - wall,
             "driver without Ray's threads": time.thread_time() - thread}  # fmt: skip
    assert (code, len(list((out / "trials").glob("*.json")))) == (0, case.trials)
    return {name: 1e3 * seconds / case.trials for name, seconds in spent.items()}


def _of_children() -> float:
    """Seconds of the processor that processes started here, and ended, have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _import_all(*more: str) -> None:
    """What the commands import when they need it: no figure is about the time that takes."""
    names = ["tta_bench.torchvision_repair", "timm", "PIL.Image", "ray", "tta_bench.methods.eata",
             "tta_bench.commands.run", "tta_bench.schedule.cluster", "tta_bench.schedule.pool"]  # fmt: skip
    for name in (*names, *more):
        importlib.import_module(name)
    IMPORTED.append(peak_memory())


def peak_memory() -> float:
    """MB of resident memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# -- printing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """How a figure is made and judged.

    Attributes:
        measure: returns the figure under its own name, and what is printed beside it.
        what: in words; ``{n}`` is the number of trials.
        unit: of the figure.
        limit: that the figure must keep, or None.
        memory: limit of the peak of resident memory in MB, or None.
    """

    measure: Callable[[Case], dict[str, float]]
    what: str
    unit: str
    limit: float | None
    memory: float | None = None


FIGURES = {
    "plan": Figure(plan_cost, "planning {planned:,} trials", "s", 10.0),
    "resume": Figure(resume_cost, "resuming a finished run of {trials:,} trials", "s", 5.0),
    "load": Figure(load_cost, "results.load of it", "s", 5.0),
    "write": Figure(write_cost, "results.write of a trial, processor", "ms", None),
    "driver": Figure(driver_cost, "tta-bench run of {trials:,} trials of no work, driver", "ms", 1.0, 500.0),
}


def in_a_fresh_process(name: str, case: Case) -> dict[str, float]:
    """What a measurement returns, with ``peak``: MB of resident memory at most."""
    command = [sys.executable, __file__, "--measure", name, "--folder", str(case.folder), "--trials", str(case.trials),
               "--planned", str(case.planned), "--batches", str(case.batches)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"measuring {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure_here(name: str, case: Case) -> None:
    """Measure, and print the figures as JSON in one line."""
    found = make_run(case) if name == "run" else FIGURES[name].measure(case)
    print(json.dumps({**found, "peak": peak_memory(), "imports": IMPORTED[0] if IMPORTED else 0.0}))


def report(name: str, case: Case, repeats: int) -> bool:
    """Print one figure; returns whether its limits are kept."""
    figure = FIGURES[name]
    found = [in_a_fresh_process(name, case) for _ in range(repeats)]
    value, peak, imports = (statistics.median(f[key] for f in found) for key in (name, "peak", "imports"))
    beside = [key for key in found[0] if key not in (name, "peak", "imports")]
    more = "".join(f", {k.removeprefix(name)[1:]} {statistics.median(f[k] for f in found):.2f}" for k in beside)
    limit = f" (limit {figure.limit:g})" if figure.limit else ""
    most = f" (limit {figure.memory:g})" if figure.memory else ""
    what = figure.what.format(planned=case.planned, trials=case.trials)
    memory = f"peak {peak:.0f} MB{most}, {imports:.0f} by imports"
    print(f"{what:55} {value:7.2f} {figure.unit}{limit}{more}; {memory}", flush=True)
    return not ((figure.limit and value > figure.limit) or (figure.memory and peak > figure.memory))


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--figures", default=",".join(FIGURES), help="some of " + ",".join(FIGURES))
    parser.add_argument("--trials", type=int, default=10_000, help="of the finished run")
    parser.add_argument("--planned", type=int, default=100_000, help="trials to plan")
    parser.add_argument("--batches", type=int, default=5, help="of 64 images, in each finished trial")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is exceeded")
    parser.add_argument("--measure", choices=["run", *FIGURES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.measure:
        measure_here(options.measure, Case(options.folder, options.trials, options.planned, options.batches))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        case = Case(pathlib.Path(folder), options.trials, options.planned, options.batches)
        figures = options.figures.split(",")
        in_a_fresh_process("run", case)
        print(f"{case.batches} batches of {BATCH} images a trial, {options.repeats} repeats, {os.cpu_count()} CPUs")
        kept = [report(name, case, options.repeats) for name in figures]
    return int(options.check and not all(kept))


if __name__ == "__main__":
    sys.exit(main())
