"""Ctrl-C, once and twice; SIGTERM, which Slurm sends before it takes a node away, counts as Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 130


class Interrupts:
    """While entered, a first signal raises KeyboardInterrupt, but not inside :meth:`held`; a second ends this process."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._holding = self._asked = False
        self._before: list[Any] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._first) for number in self._SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(self._SIGNALS, self._before, strict=False):
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        for name in self._SIGNALS:
            signal.signal(name, self._second)
        print("\nstopping; once more to kill", file=sys.stderr, flush=True)
        self._asked = True
        if not self._holding:
            raise KeyboardInterrupt

    def _second(self, number: int, frame: FrameType | None) -> None:
        os._exit(EXIT_CODE)  # Ray's processes see their driver gone and end, too

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is begun in here is finished, then the interrupt is raised."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise KeyboardInterrupt
