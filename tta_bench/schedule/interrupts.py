"""Ctrl-C, once and twice; SIGTERM, which Slurm sends before it revokes a node, counts as Ctrl-C."""

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
    """While entered, the first signal raises KeyboardInterrupt, after any :meth:`deferred` block; a second one ends the
    process.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._deferring = self._interrupted = False
        self._previous_handlers: list[Any] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = [signal.signal(number, self._on_first) for number in self._SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(self._SIGNALS, self._previous_handlers, strict=False):
            signal.signal(number, handler)

    def _on_first(self, number: int, frame: FrameType | None) -> None:
        for each in self._SIGNALS:
            signal.signal(each, self._on_second)
        print("\nstopping; interrupt again to kill", file=sys.stderr, flush=True)
        self._interrupted = True
        if not self._deferring:
            raise KeyboardInterrupt

    def _on_second(self, number: int, frame: FrameType | None) -> None:
        os._exit(EXIT_CODE)  # Ray's processes end with their driver

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay KeyboardInterrupt to the end of the ``with`` block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._interrupted:
            raise KeyboardInterrupt
