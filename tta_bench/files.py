"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import IO, Any


def write_atomically(path: pathlib.Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call ``write(stream)`` on a new file beside ``path``, flush it to disk, and rename it into place."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        pathlib.Path(name).replace(path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically; bytes of file names that are no text are escaped."""
    write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1))


def obstacle_to_writing(folder: pathlib.Path) -> str | None:
    """Why nothing can be written in ``folder``, which need not exist yet; None where something can, as is tried."""
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryDirectory(prefix=".tta-bench-", dir=nearest):
            return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
