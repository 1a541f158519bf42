"""How many trials share a GPU, from the memory that they were measured to hold."""

from __future__ import annotations

import math
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from tta_bench.run.server import own_server

MARGIN = 1.2  # on measured memory: a whole stream may need more than a few batches
CONTEXT_MIB = 512.0  # of a process's CUDA context and libraries, which torch does not count
MOST_TRIALS = 4  # on one GPU: more were no faster even where one leaves most of it idle (docs/cluster.md)
_UNITS = 10_000  # Ray counts fractions of a GPU in ten-thousandths


class Card(NamedTuple):
    """The GPUs of this machine. Attributes: name: of the one with the least memory; memory_mib: its memory, MiB."""

    name: str
    memory_mib: float


def share_of_gpu(held_mib: float, card_mib: float) -> float:
    """The share of a GPU that a trial needs.

    Args:
        held_mib: memory that its process was measured to hold.
        card_mib: memory of the GPU.

    Returns:
        The part of the memory, with a margin and the CUDA context, rounded up to what Ray can represent; 1 at most, and
        enough for :data:`MOST_TRIALS` at most.
    """
    part = (MARGIN * held_mib + CONTEXT_MIB) / card_mib
    return min(1.0, max(1 / MOST_TRIALS, math.ceil(part * _UNITS - 1e-6) / _UNITS))


def trials_at_once(share: float) -> int:
    """How many trials of a share of a GPU fit on one."""
    return int(1 / share + 1e-9)


def card() -> Card | None:
    """The GPUs of this machine, or None; asked in another process, since this one never initialises a GPU."""
    if not torch.cuda.device_count():
        return None
    child = own_server().fork(_send_card)
    found: Card = child.connection.recv()
    child.end()
    return found


def _send_card(connection: Connection) -> None:
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    smallest = min(found, key=lambda properties: properties.total_memory)
    connection.send(Card(smallest.name, smallest.total_memory / 2**20))
