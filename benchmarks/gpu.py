"""Images a second of every method on a GPU, in each mode, against bare loops in the same process.

    python benchmarks/gpu.py [--models vit_base_patch16_224,resnet50_gn] [--methods tent,eata] [--modes float32,…]
                             [--trials] [--seconds 1.5] [--out gpu.csv]

Batches of 64 random images of 224² pixels that lie on the device; random weights; every sample passes the filters of eta,
eata, sar and deyo, whose margins are raised. A method's steps run under the harness's engine, a bare loop is what a script
would have: the network, the loss, the optimizer. Each number is the median of three repetitions of at least ``--seconds``
that alternate with those of the bare loop. ``--trials`` runs whole trials instead, with supervisor, shared memory, images
from the cache and grading; images a second are of the difference of a long and a short one, without start and compilation,
the median of five pairs.
The method ``nothing`` takes images and computes nothing: the speed of their way to the device.
"""

from __future__ import annotations

import argparse
import collections
import copy
import csv
import dataclasses
import itertools
import pathlib
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import safetensors.torch
import torch
from noise_images import SIDE
from torch import Tensor

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench import suite
from tta_bench.adapter import context_for
from tta_bench.data.cache import ImageCache
from tta_bench.methods.early_norms import frozen_by_name
from tta_bench.methods.functional import adapt_norm_affine, softmax_entropy
from tta_bench.models import SourceModel
from tta_bench.precision import Mode
from tta_bench.registry import Registry
from tta_bench.run.engine import Engine, prepare_compiler
from tta_bench.run.global_state import set_global_state
from tta_bench.run.meters import PassCounter
from tta_bench.run.runner import Supervisor
from tta_bench.run.server import own_server
from tta_bench.suite import plan
from tta_bench.testing.replay import prepared

BATCH = 64
AHEAD = 3  # steps
PAIRS = 5  # of a short and a long trial
CACHE = pathlib.Path(tempfile.gettempdir()) / "tta-bench-gpu"  # images and compiled code
MODES = {
    "float32": Mode(),
    "float32, any algorithm": Mode(deterministic=False),
    "tf32": Mode("tf32", deterministic=False),
    "bfloat16": Mode("bfloat16", deterministic=False),
    "compiled": Mode("bfloat16", "on", deterministic=False),
}
METHODS: dict[str, dict[str, Any]] = {  # hyperparameters with which every sample counts
    "source": {}, "norm": {}, "tent": {}, "eta": {"entropy_margin": 10.0, "d_margin": 2.0},
    "eata": {"entropy_margin": 10.0, "d_margin": 2.0, "fisher_images": 64},
    "sar": {"entropy_margin": 10.0, "recovery_threshold": -1.0},
    "deyo": {"entropy_margin": 10.0, "deyo_margin": 10.0, "plpd_threshold": -2.0}, "rdumb": {}, "roid": {}, "cmf": {},
    "cotta": {}, "rotta": {}, "note": {}, "shot": {}, "lame": {}, "t3a": {}, "memo": {"num_views": 4}, "foa": {},
    "mgg": {},
}  # fmt: skip


