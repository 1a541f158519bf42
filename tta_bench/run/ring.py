"""Shared memory of a supervisor and its child: slots for the pixels and the scores of batches."""

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

SLOTS = 4  # batches in flight


class RingSize(NamedTuple):
    """Size of a ring.

    Attributes:
        images: images of the largest batch.
        side: height and width of an image, pixels.
        classes: number of classes.
    """

    images: int
    side: int
    classes: int

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of the pixel slots."""
        return (SLOTS, self.images, self.side, self.side, 3)

    @property
    def scores(self) -> tuple[int, ...]:
        """Shape of the score slots."""
        return (SLOTS, self.images, self.classes)

    @property
    def scores_start(self) -> int:
        """Offset of the scores, bytes; page-aligned."""
        return -(-int(np.prod(self.pixels)) // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def bytes(self) -> int:
        """Total size."""
        return self.scores_start + 4 * int(np.prod(self.scores))


class Ring:
    """The slots, as arrays over anonymous shared memory, which is freed with its last user.

    Attributes:
        pixels: (SLOTS, images, side, side, 3) uint8.
        scores: (SLOTS, images, classes) float32.
    """

    def __init__(self, descriptor: int, size: RingSize):
        self.size = size
        self.memory = mmap.mmap(descriptor, size.bytes)
        os.close(descriptor)
        count = int(np.prod(size.pixels))
        self.pixels = np.frombuffer(self.memory, np.uint8, count).reshape(size.pixels)
        scores = np.frombuffer(self.memory, np.float32, int(np.prod(size.scores)), size.scores_start)
        self.scores = scores.reshape(size.scores)


def send(size: RingSize, other: Connection, pid: int) -> Ring:
    """Allocate a ring and send it to process ``pid`` at the other end, which calls :func:`receive`.

    Raises:
        OSError: out of memory.
    """
    descriptor = _memory(size.bytes)
    reduction.send_handle(other, descriptor, pid)
    return Ring(descriptor, size)


def receive(size: RingSize, other: Connection) -> Ring:
    """The ring that the process at the other end sends."""
    return Ring(reduction.recv_handle(other), size)


def _memory(size: int) -> int:
    """A file descriptor of ``size`` bytes: in memory, or on disk if /dev/shm is too small, as in containers."""
    try:
        return _allocate(size, "/dev/shm")
    except OSError:
        return _allocate(size, None)


def _allocate(size: int, folder: str | None) -> int:
    """An unlinked file in ``folder`` or that of temporary files, allocated in full: a page that is missing later kills
    the process that touches it.
    """
    descriptor, name = tempfile.mkstemp(prefix="tta-bench-", dir=folder)
    pathlib.Path(name).unlink()
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def pin(ring: Ring, device: torch.device) -> Iterator[None]:
    """On a GPU, pin a ring inside the ``with`` block, so that copies to and from it are asynchronous.

    Raises:
        MemoryError: the memory cannot be pinned.
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
