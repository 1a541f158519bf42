"""Files that appear whole, or not at all."""

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
    """Write several files as :func:`write_atomically` writes one; all are on disk before the first is renamed.

    Flushed one after another they would each wait for the file system's journal; written first, they share it.
    """
    made: list[tuple[int, str, pathlib.Path]] = []
    try:
        for path, write in files:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            made.append((descriptor, name, path))
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                write(stream)
            os.fchmod(descriptor, 0o644)
        if len(made) > 1:
            _begin_flushing(descriptor for descriptor, _, _ in made)
        for descriptor, _, _ in made:
            os.fsync(descriptor)
        for _, name, path in made:
            pathlib.Path(name).replace(path)
    except BaseException:
        for _, name, _ in made:
            pathlib.Path(name).unlink(missing_ok=True)
        raise
    finally:
        for descriptor, _, _ in made:
            os.close(descriptor)


def _begin_flushing(descriptors: Iterable[int]) -> None:
    """Have the kernel begin to write files without waiting for it; only fsync, after this, says that they are on disk."""
    if hasattr(os, "posix_fadvise"):
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # a file system may know no such thing
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1))
