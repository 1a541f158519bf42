"""Preparations: jobs that make inputs of trials, run before the trials that need them are planned.

A preparation's result is a file whose name has a digest of everything it depends on, so that it is made once. The keys of
the trials that use it have its content's digest. A file beside it, ``….sha256``, tells whether it is as it was made.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.data.base import digest
from tta_bench.errors import Problem, Stopped
from tta_bench.files import write_text

FOLDER = "prepared"  # in a run's folder
_SEAL = ".sha256"  # ends the name of the file with a result's digest
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
        outdated: whether an existing result has to be made again, though it is as it was made. It may raise where that
            must not be done unasked.
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
    """The preparations, each once, whose result is not in a run's folder, or is damaged or outdated."""
    unique = {run / FOLDER / preparation.file: preparation for preparation in preparations}
    return [p for file, p in unique.items() if not file.is_file() or p.outdated(file) or not is_intact(file)]


def damaged(run: pathlib.Path) -> list[pathlib.Path]:
    """The results in a run's folder that are not as they were made."""
    sealed = (path.with_suffix("") for path in sorted((run / FOLDER).glob(f"*{_SEAL}")))
    return [file for file in sealed if file.is_file() and not is_intact(file)]


def is_intact(file: pathlib.Path) -> bool:
    """Whether a result is as it was made. Those that an earlier version made pass: it kept no digest."""
    try:
        seal = _seal_of(file)
        return not seal.exists() or seal.read_text(encoding="utf-8", errors="replace") == _digest(file)
    except OSError:
        return False


def _seal_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name + _SEAL)


def _digest(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def finish(preparations: Sequence[Preparation], run: pathlib.Path, say: Callable[[str], None]) -> None:
    """Run the waiting preparations in turn; a result gets its final name when it is complete.

    Raises:
        Stopped: one cannot be finished; earlier results are kept.
    """
    for preparation in waiting(preparations, run):
        unfinished = run / FOLDER / _UNFINISHED / preparation.file
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        file = run / FOLDER / preparation.file
        if file.exists() and not is_intact(file):
            say(f"damaged, and made again: {file}")
        say(f"preparing {preparation.name}")
        try:
            summary = preparation.make(unfinished, lambda text, name=preparation.name: say(f"  {name}: {text}"))  # type: ignore[misc]
        except CannotGoOn as error:
            raise Stopped(Problem(f"{preparation.name} cannot be prepared: {error}", where=str(unfinished))) from error
        say(f"  {preparation.name}: {summary}")
        write_text(_seal_of(file), _digest(unfinished))
        unfinished.replace(file)


def results(preparations: Mapping[Any, Preparation], run: pathlib.Path) -> dict[Any, pathlib.Path]:
    """The files of the finished preparations, by the same keys."""
    files = {key: run / FOLDER / preparation.file for key, preparation in preparations.items()}
    return {key: file for key, file in files.items() if file.is_file() and is_intact(file)}
