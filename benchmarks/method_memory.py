"""Memory of methods on a stream of many classes: the process's, and what an adapter holds beside its network.

    python benchmarks/method_memory.py METHOD... [--images 50000] [--classes 1000]

Each method runs with its default hyperparameters in a process of its own, on the CPU, on a small random ResNet with
BatchNorm whose predictions spread over the classes. After each fifth of the stream it prints the process's resident
memory, the bytes of all tensors that the adapter's attributes lead to (supports, memories, teachers, optimizer state; not
the network, and not the copy for ``reset``), and the method's statistics. The images, 32×32, are made batch by batch from
a seed, so that the stream itself holds nothing. Linux only.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench import optimizers
from tta_bench.adapter import Adapter, context_for
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.registry import Registry
from tta_bench.testing import prepared

BATCH, SIZE, PARTS, THREADS = 64, 32, 5, 1
NORM = (0.5, 0.5, 0.5)
OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 128]}


def stream(images: int, seed: int) -> Iterator[Tensor]:
    """Whole batches (B, 3, 32, 32) in [0, 1] of smooth random colours.

    A short last one would take memory of its own: the kernels for convolutions of another size.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(0, images, BATCH):
        colours = torch.rand(BATCH, 3, 4, 4, generator=generator)
        yield nn.functional.interpolate(colours, size=SIZE, mode="bilinear")


@torch.no_grad()
def network(classes: int) -> SourceModel:
    """A random ResNet with BatchNorm statistics of such images; its classifier gives each class about as many of them."""
    torch.manual_seed(0)
    spec = ModelSpec(name="random", architecture="resnet18", options={**OPTIONS, "num_classes": classes}, stem="cifar")
    model = SourceModel(build_network(spec).requires_grad_(False), NORM, NORM).train()
    layers = [layer for layer in model.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    x = torch.cat([*stream(8 * BATCH, seed=1)])
    for layer in layers:
        layer.momentum = 1.0  # takes over the statistics of the batch
    model(x)
    for layer in layers:
        layer.momentum = 0.1
    features = model.eval().embeddings(x)[1]
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    whitening = vectors / values.clamp(min=1e-4 * float(values.max())).sqrt()
    classifier: Any = model.classifier()
    classifier.weight.copy_(torch.randn(classes, len(values)) @ whitening.T)
    classifier.bias.copy_(-classifier.weight @ features.mean(0))
    return model


def held_bytes(adapter: Adapter) -> int:
    """Bytes of the storages behind all tensors that the adapter's attributes lead to, without those of its network."""
    roots = {k: v for k, v in vars(adapter).items() if k not in ("model", "config", "context", "_initial")}
    own = {storage_of(tensor)[0] for tensor in (*adapter.model.parameters(), *adapter.model.buffers())}
    sizes = dict(storage_of(tensor) for tensor in tensors_within(roots))
    return sum(size for address, size in sizes.items() if address not in own)


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """(address, bytes) of the memory that a tensor lies in; of a view, all of the memory that it keeps alive."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def tensors_within(root: object) -> Iterator[Tensor]:
    """All tensors in an object's attributes and containers, and in theirs, with gradients."""
    waiting, seen = deque([root]), dict[int, object]()  # holds the objects, so that an id is not used again
    while waiting:
        value = waiting.popleft()
        if id(value) in seen or isinstance(value, type | str | bytes):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            yield value
            waiting.append(value.grad if value.is_leaf else None)
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | deque):
            waiting.extend(value)
        else:
            waiting.extend(getattr(value, "__dict__", {}).values())


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(method: str, images: int, classes: int) -> Iterable[str]:
    """Run a method over the stream; a line for each part of it."""
    model = network(classes)
    cls: type[Adapter] = Registry().load(method)
    context = context_for(model, BATCH, SIZE, torch.device("cpu"), seed=0)
    config = cls.Config()
    if reason := cls.skip(model, config, context):
        sys.exit(f"{method}: {reason}")
    adapter = cls(model, config, context)
    request = adapter.source_request()
    adapter = prepared(adapter, stream(request.images if request else 0, seed=2))
    images = -(-images // BATCH) * BATCH
    yield f"{method}: {images:,} images of {classes:,} classes in batches of {BATCH}"
    seen, part = 0, 1
    for x in stream(images, seed=3):
        adapter.step(x)
        seen += len(x)
        if seen * PARTS >= images * part:
            statistics = ", ".join(f"{name} {float(value):,.6g}" for name, value in optimizers.stats(adapter).items())
            memory = f"resident {resident_bytes() / 1e6:7,.0f} MB   held {held_bytes(adapter) / 1e6:8,.2f} MB"
            yield f"  {seen:7,} images   {memory}   {statistics}"
            part += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="a registered name")
    parser.add_argument("--images", type=int, default=50_000, help="rounded up to whole batches")
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        torch.set_num_threads(THREADS)
        for line in measure(options.methods[0], options.images, options.classes):
            print(line, flush=True)
        return 0
    sizes = ["--images", str(options.images), "--classes", str(options.classes)]
    commands = [[sys.executable, __file__, method, *sizes, "--here"] for method in options.methods]
    return max(subprocess.run(command, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