def bare_step(
    method: str, model: SourceModel, forward: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    """A step as a plain script has it, or None where the method is no such script."""
    if method == "source":
        return torch.no_grad()(forward)
    if method not in ("tent", "eata", "sar"):
        return None
    parameters = adapt_norm_affine(model)
    if method == "sar":
        late = [*itertools.chain.from_iterable(layer.parameters() for layer in frozen_by_name(model))]
        parameters = [p for p in parameters if not any(p is other for other in late)]
        for parameter in late:
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    anchors = [p.detach().clone() for p in parameters]

    def tent(x: Tensor) -> Tensor:
        logits = forward(x)
        loss = softmax_entropy(logits).mean()
        if method == "eata":
            loss = loss + 2000.0 * sum((0.1 * (p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return logits.detach()

    def sar(x: Tensor) -> Tensor:
        logits = forward(x)
        softmax_entropy(logits).mean().backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
            start = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.add_(p.grad * (0.05 / (norm + 1e-12)))
        optimizer.zero_grad()
        softmax_entropy(forward(x)).mean().backward()
        with torch.no_grad():
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
        optimizer.step()
        optimizer.zero_grad()
        return logits.detach()

    return sar if method == "sar" else tent


def bare_forward(model: SourceModel, mode: Mode, method: str) -> Callable[[Tensor], Tensor]:
    """The network as a plain script calls it in a mode: under autocast, or compiled (sar without CUDA graphs)."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=mode.precision == "bfloat16"):
            return model(x).float()

    if mode.compile == "off":
        return forward
    compiled = torch.compile(forward, dynamic=False, mode="default" if method == "sar" else "reduce-overhead")
    return lambda x: compiled(x).clone()


class Bench:
    """One network in one mode."""

    def __init__(self, architecture: str, mode: Mode, seconds: float):
        import timm

        set_global_state(2, mode)
        torch.manual_seed(0)
        self.mode, self.seconds = mode, seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net = timm.create_model(architecture).eval().requires_grad_(False)
        self.pristine = SourceModel(net, (0.5,) * 3, (0.5,) * 3).to(self.device).eval()
        self.batches = [torch.rand(BATCH, 3, SIDE, SIDE, device=self.device) for _ in range(4)]
        self.counter = PassCounter(self.pristine)
        self.engine = Engine(mode, self.device, self.counter)

    def ours(self, method: str) -> Callable[[Tensor], Tensor] | str:
        """The method's step under the engine, or why it cannot run."""
        cls = Registry().load(method)
        model = copy.deepcopy(self.pristine)
        if self.engine.is_needed:
            model.engine = self.engine
        config = cls.Config.model_validate({**cls.example, **METHODS[method]})
        context = context_for(model, BATCH, SIDE, self.device, 0)
        if reason := cls.skip(model, config, context):
            return reason
        self.engine.begin(BATCH)
        self.adapter = prepared(cls(model, config, context), iter(self.batches[:1]), self.engine.adjust)
        return self.adapter.step

    def bare(self, method: str) -> Callable[[Tensor], Tensor] | None:
        """A plain script's step."""
        model = copy.deepcopy(self.pristine)
        step = bare_step(method, model, bare_forward(model, self.mode, method))
        if step and self.mode.precision == "bfloat16" and self.mode.compile == "on":
            self.engine.store_frozen(argparse.Namespace(model=model))  # as GPU code at its best has it
        return step

    def rates(self, steps: list[Callable[[Tensor], Tensor]]) -> list[float]:
        """Images a second of steps that take turns, medians of three."""
        for step in steps:
            for x in (2 if self.mode.compile == "on" else 1) * self.batches:
                step(x.clone())
        measured = [[self._rate(step) for step in steps] for _ in range(3)]
        return [statistics.median(column) for column in zip(*measured, strict=True)]

    def _rate(self, step: Callable[[Tensor], Tensor]) -> float:
        torch.cuda.synchronize()
        start, done, running = time.perf_counter(), 0, collections.deque[Any]()
        for x in itertools.cycle(self.batches):
            step(x)
            done += 1
            running.append(torch.cuda.current_stream().record_event())
            if len(running) > AHEAD:  # the host launches so many steps ahead, as in a trial
                running.popleft().synchronize()
            if time.perf_counter() - start > self.seconds:
                break
        torch.cuda.synchronize()
        return done * BATCH / (time.perf_counter() - start)


@dataclasses.dataclass
class Row:
    """A line of the table: images a second, the bare loop's, and their ratio."""

    model: str
    method: str
    mode: str
    images_per_s: float | None = None
    bare_images_per_s: float | None = None
    ratio: float | None = None
    peak_mib: float | None = None
    remark: str = ""

    def text(self) -> str:
        """As printed."""
        number = lambda value, spec: "" if value is None else format(value, spec)  # noqa: E731
        return (f"{self.model:22} {self.method:8} {self.mode:24} {number(self.images_per_s, ',.0f'):>8} "
                f"{number(self.bare_images_per_s, ',.0f'):>8} {number(self.ratio, '.3f'):>6} "
                f"{number(self.peak_mib, ',.0f'):>7} {self.remark}")  # fmt: skip


def steps(models: list[str], methods: list[str], modes: list[str], seconds: float) -> Iterator[Row]:
    """Rows of methods' steps against bare loops."""
    for architecture in models:
        for name in modes:
            bench = Bench(architecture, MODES[name], seconds)
            for method in methods:
                row = Row(architecture, method, name)
                try:
                    _measure(bench, row)
                except Exception as error:  # the rest of the table is wanted
                    row.remark = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.150}"
                    traceback.print_exc()
                yield row
            torch._dynamo.reset()


def _measure(bench: Bench, row: Row) -> None:
    ours, bare = bench.ours(row.method), bench.bare(row.method)
    if isinstance(ours, str):
        row.remark = ours
        return
    torch.cuda.reset_peak_memory_stats()
    (row.images_per_s,) = bench.rates([ours])
    row.peak_mib = torch.cuda.max_memory_allocated() / 2**20
    if bare is not None:
        row.images_per_s, row.bare_images_per_s = bench.rates([ours, bare])
        row.ratio = row.images_per_s / row.bare_images_per_s
    row.remark = bench.engine.facts().get("not_compiled", "")


SUITE = """
name: noise
plugins: [{plugin}]
data: {{kind: noise, images: 2048}}
corruptions: [clean]
models: [{{name: net, architecture: {architecture}, weights: "{weights}", mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}]
methods: [{methods}]
batch_size: 64
protocol:    # one segment each
  - {{kind: recurring, variant: petta, delta: 10.0, visits: 6}}
  - {{kind: recurring, variant: petta, delta: 10.0, visits: 42}}
precision: {mode.precision}
compile: {compile}
deterministic: {deterministic}
"""


def trials(models: list[str], methods: list[str], modes: list[str], seconds: float) -> Iterator[Row]:
    """Rows of whole trials, beside bare loops that ``seconds`` are for."""
    import timm

    for architecture in models:
        folder = pathlib.Path(tempfile.mkdtemp())
        torch.manual_seed(0)
        safetensors.torch.save_file(timm.create_model(architecture).state_dict(), folder / "weights.safetensors")
        for name in modes:
            made = _planned(folder, architecture, methods, MODES[name])
            cache = ImageCache(CACHE)
            cache.build(cache.to_build(made.cache_entries()), processes=8)
            supervisor = Supervisor(made.materials, cache, 4, own_server())
            bench = Bench(architecture, MODES[name], seconds)
            for method in methods:
                row = Row(architecture, method, f"{name}, trial")
                torch.set_num_threads(1)  # as a worker does, which grades in this process
                _run_trials(supervisor, [trial for trial in made.trials if trial.label == method], row)
                supervisor.end_child()
                if row.images_per_s and (bare := bench.bare(method)):
                    (row.bare_images_per_s,) = bench.rates([bare])
                    row.ratio = row.images_per_s / row.bare_images_per_s
                yield row


def _run_trials(supervisor: Supervisor, trials: list[plan.Trial], row: Row) -> None:
    """Fill in the speed of whole trials, a short and a long one, which are repeated."""
    short, long = trials
    results = [supervisor.run(trial) for trial in (short, *PAIRS * (short, long))]
    row.remark = results[0].reason or str(results[0].facts.get("not_compiled") or "")
    if any(result.status != "ok" for result in results):
        return
    images = [sum(s["images"] for s in result.segments) for result in results]
    walls = [result.facts["trial_s"] for result in results]
    extra = [longer - shorter for shorter, longer in zip(walls[1::2], walls[2::2], strict=True)]
    row.images_per_s = statistics.median((images[2] - images[1]) / more for more in extra)
    row.peak_mib = max(s["peak_memory_mib"] or 0 for s in results[-1].segments)
    row.remark += f" start {walls[3] - images[3] / row.images_per_s:.1f} s, first {walls[0]:.1f} s"
    row.remark += f" step {statistics.median(s['images_per_s'] for s in results[-1].segments):,.0f}"
    row.remark += f" data {statistics.median(s['data_ms_median'] for s in results[-1].segments):.2f} ms"
    row.remark += f" {results[-1].facts.get('global_changes', '')}"


def _planned(folder: pathlib.Path, architecture: str, methods: list[str], mode: Mode) -> plan.Plan:
    entries = ", ".join(f"{{name: {name}, config: {METHODS.get(name, {})}}}" for name in methods)
    text = SUITE.format(plugin=pathlib.Path(__file__).with_name("noise_images.py"), architecture=architecture,
                        weights=folder / "weights.safetensors", methods=entries, mode=mode,
                        compile=mode.compile, deterministic=str(mode.deterministic).lower())  # fmt: skip
    file = folder / "noise.yaml"
    file.write_text(text)
    return plan.make(suite.load(str(file)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="vit_base_patch16_224,resnet50_gn")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--modes", default=";".join(MODES), help="separated by semicolons")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--trials", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu.csv"))
    options = parser.parse_args()
    prepare_compiler(torch.device("cuda"), CACHE / "compiled")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    lists = options.models.split(","), options.methods.split(","), options.modes.split(";")
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        for row in (trials if options.trials else steps)(*lists, options.seconds):
            print(row.text(), flush=True)
            writer.writerow(dataclasses.asdict(row))
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
