"""Atomic writes, by which a file appears complete or not at all, and locks of folders."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from tta_bench.errors import Problem, UsageError


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
        stream = open(folder / "lock", "a+")  # noqa: SIM115  (held until the process ends)
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
