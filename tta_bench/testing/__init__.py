"""Test tools for authors of methods and protocols.

:func:`check_method` runs the conformance suite, like ``tta-bench check``; :func:`replay` feeds given batches to a method,
to compare it with another implementation; :func:`find_leaks` searches all objects that a method can reach for labels and
other data that it must not see; :func:`stream` makes a protocol's stream over given labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tta_bench.torchvision_repair  # noqa: F401  (the importer may import timm next)
from tta_bench.adapter import Adapter
from tta_bench.testing.leaks import Secrets, find_leaks
from tta_bench.testing.replay import prepared, replay
from tta_bench.testing.streams import stream

__all__ = ["Secrets", "check_method", "find_leaks", "prepared", "replay", "stream"]


def check_method(cls: type[Adapter], config: Mapping[str, Any] | None = None) -> Any:
    """Run the conformance suite on a method; see :func:`tta_bench.testing.conformance.check_method`."""
    from tta_bench.testing import conformance

    return conformance.check_method(cls, config)
