"""SHA-256 digests of image files, computed in parallel and remembered until a file's size, times or inode change.

They are kept in an SQLite file in the user's cache folder, outside any run, so planning over known files only needs to
stat them. If that file is lost, the images are read again.
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

SETTLED_S = 2.0  # digests of files modified more recently are not stored: a second change could carry the same time
CHUNK = 1000  # files between two progress reports
_BLOCK = 1 << 20
_TABLE = """CREATE TABLE IF NOT EXISTS digests (
    path BLOB, start INTEGER, bytes INTEGER, state TEXT, sha256 BLOB, PRIMARY KEY (path, start, bytes)) WITHOUT ROWID"""


class Extent(NamedTuple):
    """``bytes`` of a file from offset ``start``; −1: to the end of the file."""

    path: str
    start: int = 0
    bytes: int = -1


@dataclass
class Cost:
    """Files read, their bytes, and the seconds it took."""

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
        memory: the SQLite file; :func:`default_memory` by default.
        progress: called after each chunk with the number of files read and their total.

    Attributes:
        cost: of the files that had to be read.
        trouble: why digests cannot be stored, or empty.
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
        start, digests = time.perf_counter(), list[bytes]()
        pool = ThreadPoolExecutor(os.cpu_count() or 1)  # hashlib and file reads release the GIL
        try:
            for first in range(0, len(extents), CHUNK):
                for sha256, size in pool.map(_hashed, extents[first : first + CHUNK]):
                    digests.append(sha256)
                    self.cost.bytes += size
                self._progress(len(digests), len(extents))
        finally:
            pool.shutdown(cancel_futures=True)
            self.cost.files += len(digests)
            self.cost.seconds += time.perf_counter() - start
        return digests

    # -- the memory ----------------------------------------------------------------------------------------------------

    def _recall(self, extents: Sequence[Extent]) -> dict[Extent, tuple[str, bytes]]:
        """(state, digest) of each stored extent; one query over the paths' common prefix."""
        first = os.fsencode(os.path.commonprefix([extent.path for extent in extents]))  # noqa: RUF071  (any prefix)
        query = "SELECT path, start, bytes, state, sha256 FROM digests WHERE path >= ? AND path < ?"
        rows = self._query(lambda memory: memory.execute(query, (first, first + b"\xff")).fetchall()) or []
        return {Extent(os.fsdecode(path), start, size): (state, sha256) for path, start, size, state, sha256 in rows}

    def _remember(self, rows: Sequence[tuple[Extent, _State, bytes]]) -> None:
        settled = time.time_ns() - int(SETTLED_S * 1e9)
        values = [
            (os.fsencode(extent.path), extent.start, extent.bytes, state.text, sha256)
            for extent, state, sha256 in rows
            if state.changed_ns < settled
        ]
        if values:
            self._query(
                lambda memory: memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", values)
            )

    def _query(self, statement: Callable[[sqlite3.Connection], Any]) -> Any:
        """The result of a query, committed; None where the file is unusable, with the reason in ``trouble``."""
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._memory, timeout=30)) as memory, memory:
                memory.execute(_TABLE)
                return statement(memory)
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"{self._memory}: {error}"
            if type(error) is sqlite3.DatabaseError:  # corrupt, not merely busy or unreachable
                self._memory.unlink(missing_ok=True)
            return None


class _State(NamedTuple):
    """A file's size, times and inode as text, and the later of its two times in ns since 1970."""

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
