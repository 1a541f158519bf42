"""The image cache: decoded, resized and corrupted once for each (data, shift), then mapped by every process.

An entry is a folder ``<cache>/<key>/`` with ``images.npy`` (uint8, (n, side, side, 3), only the images that a suite
uses) and ``meta.json``. It is written under another name and renamed when it is whole; its checksum is verified before
a run uses it, and an entry that does not verify is made again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from tta_bench import NUMERICS_VERSION
from tta_bench.data.base import Dataset, digest
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.streams import Shift

FORMAT = 1
CHUNK = 50  # images made by one call in a worker process
IMAGES_PER_PROCESS = 1000  # fewer, and starting a process costs more than it saves
_BLOCK = 1 << 24


def default_root() -> pathlib.Path:
    """``$TTA_BENCH_CACHE``, else ``tta-bench`` in the user's cache folder."""
    if named := os.environ.get("TTA_BENCH_CACHE"):
        return pathlib.Path(named)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tta-bench"


@dataclass(frozen=True)
class Images:
    """Images of one shift, addressed by their index in the data set.

    Attributes:
        rows: sorted image indices that are held.
        pixels: uint8 (len(rows), side, side, 3), mapped from disk.
    """

    rows: np.ndarray
    pixels: np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        """A copy of images ``index``: uint8 (B, side, side, 3)."""
        return np.ascontiguousarray(self.pixels[np.searchsorted(self.rows, index)])

    def fill(self, out: np.ndarray, index: np.ndarray) -> None:
        """Copy images ``index`` into ``out``, uint8 (B, side, side, 3)."""
        np.take(self.pixels, np.searchsorted(self.rows, index), axis=0, out=out, mode="clip")  # else it copies twice


@dataclass(frozen=True)
class Direct:
    """Images decoded whenever they are asked for (``cache: off``)."""

    dataset: Dataset
    shift: Shift

    def take(self, index: np.ndarray) -> np.ndarray:
        """Images ``index``: uint8 (B, side, side, 3)."""
        return self.dataset.read(self.shift, index)

    def fill(self, out: np.ndarray, index: np.ndarray) -> None:
        """Write images ``index`` into ``out``, uint8 (B, side, side, 3)."""
        out[:] = self.take(index)


