"""Files written atomically, locks of folders, checksums, arrays that are read whole, paths as users give them."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import io
import json
import os
import pathlib
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from tta_bench.errors import Problem, UsageError

PACKAGE_SCHEME = "package:"


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


def expanded(path: str | pathlib.Path) -> pathlib.Path:
    """A path with the home folder in the place of ``~``; unchanged where there is no such user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        return pathlib.Path(path)


def resolved(path: pathlib.Path) -> pathlib.Path:
    """An absolute path without links; unchanged where the system refuses the name."""
    try:
        return path.resolve()
    except (OSError, ValueError):
        return path


def located(path: str) -> pathlib.Path | None:
    """The file at a path, or ``package:<installed package>/<file inside it>``; None where there is none.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    file = expanded(path)
    if path.startswith(PACKAGE_SCHEME):
        package, _, inside = path.removeprefix(PACKAGE_SCHEME).partition("/")
        try:
            file = pathlib.Path(str(importlib.resources.files(package) / inside))
        except (ModuleNotFoundError, TypeError, ValueError) as error:  # not installed, a module, or no name
            raise ModuleNotFoundError(f"no such package: {package!r}", name=package) from error
    return file if is_file(file) else None


def is_file(path: str | pathlib.Path) -> bool:
    """Whether there is such a file; no file has a name that the system refuses."""
    try:
        return expanded(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether there is such a folder; no folder has a name that the system refuses."""
    try:
        return expanded(path).is_dir()
    except (OSError, ValueError):
        return False


def obstacle_to_writing(folder: pathlib.Path) -> str | None:
    """Why nothing can be written in ``folder``, which need not exist yet; None where something can, as is tried."""
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryDirectory(prefix=".tta-bench-", dir=nearest):
            return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


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


@contextmanager
def locked(folder: pathlib.Path, what: str, hint: str) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made. The kernel frees it when this process ends, however it ends.

    Args:
        folder: the folder.
        what: its name in messages.
        hint: what to do where another process holds it.

    Raises:
        UsageError: another process holds it (host and process are named), or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115  (held until the process ends)
    except OSError as error:
        message = f"cannot write the folder of {what}: {error}"
        raise UsageError(Problem(message, str(folder), hint="choose another folder")) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise UsageError(Problem(f"{what} is in use by {holder}", str(folder), hint=hint)) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
