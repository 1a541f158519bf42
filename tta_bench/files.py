"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any


def write_atomically(path: pathlib.Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call ``write(stream)`` on a new file beside ``path``, flush it to disk, and rename it into place."""
    write_together([(path, write)])


def write_together(files: Iterable[tuple[pathlib.Path, Callable[[IO[bytes]], Any]]]) -> None:
    """Write several files as :func:`write_atomically` does; all are on disk before the first is renamed.

    Writing all before the first fsync lets them share a commit of the file system's journal.
    """
    temporary: list[tuple[int, str, pathlib.Path]] = []
    try:
        for path, write in files:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            temporary.append((descriptor, name, path))
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                write(stream)
            os.fchmod(descriptor, 0o644)
        if len(temporary) > 1:
            _begin_flushing(descriptor for descriptor, _, _ in temporary)
        for descriptor, _, _ in temporary:
            os.fsync(descriptor)
        for _, name, path in temporary:
            pathlib.Path(name).replace(path)
    except BaseException:
        for _, name, _ in temporary:
            pathlib.Path(name).unlink(missing_ok=True)
        raise
    finally:
        for descriptor, _, _ in temporary:
            os.close(descriptor)


def _begin_flushing(descriptors: Iterable[int]) -> None:
    """Start writeback without waiting; only the fsync that follows guarantees that files are on disk."""
    if hasattr(os, "posix_fadvise"):
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # not every file system supports it
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1))
