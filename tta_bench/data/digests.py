"""Digests of image files: each file is read once, in parallel, and remembered until its size, times or inode change.

The memory is one SQLite file in the user's cache folder, outside every run, so that planning over files that were read
before only looks at their directory entries. Losing it costs a second reading and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from tta_bench.errors import Problem, UsageError

SETTLED_S = 2.0  # a file that changed more recently may change again within one tick of its clock: it is not remembered
CHUNK = 1000  # files between two reports of progress
_BLOCK = 1 << 20
_TABLE = """CREATE TABLE IF NOT EXISTS digests (
    path BLOB, start INTEGER, bytes INTEGER, state TEXT, sha256 BLOB, PRIMARY KEY (path, start, bytes)) WITHOUT ROWID"""


class Extent(NamedTuple):
    """A file, or the ``bytes`` of it that begin at ``start``; −1: all that follow."""

    path: str
    start: int = 0
    bytes: int = -1


@dataclass
class Cost:
    """What reading files took: their number, their bytes, and seconds."""

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0


def default_memory() -> pathlib.Path:
    """``digests.sqlite`` in :func:`tta_bench.data.cache.default_root`."""
    from tta_bench.data.cache import default_root

    return default_root() / "digests.sqlite"


class Digests:
    """SHA-256 of file contents.

    Args:
        memory: the file to remember digests in; :func:`default_memory` by default.
        progress: called with the number of files read so far and their total, now and then.

    Attributes:
        cost: of the files that had to be read.
        trouble: why digests cannot be remembered, or empty.
    """

    def __init__(
        self, memory: pathlib.Path | None = None, progress: Callable[[int, int], None] = lambda _done, _total: None
    ):
        self._memory, self._progress = memory or default_memory(), progress
        self.cost, self.trouble = Cost(), ""

    def of(self, extents: Sequence[Extent]) -> list[str]:
        """The digest of each extent, in hexadecimal.

        Raises:
            UsageError: a file cannot be read; it is named.
        """
        if not extents:
            return []
        states = [_state(extent) for extent in extents]
        known = self._recall(extents)
        unknown = [
            number for number, extent in enumerate(extents) if known.get(extent, ("", b""))[0] != states[number].text
        ]
        read = self._read([extents[number] for number in unknown])
        fresh = dict(zip(unknown, read, strict=True))
        self._remember([(extents[n], states[n], sha256) for n, sha256 in fresh.items()])
        return [(fresh[n] if n in fresh else known[extent][1]).hex() for n, extent in enumerate(extents)]

    def _read(self, extents: Sequence[Extent]) -> list[bytes]:
        start, found = time.perf_counter(), list[bytes]()
        pool = ThreadPoolExecutor(os.cpu_count() or 1)  # hashlib and reading let other threads run
        try:
            for first in range(0, len(extents), CHUNK):
                for sha256, size in pool.map(_hashed, extents[first : first + CHUNK]):
                    found.append(sha256)
                    self.cost.bytes += size
                self._progress(len(found), len(extents))
        finally:
            pool.shutdown(cancel_futures=True)
            self.cost.files += len(found)
            self.cost.seconds += time.perf_counter() - start
        return found

    # -- the memory ----------------------------------------------------------------------------------------------------

    def _recall(self, extents: Sequence[Extent]) -> dict[Extent, tuple[str, bytes]]:
        """(state, digest) of each extent that is remembered; one query for all whose paths begin alike."""
        first = os.fsencode(os.path.commonprefix([extent.path for extent in extents]))  # noqa: RUF071  (any prefix)
        query = "SELECT path, start, bytes, state, sha256 FROM digests WHERE path >= ? AND path < ?"
        rows = self._ask(lambda memory: memory.execute(query, (first, first + b"\xff")).fetchall()) or []
        return {Extent(os.fsdecode(path), start, size): (state, sha256) for path, start, size, state, sha256 in rows}

    def _remember(self, rows: Sequence[tuple[Extent, _State, bytes]]) -> None:
        settled = time.time_ns() - int(SETTLED_S * 1e9)
        values = [
            (os.fsencode(extent.path), extent.start, extent.bytes, state.text, sha256)
            for extent, state, sha256 in rows
            if state.changed_ns < settled
        ]
        if values:
            self._ask(
                lambda memory: memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", values)
            )

    def _ask(self, question: Callable[[sqlite3.Connection], Any]) -> Any:
        """The memory's answer, committed; None where it cannot be used, and ``trouble`` says why."""
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._memory, timeout=30)) as memory, memory:
                memory.execute(_TABLE)
                return question(memory)
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"{self._memory}: {error}"
            if type(error) is sqlite3.DatabaseError:  # it is damaged, not just busy or out of reach
                self._memory.unlink(missing_ok=True)
            return None


class _State(NamedTuple):
    """What changes with a file's content: as text, and the later of its times, ns since 1970."""

    text: str
    changed_ns: int


def _state(extent: Extent) -> _State:
    try:
        s = os.stat(extent.path)  # noqa: PTH116  (pathlib takes three times as long, 50,000 times)
    except OSError as error:
        raise UsageError(Problem(f"cannot read: {error.strerror}", where=extent.path)) from error
    return _State(f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}", max(s.st_mtime_ns, s.st_ctime_ns))


def _hashed(extent: Extent) -> tuple[bytes, int]:
    """(SHA-256 of an extent, bytes read)."""
    sha256, left = hashlib.sha256(), extent.bytes if extent.bytes >= 0 else None
    size = 0
    try:
        with open(extent.path, "rb", buffering=0) as stream:
            stream.seek(extent.start)
            while block := stream.read(_BLOCK if left is None else min(_BLOCK, left - size)):
                sha256.update(block)
                size += len(block)
    except OSError as error:
        raise UsageError(Problem(f"cannot read: {error.strerror}", where=extent.path)) from error
    return sha256.digest(), size
