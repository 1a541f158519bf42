"""Standard output and error as they are: they may not show every character, and their reader may close them."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata

CLOSED = 141  # exit code where the reader of the output closed it, as of a program that SIGPIPE ends
PLAIN = "tta_bench.plain"  # name of the error handler
_LOOKALIKES = {"–": "-", "—": "-", "−": "-", "×": "x", "·": ".", "→": ">", "≤": "<", "≥": ">", "±": "~"}


def plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler that writes a similar ASCII character, or ``?``: one for one, so that columns stay aligned."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_similar, error.object[error.start : error.end])), error.end


def _similar(character: str) -> str:
    similar = _LOOKALIKES.get(character) or unicodedata.normalize("NFKD", character)[0]
    return similar if similar.isascii() else "?"


def prepare() -> None:
    """Make standard output and error replace what their encoding lacks, also bytes of file names that are no text; and a
    terminal that has no columns the default width."""
    codecs.register_error(PLAIN, plain)
    if os.environ.get("COLUMNS") == "0":  # as some terminals in editors say, to which rich would print nothing
        del os.environ["COLUMNS"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)


def flush() -> None:
    """Write what standard output holds back.

    Raises:
        BrokenPipeError: its reader has closed it.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def leave_closed() -> int:
    """Let nothing more be written to a closed standard output, not even at exit; returns the exit code."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return CLOSED


def own_stderr() -> io.TextIOWrapper:
    """A duplicate of standard error, which stays usable while a trial's output is redirected to its log."""
    codecs.register_error(PLAIN, plain)
    stderr = sys.__stderr__
    number, encoding = (stderr.fileno(), stderr.encoding) if stderr else (2, "utf-8")
    return open(os.dup(number), "w", encoding=encoding, errors=PLAIN)
