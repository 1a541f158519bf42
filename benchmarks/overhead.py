"""Overhead of the harness: whole trials compared with bare loops over the same tensors, and the cost of isolation.

    CIFAR10=PATH CIFAR10_MODELS=PATH python benchmarks/overhead.py [--pairs 7] [--model resnet18_bn] [--check 5]

Each pair runs a bare loop in this process and a whole trial in a method's process (deep copy of the model, hooks,
snapshot, images from the warm cache through shared memory, meters, grading), in alternating order. Prints the medians of
both and the median of the pairs' ratios, then the time until a method's process has the source model, and the memory of
twelve such processes (proportional set size). ``--check P`` exits 1 if the median overhead is above P per cent.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tta_bench import suite
from tta_bench.data.cache import ImageCache, default_root
from tta_bench.models import SourceModel
from tta_bench.run import child
from tta_bench.run.loading import to_tensor
from tta_bench.run.messages import ChildSetup
from tta_bench.run.runner import Supervisor
from tta_bench.run.server import ForkServer, own_server
from tta_bench.suite import plan
from tta_bench.suite.plan import Trial

THREADS = 2


def bare_source(model: SourceModel, batches: list[Tensor], labels: list[Tensor]) -> float:
    """Error of the plain model, per cent."""
    wrong = 0
    with torch.no_grad():
        for x, y in zip(batches, labels, strict=True):
            wrong += int((model(x).argmax(1) != y).sum())
    return 100.0 * wrong / sum(map(len, labels))


def bare_tent(model: SourceModel, batches: list[Tensor], labels: list[Tensor]) -> float:
    """Error of Tent with Adam, per cent, as a plain script would compute it; changes the model."""
    model.train()
    parameters = []
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            parameters += [module.weight.requires_grad_(), module.bias.requires_grad_()]
    optimizer, wrong = torch.optim.Adam(parameters, lr=1e-3), 0
    for x, y in zip(batches, labels, strict=True):
        logits = model(x)
        (-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        wrong += int((logits.argmax(1) != y).sum())
    return 100.0 * wrong / sum(map(len, labels))


BARE = {"source": bare_source, "tent": bare_tent}


def timed(function: Callable[[], float]) -> tuple[float, float]:
    """(seconds, returned value)."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def compare(trial: Trial, bench: Supervisor, pairs: int) -> float:
    """Print one line for a trial; returns the median overhead of the harness, per cent of the bare loop."""
    stream, data = bench.streams.build(trial.model, trial.stream), bench.materials.datasets[trial.model]
    images = bench.cache.images(bench.materials.cache_entry(trial.model, trial.stream, trial.stream.shifts[0]))
    numbers = [stream.batch(i).image for i in range(len(stream.bounds) - 1)]
    batches = [to_tensor(images.take(n), torch.device("cpu"), torch.float32) for n in numbers]
    labels = [torch.from_numpy(data.labels[n]) for n in numbers]
    pristine = bench.materials.models[trial.model].load()

    def bare() -> tuple[float, float]:
        model = copy.deepcopy(pristine)  # not timed
        return timed(lambda: BARE[trial.method](model, batches, labels))

    def whole() -> tuple[float, float]:
        return timed(lambda: float(bench.run(trial).shifts[0]["error_pct"]))

    bare(), whole()  # warm-up
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        first, second = (bare, whole) if number % 2 == 0 else (whole, bare)
        results = {function: function() for function in (first, second)}
        assert abs(results[bare][1] - results[whole][1]) < 1e-9, "both must compute the same thing"
        times.append((results[bare][0], results[whole][0]))
    cost = 100.0 * (statistics.median(w / b for b, w in times) - 1.0)
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"{trial.method:8} bare {seconds[0]:7.3f} s   trial {seconds[1]:7.3f} s   overhead {cost:+.1f} %")
    return cost


def starts(bench: Supervisor, trial: Trial, server: ForkServer, count: int = 12) -> None:
    """Print start-up time and memory of methods' processes."""
    network, sha256 = bench.materials.models[trial.model], trial.asked["model"]["weights_sha256"]
    setup = ChildSetup(
        trial.method, network, sha256, trial.mode, bench.materials.registry, 1, bench.materials.folder, ""
    )
    processes, seconds = [], []
    for _ in range(count):
        start = time.perf_counter()
        processes.append(server.fork(child.serve, setup, "/dev/null"))
        processes[-1].connection.recv()
        seconds.append(time.perf_counter() - start)
    memory = [pss_mib(process.pid) for process in processes]
    ready = 1e3 * statistics.median(seconds)
    print(f"a process is ready after {ready:.0f} ms; {count} at a time take {statistics.median(memory):.0f} MiB each")
    for process in processes:
        process.end()


def pss_mib(pid: int) -> float:
    """Proportional set size of a process, MiB."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--model", default="resnet18_bn")
    parser.add_argument("--check", type=float, help="exit 1 above this overhead, per cent")
    options = parser.parse_args()
    sets = [
        "batch_size=100",
        "corruptions=[contrast]",
        "methods=[source, {name: tent, config: {optimizer: adam, lr: 1e-3}}]",
    ]
    made = plan.make(suite.load("cifar10_c", sets=sets), limit=2000)
    cache = ImageCache(default_root())
    cache.build(cache.to_build(made.cache_entries()), processes=THREADS)
    torch.set_num_threads(THREADS)
    bench = Supervisor(made.materials, cache, THREADS, own_server())
    print(f"{options.model}, 2,000 images, batch 100, {THREADS} threads, warm cache, {options.pairs} pairs")
    costs = [compare(trial, bench, options.pairs) for trial in made.trials if trial.model == options.model]
    starts(bench, made.trials[0], own_server())
    return int(options.check is not None and max(costs) > options.check)


if __name__ == "__main__":
    sys.exit(main())
