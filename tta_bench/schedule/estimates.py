"""How long trials take: estimates from finished trials, and the forecast that ``run --dry-run`` prints."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_bench.models import SourceModel
from tta_bench.run.meters import synchronize
from tta_bench.schedule.status import duration
from tta_bench.setting import Setting
from tta_bench.suite.plan import Materials, Plan, Trial

SECONDS_PER_UNIT = 2e-11  # of images × passes × parameters, until a trial has finished
_TIMED_IMAGES = 8  # enough to measure a model's speed, quick on a CPU

RowKey = tuple[str, str, Setting]  # label, source model, setting without severities


def row_key(trial: Trial) -> RowKey:
    """What trials with the same duration per image share."""
    return trial.label, trial.model, _without_severities(trial.setting)


@functools.cache  # a queue of 10,000 trials asks for each of them whenever estimates change
def _without_severities(setting: Setting) -> Setting:
    return setting.without("severities")


def passes(materials: Materials, trial: Trial) -> int:
    """Cost of a step in forward passes; a backward pass counts as two."""
    cls = materials.registry.load(trial.method)
    return 3 if cls.needs.backward else 1  # type: ignore[attr-defined]


class Estimates:
    """Expected durations of trials, seconds.

    A trial's duration is estimated from finished trials of the same row of the suite, of this session or an earlier one;
    without any, from images × passes × parameters, scaled by all finished trials.
    """

    def __init__(self, materials: Materials):
        self._materials = materials
        self._seconds: dict[RowKey, float] = {}  # per image
        self._units: dict[RowKey, float] = {}  # per image
        self._forward: dict[str, float] = {}  # per image, by source model
        self._scale = SECONDS_PER_UNIT

    @property
    def known(self) -> bool:
        """Whether the duration of any trial is known."""
        return bool(self._seconds)

    def learn(self, trial: Trial, seconds: float) -> bool:
        """Record the duration of a finished trial; True if it is the first of its row, which changes other estimates."""
        key, per_image = row_key(trial), seconds / trial.stream.length
        first = key not in self._seconds
        self._seconds[key] = per_image if first else 0.8 * self._seconds[key] + 0.2 * per_image
        if first:
            self._units_per_image(trial)
            self._scale = statistics.median(s / self._units[k] for k, s in self._seconds.items())
        return first

    def learn_forward(self, model: str, seconds: float) -> None:
        """Record the measured duration of a source model's forward pass, per image."""
        self._forward[model] = seconds

    def seconds(self, trial: Trial) -> float:
        """Expected duration of ``trial``."""
        per_image = self._seconds.get(row_key(trial))
        if per_image is None and trial.model in self._forward:
            per_image = passes(self._materials, trial) * self._forward[trial.model]
        if per_image is None:
            per_image = self._scale * self._units_per_image(trial)
        return trial.stream.length * per_image

    def _units_per_image(self, trial: Trial) -> float:
        key = row_key(trial)
        if key not in self._units:
            self._units[key] = float(passes(self._materials, trial) * self._materials.parameters[trial.model])
        return self._units[key]


@dataclass(frozen=True)
class ModelCost:
    """Cost of a source model.

    Attributes:
        seconds: of a forward pass, per image.
        weights: bytes.
        activations: bytes kept for a backward pass, per image.
    """

    seconds: float
    weights: int
    activations: int


def measure(model: SourceModel, side: int, device: torch.device) -> ModelCost:
    """Measure ``model`` on images of ``side`` pixels, in two forward passes of which the second is timed."""
    model = model.to(device)
    x = torch.zeros(_TIMED_IMAGES, 3, side, side, device=device)
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model(x)
    with torch.no_grad():
        synchronize(device)
        start = time.perf_counter()
        model(x)
        synchronize(device)
    seconds = (time.perf_counter() - start) / _TIMED_IMAGES
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    return ModelCost(seconds, sum(weights.values()), activations // _TIMED_IMAGES)


def row_seconds(images: int, trials: int, image_s: float, first_s: float, at_once: int) -> float:
    """Expected duration of trials that are alike, spread evenly over what runs at the same time.

    Args:
        images: of all trials together.
        trials: number of them.
        image_s: seconds for each image.
        first_s: seconds that the first trial in a process takes on top; the others find what it has loaded and compiled.
        at_once: trials that run at the same time without sharing a device.
    """
    return (images * image_s + min(trials, at_once) * first_s) / at_once


def forecast(plan: Plan, trials: Sequence[Trial], estimates: Estimates, threads: int, slots: int) -> str:
    """Expected duration and memory of ``trials``, in two lines.

    Args:
        plan: of the run.
        trials: to be run.
        estimates: from earlier sessions; the measured forward passes are added to them.
        threads: CPU threads per trial.
        slots: trials that run at the same time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    costs = {}
    for name in dict.fromkeys(t.model for t in trials):
        costs[name] = measure(plan.materials.models[name].load(), plan.materials.datasets[name].side, device)
        estimates.learn_forward(name, costs[name].seconds)
    torch.set_num_threads(threads_before)
    total = sum(estimates.seconds(t) for t in trials)
    batch = max(t.step_size for t in trials)
    memory = {name: 3 * cost.weights + batch * cost.activations for name, cost in costs.items()}
    largest = max(memory, key=lambda name: memory[name])
    device_name = "GPU" if device.type == "cuda" else "CPU"
    return (
        f"  about {duration(total / slots)} on this machine, {slots} trials at a time (from a timed forward pass of each "
        f"model; a backward pass counts as two)\n"
        f"  up to {memory[largest] / 2**30:.1f} GiB of {device_name} memory per trial ({largest}, backward pass, "
        f"batch size {batch}), plus the libraries"
    )
