"""Batches on their way to the device: on a GPU the next one travels while the method works on this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

B = TypeVar("B")


def loaded(
    batches: Iterable[B], fetch: Callable[[B], Tensor], device: torch.device, ahead: bool
) -> Iterator[tuple[B, Tensor, float]]:
    """Each batch with its tensor and the milliseconds that were spent waiting for it.

    Args:
        batches: what to fetch.
        fetch: makes the tensor on the device; with ``ahead`` it is called in another thread, one batch early.
        device: where tensors go; on a GPU, copies made ahead have a stream of their own.
        ahead: whether to fetch early.
    """
    if not ahead:
        for batch in batches:
            start = time.perf_counter()
            x = fetch(batch)
            yield batch, x, (time.perf_counter() - start) * 1e3
        return
    early = _Early(fetch, device)
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        waiting: tuple[B, Future[tuple[Tensor, torch.cuda.Event | None]]] | None = None
        for batch in batches:
            started = (batch, thread.submit(early.fetch, batch))
            if waiting is not None:
                yield early.arrived(*waiting)
            waiting = started
        if waiting is not None:
            yield early.arrived(*waiting)


class _Early:
    """Fetches in another thread, and on a GPU on another stream, which the method's stream then waits for."""

    def __init__(self, fetch: Callable[[B], Tensor], device: torch.device):
        self._fetch = fetch
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(self, batch: B) -> tuple[Tensor, torch.cuda.Event | None]:
        if self._stream is None:
            return self._fetch(batch), None  # type: ignore[arg-type]
        with torch.cuda.stream(self._stream):
            x = self._fetch(batch)  # type: ignore[arg-type]
            return x, self._stream.record_event()

    def arrived(self, batch: B, future: Future[tuple[Tensor, torch.cuda.Event | None]]) -> tuple[B, Tensor, float]:
        start = time.perf_counter()
        x, event = future.result()
        if event is not None:
            current = torch.cuda.current_stream(x.device)
            current.wait_event(event)
            x.record_stream(current)  # or its memory could be given away while the method still reads it
        return batch, x, (time.perf_counter() - start) * 1e3


def to_tensor(pixels: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, 3) to a fresh tensor (B, 3, H, W) in [0, 1] on ``device``."""
    held = torch.from_numpy(pixels)
    if device.type == "cuda":
        held = held.pin_memory()  # else the copy would make the host wait
    planes = held.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
    return planes.to(dtype).div_(255)
