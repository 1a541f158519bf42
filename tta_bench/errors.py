"""What a user did wrong, said once and clearly: what, where, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        message: what is wrong, in one sentence.
        where: ``file:line:column``, a path, or the name of a part; empty where there is no place.
        source: the offending source line with its number and a caret line, ready to print, or empty.
        hint: how to mend it, or empty.
    """

    message: str
    where: str = ""
    source: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.source:
            text += "\n" + self.source
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class UsageError(Exception):
    """Bad input. The command line prints the problems and exits 2; nothing was run and nothing was written."""

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:
        return type(self), (self.problems,)


class Stopped(Exception):
    """A run that had begun cannot go on. The command line prints the problem and exits 3; what had finished is kept."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem)

    def __str__(self) -> str:
        return str(self.problem)


def text_of(error: BaseException) -> str:
    """An exception's own text; making it may fail, too."""
    try:
        return str(error)
    except Exception as second:
        return f"(its text cannot be had: {type(second).__name__})"


def near_miss(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the nearest known one, then all of them.

    Returns:
        ``"did you mean 'x'? known: x, y"``, or the list alone where nothing is near.
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    listing = ("known: " + ", ".join(names)) if names else "none is known"
    return f"did you mean {near[0]!r}? {listing}" if near else listing


def refused(kind: str, message: str, place: tuple[str, ...], value: Any, hint: str = "") -> ValidationError:
    """A validation error at ``place`` below the model in whose validator it is raised.

    Args:
        kind: pydantic's type of the error; where it begins with "unknown_", the message speaks for itself.
        message: what is wrong.
        place: field names.
        value: that was given.
        hint: how to mend it.
    """
    said = PydanticCustomError(kind, "{message}", {"message": message, "hint": hint})  # type: ignore[arg-type]
    return ValidationError.from_exception_data("suite", [InitErrorDetails(type=said, loc=place, input=value)])
