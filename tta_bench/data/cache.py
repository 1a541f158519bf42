"""The image cache: images are decoded, resized and corrupted once for each (data set, shift), then memory-mapped.

An entry is a folder ``<cache>/<key>/`` with ``images.npy`` (uint8, (n, side, side, 3), only the images that a suite
uses) and ``meta.json``. It is written under a temporary name and renamed when complete; its checksum is verified before a
run uses it, and a corrupt entry is rebuilt.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from tta_bench import NUMERICS_VERSION
from tta_bench.data.base import Dataset, digest
from tta_bench.data.decoding import counted
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.streams import Shift

FORMAT = 1
CHUNK = 50  # images made by one call in a worker process
IMAGES_PER_PROCESS = 1000  # below this, starting a process costs more than it saves
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
        rows: (n,) sorted indices of the images held.
        pixels: uint8 (len(rows), side, side, 3), mapped from disk.
    """

    rows: np.ndarray
    pixels: np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        """A copy of images ``index``: uint8 (B, side, side, 3)."""
        return np.ascontiguousarray(self.pixels[np.searchsorted(self.rows, index)])

    def fill(self, out: np.ndarray, index: np.ndarray) -> None:
        """Copy images ``index`` into ``out``, uint8 (B, side, side, 3)."""
        np.take(self.pixels, np.searchsorted(self.rows, index), axis=0, out=out, mode="clip")  # other modes copy twice


@dataclass(frozen=True)
class Direct:
    """Images decoded on demand (``cache: off``)."""

    dataset: Dataset
    shift: Shift

    def take(self, index: np.ndarray) -> np.ndarray:
        """Images ``index``: uint8 (B, side, side, 3)."""
        return self.dataset.read(self.shift, index)

    def fill(self, out: np.ndarray, index: np.ndarray) -> None:
        """Write images ``index`` into ``out``, uint8 (B, side, side, 3)."""
        out[:] = self.take(index)


@dataclass(frozen=True)
class CacheEntry:
    """One (data, shift) that a suite uses: the images ``rows`` of ``dataset`` under ``shift``.

    ``content`` is the digest of their fingerprint.
    """

    dataset: Dataset
    shift: Shift
    rows: np.ndarray
    content: str

    @property
    def key(self) -> str:
        """The name of the entry's folder: a digest of everything that determines its pixels."""
        return digest([FORMAT, NUMERICS_VERSION, self.content])[:32]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, side, side, 3)."""
        return (len(self.rows), self.dataset.side, self.dataset.side, 3)


def entry_of(dataset: Dataset, shift: Shift, rows: np.ndarray, digests: Digests) -> CacheEntry:
    """The entry of images ``rows`` (n,) int32, sorted; computes the digest of their content.

    Raises:
        UsageError: a file cannot be read.
    """
    return CacheEntry(dataset, shift, rows, digest(dataset.fingerprint(shift, rows, digests)))


def checksum(array: np.ndarray, value: int = 0) -> int:
    """CRC-32 of an array's bytes, after others whose CRC-32 is ``value``."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        value = zlib.crc32(flat[start : start + _BLOCK].data, value)
    return value


