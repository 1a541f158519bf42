"""Atomic writes: a file appears complete or not at all. Checksums, and arrays that are read whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np


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
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its checksum."""
    plain: dict[str, Any] = json.loads(json.dumps(content))  # as a reader will find it
    return {**plain, "checksum": checksum_of(plain)}


def checksum_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON file's content, in hexadecimal; its own ``checksum`` is left out."""
    text = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_arrays(content: bytes, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file's content, by name.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (name := archive.testzip()) is not None:  # before NumPy believes a header's shape
                raise ValueError(f"{name} does not match its checksum")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files if wanted(name)}
    except (OSError, EOFError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no archive of arrays: {error}") from error
