"""``status.json``: what a run's driver is doing, for ``tta-bench status`` in another terminal."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import time

from tta_bench.schedule.progress import TrialProgress

FILE = "status.json"
EVERY_S = 1.0  # how often a running driver writes it


class StatusFile:
    """Says in the run's folder what its driver is doing.

    Args:
        run: the folder.
        progress: of this session.
    """

    def __init__(self, run: pathlib.Path, progress: TrialProgress):
        self._file, self._progress = run / FILE, progress
        self._written = float("-inf")

    def update(self, *, state: str = "running", now: bool = False) -> None:
        """Write it, but not more often than once a second; ``now`` in any case."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        said = {
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": time.time(),
            "session": self._progress.summary(),
            "workers": list(self._progress.workers) if state == "running" else [],
        }
        scratch = self._file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(said))  # no fsync: it is out of date in a second anyway
        scratch.replace(self._file)
