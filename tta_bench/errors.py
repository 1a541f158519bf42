"""Errors for the user: the message, its location, and how to fix it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

_MAX_PART = 1000  # characters of a message, a place or a hint, which may quote input of any length
_MAX_TEXT = 3000  # characters of all problems together; the first is always shown


@dataclass(frozen=True)
class Problem:
    """One error in the input.

    Attributes:
        message: what is wrong, in one sentence.
        where: ``file:line:column``, a path, an option, or the name of a part; or empty.
        source: the offending source line with its number and a caret line, ready to print; or empty.
        hint: how to fix it, or empty.
    """

    message: str
    where: str = ""
    source: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{_shown(self.where)}: {_shown(self.message)}" if self.where else _shown(self.message)
        if self.source:
            text += "\n" + _shown(self.source)
        if self.hint:
            text += f"\n  hint: {_shown(self.hint)}"
        return text


def _shown(text: str) -> str:
    """A part of a message as a terminal can show it: control characters escaped, a long one without its middle."""
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text[: 2 * _MAX_PART])
    return text if len(text) <= _MAX_PART else f"{text[: _MAX_PART * 3 // 4]} … {text[-_MAX_PART // 4 :]}"


class UsageError(Exception):
    """Bad input. The command line prints the problems and exits 2; nothing was run and nothing was written."""

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        lengths = itertools.accumulate(len(str(problem)) + 1 for problem in self.problems)
        count = max(1, sum(length <= _MAX_TEXT for length in lengths))
        further = [f"… and {len(self.problems) - count} more"] if len(self.problems) > count else []
        return "\n".join([*map(str, self.problems[:count]), *further])

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:
        return type(self), (self.problems,)


class Stopped(Exception):
    """A started run cannot continue. The command line prints the problem and exits 3; finished trials are kept."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem)

    def __str__(self) -> str:
        return str(self.problem)


def text_of(error: BaseException) -> str:
    """``str(error)``, which may itself raise."""
    try:
        return str(error)
    except Exception as second:
        return f"(no text: {type(second).__name__})"


def near_miss(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the closest known word, then all known words.

    Returns:
        ``"did you mean 'x'? known: x, y"``, or only the list where no word is close.
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    listing = ("known: " + ", ".join(names)) if names else "none are known"
    return f"did you mean {near[0]!r}? {listing}" if near else listing


def refused(kind: str, message: str, location: tuple[str, ...], value: Any, hint: str = "") -> ValidationError:
    """A validation error at ``location`` in the model whose validator raises it.

    Args:
        kind: pydantic's type of the error; with the prefix "unknown_" the message is shown without the field's name.
        message: what is wrong.
        location: field names.
        value: the refused value.
        hint: how to fix it.
    """
    error = PydanticCustomError(kind, "{message}", {"message": message, "hint": hint})  # type: ignore[arg-type]
    return ValidationError.from_exception_data("suite", [InitErrorDetails(type=error, loc=location, input=value)])
