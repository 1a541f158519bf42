"""Reading files of published numbers."""

from __future__ import annotations

import csv
import importlib.resources
import io
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tta_bench.errors import Problem, UsageError, near_miss

COLUMNS = ("paper", "arxiv", "source", "dataset", "model", "protocol", "severity", "method", "corruption", "metric",
           "value", "method_id", "weights", "preprocessing", "images", "comparable")  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        paper, arxiv, source: where it was published.
        dataset, model, protocol, method: as the paper names them.
        severity: None where there is none.
        corruption: "mean" for the mean over ImageNet-C's 15; "none" for a data set without corruptions.
        error: per cent; None where the number is no error.
        decimals: of the printed number: 43.5 stands for 43.45 to 43.55.
        method_id: the method's name here; empty where there is none.
        weights: a full timm tag, or another description; empty where unknown.
        preprocessing: name of the mean and standard deviation; empty where unknown.
        images: number of images a corruption; None where not known.
        comparable: whether its setting is known well enough.
    """

    paper: str
    arxiv: str
    source: str
    dataset: str
    model: str
    protocol: str
    severity: int | None
    method: str
    corruption: str
    error: float | None
    decimals: int
    method_id: str
    weights: str
    preprocessing: str
    images: int | None
    comparable: bool


def shipped() -> pathlib.Path:
    """The file that comes with the package."""
    return pathlib.Path(str(importlib.resources.files("tta_bench.reference").joinpath("published.csv")))


def load(file: pathlib.Path) -> list[Published]:
    """Read published numbers, from a file in the form of ``results/reference/published.csv``.

    Raises:
        UsageError: it cannot be read, lacks columns, or has values that are not numbers; all problems at once.
    """
    where = str(file)
    try:
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")))
        names = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        hint = "name a CSV file in the form of results/reference/published.csv"
        if file.is_dir():
            hint = "--reference takes the word after it for its file: give the runs first"
        raise UsageError(Problem(f"published numbers cannot be read: {error}", where, hint=hint)) from error
    lacking = [
        Problem(f"no column {name!r}", where, hint=near_miss(name, names)) for name in COLUMNS if name not in names
    ]
    if lacking:
        raise UsageError(lacking)
    problems = [problem for line, row in rows for problem in _problems(row, f"{where}:{line}")]
    if problems:
        raise UsageError(problems)
    return [_published(row) for _, row in rows]


def _problems(row: Mapping[str, str | None], where: str) -> Iterator[Problem]:
    short = [name for name in COLUMNS if row[name] is None]
    if short:
        yield Problem(f"the row ends before column {short[0]!r}", where, hint="each row has all columns of the first")
        return
    if _is_error(row) and not _is_number(row["value"]):
        yield Problem(f"value {row['value']!r} is not a number from 0 to 100", where, hint="errors are per cent")
    if row["severity"] not in ("", "-", "0", "1", "2", "3", "4", "5"):
        yield Problem(f"severity {row['severity']!r} is not 0 to 5", where, hint="write '-' where there is none")
    if row["comparable"] not in ("yes", "no"):
        yield Problem(f"comparable is {row['comparable']!r}", where, hint="yes or no")


def _is_error(row: Mapping[str, str | None]) -> bool:
    return row["metric"] in ("err%", "acc%")


def _is_number(text: str | None) -> bool:
    try:
        return 0 <= float(text or "") <= 100
    except ValueError:
        return False


def _published(row: Mapping[str, str]) -> Published:
    value = row["value"]
    error = None
    if _is_error(row):
        error = float(value) if row["metric"] == "err%" else round(100 - float(value), 9)
    return Published(
        **{name: row[name] for name in ("paper", "arxiv", "source", "dataset", "model", "protocol", "method", "method_id",
                                        "weights", "preprocessing")},
        severity=int(row["severity"]) if row["severity"].isdecimal() else None,
        corruption="mean" if row["corruption"] == "avg" else row["corruption"],
        error=error,
        decimals=len(value.partition(".")[2]),
        images=int(row["images"]) if row["images"].isdecimal() else None,
        comparable=row["comparable"] == "yes",
    )  # fmt: skip
