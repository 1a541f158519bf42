"""What methods print and say: kept in a file of each trial, and made fit to be shown."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

KEPT = 1 << 20  # bytes of a trial's output that are kept: of longer ones the beginning and the end
SHOWN = 10_000  # characters of a reason or a traceback, the same way


@contextlib.contextmanager
def captured(file: str | os.PathLike[str]) -> Iterator[None]:
    """Append what this process writes to its standard output and error, C libraries too, to ``file``."""
    _flush()
    saved = [os.dup(1), os.dup(2)]
    with open(file, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()


def read(file: pathlib.Path) -> str:
    """A captured file's text, shortened in the middle; empty where there is none."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= KEPT:
                return stream.read().decode(errors="replace")
            start = stream.read(KEPT // 2)
            stream.seek(-KEPT // 2, os.SEEK_END)
            end = stream.read()
    except OSError:
        return ""
    gap = f"\n… {size - KEPT} bytes left out …\n"
    return start.decode(errors="replace") + gap + end.decode(errors="replace")


def shown(text: str) -> str:
    """``text`` as a terminal, a table and a file can take it: escapes visible, at most ``SHOWN`` characters.

    A longer text goes to standard error, which is the trial's log.
    """
    clean = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    if len(clean) <= SHOWN:
        return clean
    os.write(2, clean.encode() + b"\n")
    return f"{clean[: SHOWN // 2]}\n… {len(clean) - SHOWN} characters left out: see the log …\n{clean[-SHOWN // 2 :]}"