@dataclass(frozen=True)
class Entry:
    """One (data, shift) that a suite uses: the images ``rows`` of ``dataset`` under ``shift``.

    ``content`` is the digest of their fingerprint.
    """

    dataset: Dataset
    shift: Shift
    rows: np.ndarray
    content: str

    @property
    def key(self) -> str:
        """What the entry is called in the cache: a digest of all that made it."""
        return digest([FORMAT, NUMERICS_VERSION, self.content])[:32]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, side, side, 3)."""
        return (len(self.rows), self.dataset.side, self.dataset.side, 3)


def entry_of(dataset: Dataset, shift: Shift, rows: np.ndarray, digests: Digests) -> Entry:
    """The entry of images ``rows`` (n,) int32, sorted, whose content is read where it is not known.

    Raises:
        UsageError: a file cannot be read.
    """
    return Entry(dataset, shift, rows, digest(dataset.fingerprint(shift, rows, digests)))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    flat, value = array.reshape(-1), 0
    for start in range(0, flat.size, _BLOCK):
        value = zlib.crc32(flat[start : start + _BLOCK].data, value)
    return value


class ImageCache:
    """Entries below one folder, shared by all processes of a machine.

    Args:
        root: the folder, or None: nothing is cached, images are decoded whenever they are asked for.
    """

    def __init__(self, root: pathlib.Path | None):
        self.root = root
        self._verified: dict[str, tuple[int, int]] = {}  # entry to its file's time and size when its checksum was right

    def images(self, entry: Entry) -> Images | Direct:
        """The images of an entry; one that is not whole in the cache is made first, in this process.

        An entry's checksum is verified when this object first meets it, and again when its file has changed.

        Raises:
            UsageError: an image cannot be decoded; it is named.
        """
        array = entry.dataset.array(entry.shift)
        if array is not None:
            return Images(np.arange(len(array)), array)
        if self.root is None:
            return Direct(entry.dataset, entry.shift)
        pixels = self._verified_map(entry)
        if pixels is None:
            self.build([entry], processes=1)
            pixels = self._verified_map(entry)
        if pixels is None:
            raise UsageError(Problem(f"the cache entry for {entry.shift.id} vanished", where=str(self.root)))
        return Images(entry.rows, pixels)

    def _map(self, entry: Entry, *, verify: bool = False) -> np.ndarray | None:
        """The entry's pixels, or None where it is absent, torn or stale."""
        assert self.root is not None
        folder = self.root / entry.key
        try:
            meta = json.loads((folder / "meta.json").read_text())
            pixels: np.ndarray = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # absent, or cut short
            return None
        if pixels.shape != entry.shape or pixels.dtype != np.uint8 or meta.get("format") != FORMAT:
            return None
        return None if verify and checksum(pixels) != meta["crc32"] else pixels

    def _verified_map(self, entry: Entry) -> np.ndarray | None:
        assert self.root is not None
        try:
            stat = (self.root / entry.key / "images.npy").stat()
        except OSError:
            return None
        state = (stat.st_mtime_ns, stat.st_size)
        pixels = self._map(entry, verify=self._verified.get(entry.key) != state)
        if pixels is not None:
            self._verified[entry.key] = state
        return pixels

    # -- making entries ----------------------------------------------------------------------------------------------

    def to_build(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those entries that the cache does not hold whole; the others' checksums were verified."""
        if self.root is None:
            return []
        return [e for e in entries if e.dataset.array(e.shift) is None and self._map(e, verify=True) is None]

    def space(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """(bytes that making ``entries`` needs, bytes free)."""
        assert self.root is not None
        there = next(p for p in (self.root.absolute(), *self.root.absolute().parents) if p.exists())
        return sum(int(np.prod(e.shape)) for e in entries), shutil.disk_usage(there).free

    def build(
        self, entries: Sequence[Entry], processes: int, progress: Callable[[Entry, int], None] = lambda _e, _n: None
    ) -> None:
        """Make ``entries``, a chunk of images at a time, in up to ``processes`` processes.

        Args:
            entries: what to make.
            processes: at most so many; with one, everything happens in this process.
            progress: called with the entry and a number of images whenever so many more are done.

        Raises:
            UsageError: an image cannot be decoded (it is named), or the folder cannot be written.
        """
        if not entries:
            return
        assert self.root is not None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "choose another with --cache DIR"
            raise UsageError(Problem(f"cannot write the image cache: {error}", str(self.root), hint=hint)) from error
        with _pool(min(processes, sum(len(e.rows) for e in entries) // IMAGES_PER_PROCESS), entries) as pool:
            for number, entry in enumerate(entries):
                self._build_one(entry, number, pool, progress)

    def _build_one(
        self, entry: Entry, number: int, pool: ProcessPoolExecutor | None, progress: Callable[[Entry, int], None]
    ) -> None:
        assert self.root is not None
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.key}-", dir=self.root))
        try:
            file = scratch / "images.npy"
            pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=entry.shape)
            starts = range(0, len(entry.rows), CHUNK)
            if pool is None:
                for start in starts:
                    progress(entry, _fill(file, entry, start))
            else:
                for done in as_completed([pool.submit(_fill_number, file, number, start) for start in starts]):
                    progress(entry, done.result())
            pixels.flush()
            meta = {"format": FORMAT, "crc32": checksum(pixels), "shift": entry.shift.id, "images": len(entry.rows)}
            (scratch / "meta.json").write_text(json.dumps(meta))
            self._publish(scratch, entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, scratch: pathlib.Path, entry: Entry) -> None:
        """Rename the finished folder into place; an entry that does not verify makes way, a whole one stays."""
        assert self.root is not None
        final = self.root / entry.key
        if final.exists() and self._map(entry, verify=True) is None:
            final.rename(scratch / "torn")
        with contextlib.suppress(OSError):  # another process was quicker: its entry has the same content
            scratch.chmod(0o755)
            scratch.rename(final)


def _fill(file: pathlib.Path, entry: Entry, start: int) -> int:
    """Decode and corrupt one chunk of an entry into its array on disk; returns the number of images."""
    pixels = np.load(file, mmap_mode="r+")
    rows = entry.rows[start : start + CHUNK]
    pixels[start : start + CHUNK] = entry.dataset.read(entry.shift, rows)
    pixels.flush()
    return len(rows)


_adopted: Sequence[Entry] = ()  # in a pool's process: the entries being made, sent once and not with every chunk


def _adopt(entries: Sequence[Entry]) -> None:
    global _adopted
    _adopted = entries
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _fill_number(file: pathlib.Path, number: int, start: int) -> int:
    return _fill(file, _adopted[number], start)


@contextlib.contextmanager
def _pool(processes: int, entries: Sequence[Entry]) -> Iterator[ProcessPoolExecutor | None]:
    """Fresh processes (corruptions draw from a process's global state), or None for fewer than two."""
    if processes < 2:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_adopt, initargs=(entries,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
