"""Preparations: jobs that make inputs of trials, run before the trials that need them are planned.

A preparation's result is a file whose name has a digest of everything it depends on, so that it is made once. The keys of
the trials that use it have its content's digest.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.data.base import digest
from tta_bench.errors import Problem, Stopped

FOLDER = "prepared"  # in a run's folder
_UNFINISHED = "unfinished"  # in that folder: partial results, from which an interrupted preparation resumes


class CannotGoOn(Exception):
    """A preparation cannot be finished; its partial result is kept. The message has the reason."""


@dataclass(frozen=True)
class Preparation:
    """A job that has not started.

    Attributes:
        name: a short name that can be part of a file's name, such as ``mgg-resnet_bn``.
        asked: everything that the result depends on.
        suffix: of the result's file.
        make: writes the result to the given path, in a folder that keeps partial results of an interrupted job; reports
            progress through its second argument, and returns a sentence on the result.
        outdated: whether an existing result has to be made again.
    """

    name: str
    asked: Mapping[str, Any]
    suffix: str
    make: Callable[[pathlib.Path, Callable[[str], None]], str]
    outdated: Callable[[pathlib.Path], bool] = lambda file: False

    @property
    def file(self) -> str:
        """The name of the result's file."""
        return f"{self.name}-{digest(self.asked)[:12]}{self.suffix}"


def waiting(preparations: Sequence[Preparation], run: pathlib.Path) -> list[Preparation]:
    """The preparations, each once, whose result is not in a run's folder, or is outdated."""
    unique = {run / FOLDER / preparation.file: preparation for preparation in preparations}
    return [p for file, p in unique.items() if not file.is_file() or p.outdated(file)]


def finish(preparations: Sequence[Preparation], run: pathlib.Path, say: Callable[[str], None]) -> None:
    """Run the waiting preparations in turn; a result gets its final name when it is complete.

    Raises:
        Stopped: one cannot be finished; earlier results are kept.
    """
    for preparation in waiting(preparations, run):
        unfinished = run / FOLDER / _UNFINISHED / preparation.file
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        say(f"preparing {preparation.name}")
        try:
            summary = preparation.make(unfinished, lambda text, name=preparation.name: say(f"  {name}: {text}"))  # type: ignore[misc]
        except CannotGoOn as error:
            raise Stopped(Problem(f"{preparation.name} cannot be prepared: {error}", where=str(unfinished))) from error
        say(f"  {preparation.name}: {summary}")
        unfinished.rename(run / FOLDER / preparation.file)


def results(preparations: Mapping[Any, Preparation], run: pathlib.Path) -> dict[Any, pathlib.Path]:
    """The files of the finished preparations, by the same keys."""
    files = {key: run / FOLDER / preparation.file for key, preparation in preparations.items()}
    return {key: file for key, file in files.items() if file.is_file()}
