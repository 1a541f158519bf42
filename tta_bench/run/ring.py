"""Memory that a supervisor and its child share: slots for the pixels of batches, and for their scores."""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import tempfile
from collections.abc import Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

SLOTS = 4  # batches on their way at a time


class Size(NamedTuple):
    """Attributes: images: most images of a batch; side: height and width, pixels; classes: number of classes."""

    images: int
    side: int
    classes: int

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of all slots for pixels."""
        return (SLOTS, self.images, self.side, self.side, 3)

    @property
    def scores(self) -> tuple[int, ...]:
        """Shape of all slots for scores."""
        return (SLOTS, self.images, self.classes)

    @property
    def scores_start(self) -> int:
        """Where scores begin, bytes; at a page."""
        return -(-int(np.prod(self.pixels)) // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.scores_start + 4 * int(np.prod(self.scores))


class Ring:
    """The slots, as arrays over shared memory that has no name and goes with its last user.

    Attributes:
        pixels: (SLOTS, images, side, side, 3) uint8.
        scores: (SLOTS, images, classes) float32.
    """

    def __init__(self, descriptor: int, size: Size):
        self.size = size
        self.memory = mmap.mmap(descriptor, size.bytes)
        os.close(descriptor)
        count = int(np.prod(size.pixels))
        self.pixels = np.frombuffer(self.memory, np.uint8, count).reshape(size.pixels)
        scores = np.frombuffer(self.memory, np.float32, int(np.prod(size.scores)), size.scores_start)
        self.scores = scores.reshape(size.scores)


def offered(size: Size, other: Connection, pid: int) -> Ring:
    """A new ring, which the process ``pid`` at the other end takes with :func:`taken`.

    Raises:
        OSError: there is no memory for it.
    """
    descriptor = _memory(size.bytes)
    reduction.send_handle(other, descriptor, pid)
    return Ring(descriptor, size)


def taken(size: Size, other: Connection) -> Ring:
    """The ring that the process at the other end offers."""
    return Ring(reduction.recv_handle(other), size)


def _memory(size: int) -> int:
    """A file descriptor of so many bytes: in memory, or, where there is too little (containers), on disk."""
    try:
        return _allocated(size, "/dev/shm")
    except OSError:
        return _allocated(size, None)


def _allocated(size: int, folder: str | None) -> int:
    """A file without a name, in ``folder`` or that of temporary files; a page that it lacked later would end a process."""
    descriptor, name = tempfile.mkstemp(prefix="tta-bench-", dir=folder)
    pathlib.Path(name).unlink()
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def pinned(ring: Ring, device: torch.device) -> Iterator[None]:
    """On a GPU, make a ring pinned memory of this process for a while, so that copies from and to it need not wait.

    Raises:
        MemoryError: the system lends no more pinned memory.
    """
    if device.type != "cuda":
        yield
        return
    runtime: Any = torch.cuda.cudart()
    start = ring.pixels.ctypes.data
    if code := int(runtime.cudaHostRegister(start, ring.size.bytes, 0)):
        raise MemoryError(f"{ring.size.bytes} bytes cannot be pinned: CUDA error {code}")
    try:
        yield
    finally:
        torch.cuda.synchronize(device)
        runtime.cudaHostUnregister(start)
