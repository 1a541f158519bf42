"""SHA-256 digests of image files, computed in parallel and remembered until a file's size, times or inode change.

They are kept in an SQLite file in the user's cache folder, outside any run, so planning over known files only needs to
stat them. If that file is lost, the images are read again.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from tta_bench.data.memory import Memory
from tta_bench.errors import Problem, UsageError

SETTLED_S = 2.0  # files modified more recently are read again: a second change could carry the same time
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
    """

    def __init__(
        self, memory: pathlib.Path | None = None, progress: Callable[[int, int], None] = lambda _done, _total: None
    ):
        self._memory, self._progress = Memory(memory or default_memory(), _TABLE), progress
        self.cost = Cost()

    @property
    def trouble(self) -> str:
        """Why digests cannot be stored, or empty."""
        return self._memory.trouble

    def of(self, extents: Sequence[Extent]) -> list[str]:
        """The digest of each extent, in hexadecimal; of a file whose folder is absent the one that it last had.

        Raises:
            UsageError: a file cannot be read; it is named.
        """
        if not extents:
            return []
        known = self._recall(extents)
        states = [_state(extent, extent in known) for extent in extents]
        unknown = [
            number
            for number, extent in enumerate(extents)
            if states[number] != _ABSENT and known.get(extent, ("", b""))[0] != states[number].text
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
        rows = self._memory.query(lambda memory: memory.execute(query, (first, first + b"\xff")).fetchall()) or []
        return {Extent(os.fsdecode(path), start, size): (state, sha256) for path, start, size, state, sha256 in rows}

    def _remember(self, rows: Sequence[tuple[Extent, _State, bytes]]) -> None:
        settled = time.time_ns() - int(SETTLED_S * 1e9)
        states = [state.text if state.changed_ns < settled else "" for _, state, _ in rows]  # "" equals no file's state
        values = [
            (os.fsencode(extent.path), extent.start, extent.bytes, text, sha256)
            for (extent, _, sha256), text in zip(rows, states, strict=True)
        ]
        if values:
            self._memory.query(
                lambda memory: memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", values)
            )


class _State(NamedTuple):
    """A file's size, times and inode as text, and the later of its two times in ns since 1970."""

    text: str
    changed_ns: int


_ABSENT = _State("", 0)


def _state(extent: Extent, known: bool) -> _State:
    """The state of a file; ``_ABSENT`` where it is ``known``, and its folder is not on this machine."""
    try:
        s = os.stat(extent.path)  # noqa: PTH116  (pathlib takes three times as long, 50,000 times)
    except OSError as error:
        folder_is_absent = isinstance(error, FileNotFoundError) and not pathlib.Path(extent.path).parent.exists()
        if folder_is_absent and known:
            return _ABSENT
        hint = (
            "copy the folder here, or the whole image cache of a machine that has read it" if folder_is_absent else ""
        )
        raise UsageError(Problem(f"cannot read: {error.strerror}", where=extent.path, hint=hint)) from error
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