class ImageCache:
    """Entries in one folder, shared by all processes of a machine.

    Args:
        root: the folder; None: no cache, images are decoded on demand.
    """

    def __init__(self, root: pathlib.Path | None):
        self.root = root
        self._verified: dict[
            str, tuple[int, int]
        ] = {}  # key to the file's time and size when its checksum was verified

    def images(self, entry: CacheEntry) -> Images | Direct:
        """The images of an entry; a missing or corrupt entry is built first, in this process.

        The checksum is verified on first use, and again whenever the file has changed.

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

    def _map(self, entry: CacheEntry, *, verify: bool = False) -> np.ndarray | None:
        """The entry's pixels, memory-mapped; None where the entry is absent, incomplete or outdated."""
        assert self.root is not None
        folder = self.root / entry.key
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            pixels: np.ndarray = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # absent, or cut short
            return None
        if pixels.shape != entry.shape or pixels.dtype != np.uint8 or meta.get("format") != FORMAT:
            return None
        return None if verify and checksum(pixels) != meta["crc32"] else pixels

    def _verified_map(self, entry: CacheEntry) -> np.ndarray | None:
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

    def converted(self, entries: Sequence[CacheEntry]) -> dict[str, int]:
        """How many images were converted when the entries were built, by kind; of entries that share images, the most."""
        most = Counter[str]()
        for folder in [self.root / entry.key for entry in entries] if self.root else []:
            with contextlib.suppress(OSError, ValueError):  # arrays have no entry
                most |= Counter(json.loads((folder / "meta.json").read_text(encoding="utf-8")).get("converted", {}))
        return dict(most)

    # -- building entries --------------------------------------------------------------------------------------------

    def to_build(self, entries: Sequence[CacheEntry]) -> list[CacheEntry]:
        """The entries that are missing or fail their checksum."""
        if self.root is None:
            return []
        return [e for e in entries if e.dataset.array(e.shift) is None and self._map(e, verify=True) is None]

    def space(self, entries: Sequence[CacheEntry]) -> tuple[int, int]:
        """(bytes needed to build ``entries``, bytes free)."""
        assert self.root is not None
        existing = next(p for p in (self.root.absolute(), *self.root.absolute().parents) if p.exists())
        return sum(int(np.prod(e.shape)) for e in entries), shutil.disk_usage(existing).free

    def build(
        self,
        entries: Sequence[CacheEntry],
        processes: int,
        progress: Callable[[CacheEntry, int], None] = lambda _e, _n: None,
    ) -> None:
        """Build ``entries``, in chunks of images.

        Args:
            entries: the entries.
            processes: maximum number of processes; with one, all work is done in this process.
            progress: called after each chunk with the entry and the number of images in the chunk.

        Raises:
            UsageError: an image cannot be decoded (it is named), or the folder cannot be written.
        """
        if not entries:
            return
        assert self.root is not None
        with _writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with _pool(min(processes, sum(len(e.rows) for e in entries) // IMAGES_PER_PROCESS), entries) as pool:
            for number, entry in enumerate(entries):
                self._build_one(entry, number, pool, progress)

    def _build_one(
        self,
        entry: CacheEntry,
        number: int,
        pool: ProcessPoolExecutor | None,
        progress: Callable[[CacheEntry, int], None],
    ) -> None:
        assert self.root is not None
        with _writing(self.root):
            scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.key}-", dir=self.root))
        try:
            file = scratch / "images.npy"
            with _writing(self.root):
                pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=entry.shape)
                _reserve(file)
            starts, converted = range(0, len(entry.rows), CHUNK), Counter[str]()
            crc32, done = 0, 0
            for images, conversions in _filled(file, entry, number, starts, pool):
                crc32, done = checksum(pixels[done : done + images], crc32), done + images  # while others are decoded
                converted += conversions
                progress(entry, images)
            meta = {"format": FORMAT, "crc32": crc32, "shift": entry.shift.id, "images": len(entry.rows),
                    "converted": dict(converted)}  # fmt: skip
            with _writing(self.root):
                (scratch / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            self._publish(scratch, entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, scratch: pathlib.Path, entry: CacheEntry) -> None:
        """Rename the finished folder into place; replaces a corrupt entry, keeps a valid one."""
        assert self.root is not None
        final = self.root / entry.key
        if final.exists() and self._map(entry, verify=True) is None:
            final.rename(scratch / "torn")
        with contextlib.suppress(OSError):  # another process was faster; its entry has the same content
            scratch.chmod(0o755)
            scratch.rename(final)


@contextlib.contextmanager
def _writing(root: pathlib.Path) -> Iterator[None]:
    """Say that the cache in ``root`` cannot be written."""
    try:
        yield
    except OSError as error:
        hint = "free some space, choose another folder with --cache DIR, or --cache off to decode images on every use"
        message = f"the image cache cannot be written: {error.strerror or error}"
        raise UsageError(Problem(message, str(root), hint=hint)) from error


def _reserve(file: pathlib.Path) -> None:
    """Take a file's space on the disk now: writing a mapped file on a full disk would end the process (SIGBUS)."""
    with open(file, "r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)


def _filled(
    file: pathlib.Path, entry: CacheEntry, number: int, starts: Sequence[int], pool: ProcessPoolExecutor | None
) -> Iterator[tuple[int, Counter[str]]]:
    """Fill an entry's array; what :func:`_fill` returns of each chunk, in order."""
    if pool is None:
        yield from (_fill(file, entry, start) for start in starts)
    else:
        for filled in [pool.submit(_fill_number, file, number, start) for start in starts]:
            yield filled.result()


def _fill(file: pathlib.Path, entry: CacheEntry, start: int) -> tuple[int, Counter[str]]:
    """Decode and corrupt one chunk of an entry into its array on disk.

    Returns:
        (number of images in it, how many were converted, by kind).
    """
    rows = entry.rows[start : start + CHUNK]
    with counted() as converted:
        pixels = np.ascontiguousarray(entry.dataset.read(entry.shift, rows), dtype=np.uint8)
    array = np.load(file, mmap_mode="r")
    with open(file, "r+b", buffering=0) as stream:  # a write is several times as fast as to a mapped page
        stream.seek(array.offset + start * array[:1].nbytes)
        stream.write(pixels.data)
    return len(rows), converted


_pool_entries: Sequence[CacheEntry] = ()  # in a pool's process: sent once, not with every chunk


def _set_pool_entries(entries: Sequence[CacheEntry]) -> None:
    global _pool_entries
    _pool_entries = entries
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _fill_number(file: pathlib.Path, number: int, start: int) -> tuple[int, Counter[str]]:
    return _fill(file, _pool_entries[number], start)


@contextlib.contextmanager
def _pool(processes: int, entries: Sequence[CacheEntry]) -> Iterator[ProcessPoolExecutor | None]:
    """Spawned processes, since corruptions draw from a process's global generator; None for fewer than two."""
    if processes < 2:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_set_pool_entries, initargs=(entries,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
