"""Output of methods: captured in a file per trial, and made printable."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

MAX_LOG = 1 << 20  # bytes; of a longer log the beginning and the end are kept
MAX_TEXT = 10_000  # characters of a reason or traceback; shortened the same way


@contextlib.contextmanager
def captured(file: str | os.PathLike[str]) -> Iterator[None]:
    """Append this process's standard output and error to ``file``, including that of C libraries."""
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
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or missing
            stream.flush()


def read(file: pathlib.Path) -> str:
    """The text of a captured file, shortened in the middle; empty if the file does not exist."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= MAX_LOG:
                return stream.read().decode(errors="replace")
            start = stream.read(MAX_LOG // 2)
            stream.seek(-MAX_LOG // 2, os.SEEK_END)
            end = stream.read()
    except OSError:
        return ""
    gap = f"\n… {size - MAX_LOG} bytes omitted …\n"
    return start.decode(errors="replace") + gap + end.decode(errors="replace")


def printable(text: str) -> str:
    """``text`` with control characters escaped, shortened to ``MAX_TEXT`` characters.

    A longer text is written in full to standard error, which goes to the trial's log.
    """
    clean = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    if len(clean) <= MAX_TEXT:
        return clean
    os.write(2, clean.encode() + b"\n")
    gap = f"\n… {len(clean) - MAX_TEXT} characters omitted: see the log …\n"
    return clean[: MAX_TEXT // 2] + gap + clean[-MAX_TEXT // 2 :]
