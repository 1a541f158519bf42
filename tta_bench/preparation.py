"""Preparations: jobs whose results are inputs of trials, done before the trials that need them are planned.

A preparation's result is a file. It is named after all that it depends on, so that it is made once, and stands in the keys
of the trials that use it by its content.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.data.base import digest
from tta_bench.errors import Problem, Stopped

FOLDER = "prepared"  # in a run's folder
_UNFINISHED = "unfinished"  # in that folder: what an interrupted preparation left, to go on from


class CannotGoOn(Exception):
    """Raised by a preparation that cannot be finished; what it had is kept. The message says why."""


@dataclass(frozen=True)
class Preparation:
    """A job, not begun.

    Attributes:
        name: in a few words that can be part of a file's name, such as ``mgg-resnet_bn``.
        asked: all that the result depends on.
        suffix: of the result's file.
        make: writes the result to a path, which lies in a folder where a job that was interrupted finds what it left;
            tells the user how far it is by the second argument, and returns a sentence on the result.

    """

    name: str
    asked: Mapping[str, Any]
    suffix: str
    make: Callable[[pathlib.Path, Callable[[str], None]], str]

    @property
    def file(self) -> str:
        """The name of the result's file."""
        return f"{self.name}-{digest(self.asked)[:12]}{self.suffix}"


def waiting(preparations: Sequence[Preparation], run: pathlib.Path) -> list[Preparation]:
    """Those whose result is not in a run's folder; each once."""
    unique = {preparation.file: preparation for preparation in preparations}
    return [p for file, p in unique.items() if not (run / FOLDER / file).is_file()]


def finish(preparations: Sequence[Preparation], run: pathlib.Path, say: Callable[[str], None]) -> None:
    """Do what is waiting, one after another; a result appears under its name once it is whole.

    Raises:
        Stopped: one cannot be finished; the results of those before it are kept.
    """
    for preparation in waiting(preparations, run):
        unfinished = run / FOLDER / _UNFINISHED / preparation.file
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        say(f"preparing {preparation.name}")
        try:
            said = preparation.make(unfinished, lambda text, name=preparation.name: say(f"  {name}: {text}"))  # type: ignore[misc]
        except CannotGoOn as error:
            raise Stopped(Problem(f"{preparation.name} cannot be prepared: {error}", where=str(unfinished))) from error
        say(f"  {preparation.name}: {said}")
        unfinished.rename(run / FOLDER / preparation.file)


def results(preparations: Mapping[Any, Preparation], run: pathlib.Path) -> dict[Any, pathlib.Path]:
    """The file of each preparation that is done, by the same keys."""
    files = {place: run / FOLDER / preparation.file for place, preparation in preparations.items()}
    return {place: file for place, file in files.items() if file.is_file()}
