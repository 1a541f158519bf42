"""A protocol's whole stream over given labels, to prove that it visits what it says."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tta_bench.errors import Problem, UsageError
from tta_bench.protocols import Protocol, Source, assembled
from tta_bench.registry import PROTOCOLS, Registry
from tta_bench.streams import Stream, shift_of
from tta_bench.suite.loader import configured


def stream(
    protocol: Mapping[str, Any],
    labels: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    plugins: Iterable[str] = (),
) -> Stream:
    """The stream that a protocol makes: that of all shifts, also where a suite would run it in pieces.

    Args:
        protocol: what a suite has under ``protocol:``, with single values; arrays may stand for lists.
        labels: shift id to the labels (n,) of its images in data order; shifts come in this order.
        batch_size: images in a batch.
        seed: the trial's seed.
        plugins: plugin files.

    Raises:
        UsageError: the protocol is wrong, or cannot be followed with these labels.
    """
    registry = Registry(pathlib.Path(file) for file in plugins)
    config: Any = configured(PROTOCOLS, json.loads(json.dumps(dict(protocol), default=np.ndarray.tolist)), registry)
    if config.axes():
        raise UsageError(
            Problem(f"protocol {config.kind!r}: give single values, not lists: {', '.join(config.axes())}")
        )
    cls: type[Protocol] = registry.load(config.kind, PROTOCOLS)
    shifts = tuple(shift_of(name) for name in labels)
    source = Source(shifts, tuple(np.asarray(found) for found in labels.values()), batch_size, seed)
    return assembled(cls(config), source, config.graded_after)
