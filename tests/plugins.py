"""Stand-ins for plugins."""

from __future__ import annotations

from typing import Any

from tta_bench.registry import METHODS, Kind, Registry


class Replaced(Registry):
    """What is installed, with classes of a test in the place of some methods."""

    def __init__(self, **classes: type):
        super().__init__()
        self._classes = classes

    def load(self, name: str, kind: Kind = METHODS) -> Any:
        return self._classes[name] if kind == METHODS and name in self._classes else super().load(name, kind)
