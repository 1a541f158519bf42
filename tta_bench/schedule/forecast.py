"""What ``run --dry-run`` says of hours and memory: from one measured pass of each source model on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_bench.models import SourceModel
from tta_bench.schedule.queue import Estimates
from tta_bench.schedule.tally import duration
from tta_bench.suite.plan import Plan, Trial

_IMAGES = 8  # that are passed through a model: enough to see its speed, quick on a CPU


@dataclass(frozen=True)
class Cost:
    """Attributes: seconds: of a forward pass, an image; weights, activations: bytes; activations of one image, kept for a
    backward pass.
    """

    seconds: float
    weights: int
    activations: int


def measure(model: SourceModel, side: int, device: torch.device) -> Cost:
    """Pass some images of ``side`` pixels through ``model``, twice; the second pass counts."""
    model = model.to(device)
    x = torch.zeros(_IMAGES, 3, side, side, device=device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    with torch.no_grad():
        _wait(device)
        start = time.perf_counter()
        model(x)
        _wait(device)
    seconds = (time.perf_counter() - start) / _IMAGES
    saved = sum(size for place, size in kept.items() if place not in weights)
    return Cost(seconds, sum(weights.values()), saved // _IMAGES)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forecast(plan: Plan, trials: Sequence[Trial], estimates: Estimates, threads: int, slots: int) -> str:
    """Hours and memory that ``trials`` are expected to take, in two lines.

    Args:
        plan: of the run.
        trials: that are to run.
        estimates: knows what trials of earlier sessions took; takes in what is measured here.
        threads: CPU threads of a trial.
        slots: trials that run at a time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    costs = {}
    for name in dict.fromkeys(t.model for t in trials):
        costs[name] = measure(plan.materials.models[name].load(), plan.materials.datasets[name].side, device)
        estimates.measured(name, costs[name].seconds)
    torch.set_num_threads(before)
    total = sum(estimates.seconds(t) for t in trials)
    batch = max(t.stream.batch_size for t in trials)
    memory = {name: 3 * cost.weights + batch * cost.activations for name, cost in costs.items()}
    most = max(memory, key=lambda name: memory[name])
    kind = "GPU" if device.type == "cuda" else "CPU"
    return (
        f"  about {duration(total / slots)} here, {slots} at a time (each model's forward pass was timed, "
        f"a backward pass is taken for two)\n"
        f"  about {memory[most] / 2**30:.1f} GiB of {kind} memory a trial for {most}, with a batch of {batch} "
        f"kept for a backward pass, besides the libraries"
    )
