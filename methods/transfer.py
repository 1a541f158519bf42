"""Numbers between host and device for which nothing waits: the device keeps working while the host launches its kernels.

A copy from ordinary memory, and every read of a number (``item``, ``nonzero``, a boolean index), makes the host wait until
the device has done all that was launched before. docs/methods.md lists the waits that are left, and the rules behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host, such as random draws, to ``device``, behind what was launched before."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal draws of ``shape``, float32, by a generator of the host, copied as by :func:`to_device`."""
    pinned = device.type == "cuda"  # torch uses pinned memory again; ordinary memory would be new pages for each batch
    return torch.randn(shape, generator=generator, pin_memory=pinned).to(device, non_blocking=True)


def fetch(values: Tensor) -> Callable[[], Any]:
    """Start to copy a tensor to the host.

    Returns:
        A function that waits for the copy, but for nothing that was launched after it, and returns ``values.tolist()``.
    """
    if not values.is_cuda:
        return values.tolist
    copy = values.detach().to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(values.device).record_event()

    def wait() -> Any:
        copied.synchronize()
        return copy.tolist()

    return wait
