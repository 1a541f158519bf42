"""Cost of MGG's optimizer: its step compared with the forward and backward pass of the adapted network.

    python benchmarks/mgg_step.py [--model vit_base_patch16_224] [--batch 64] [--pairs 5] [--device cuda] [--check 5]

Each pair times one forward and backward pass of the whole objective (entropy + alignment) and one step of the optimizer
(moments, memory layer, update). Prints medians, and the median of the ratios of pairs. The network has random weights,
which do not affect the cost. On a GPU the step must also pass torch's check for operations that synchronize with the host.
``--check P`` exits 1 if the step takes more than P per cent.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench.methods import alignment, mgg_memory
from tta_bench.methods.functional import adapt_norm_affine
from tta_bench.methods.mgg_optimizer import MGG
from tta_bench.models import SourceModel

THREADS = 2


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has finished ``function``."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def no_synchronization(device: torch.device) -> Iterator[None]:
    """Make operations that synchronize with the host raise."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--check", type=float, help="exit 1 above this cost of a step, per cent")
    options = parser.parse_args()
    import timm

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    device = torch.device(options.device)
    net = timm.create_model(options.model, pretrained=False).requires_grad_(False)
    model = SourceModel(net, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to(device).train()
    parameters = adapt_norm_affine(model)
    optimizer = MGG(parameters, 1e-3, mgg_memory.initial_parameters(torch.Generator().manual_seed(0)))
    x = torch.rand(options.batch, 3, 224, 224, device=device)
    with torch.no_grad():
        width = alignment.logits_and_features(model, x[:2])[1].shape[1]
    statistics_ = torch.zeros(width, device=device), torch.ones(width, device=device)

    def passes() -> None:
        optimizer.zero_grad()
        alignment.objective(model, x, statistics_, 0.4)[1].backward()

    for _ in range(2):  # warm-up
        passes()
        optimizer.step()
    with no_synchronization(device):
        optimizer.step()
    times = [(timed(passes, device), timed(optimizer.step, device)) for _ in range(options.pairs)]
    both, step = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    share = 100.0 * statistics.median(s / b for b, s in times)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {THREADS} threads"
    print(f"{options.model}, {sum(p.numel() for p in parameters):,} coordinates, batch {options.batch}, {where}")
    print(f"forward and backward {both:.1f} ms, optimizer's step {step:.2f} ms: {share:.2f} % ({options.pairs} pairs)")
    if device.type == "cuda":
        print("the step never synchronizes with the host")
    return int(options.check is not None and share > options.check)


if __name__ == "__main__":
    sys.exit(main())
