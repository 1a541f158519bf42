"""A trial's key: the SHA-256 of the canonical JSON of everything that was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# the same encoding as tta_bench.data.base.digest
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


class Keys:
    """Keys of trials that share most of what was asked for; the shared part is encoded once.

    Args:
        shared: the shared values, by name.
    """

    def __init__(self, shared: Mapping[str, Any]):
        self._texts = {name: _canonical(value) for name, value in shared.items()}

    def __call__(self, own: Mapping[str, Any]) -> str:
        """``tta_bench.data.base.digest`` of ``shared | own``."""
        texts = self._texts | {name: _canonical(value) for name, value in own.items()}
        text = ",".join(f'"{name}":{texts[name]}' for name in sorted(texts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()
