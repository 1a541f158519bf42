"""A suite's data, opened without its source models; folders that are absent or wrong leave the others open."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tta_bench.data import DataConfig, DataRequest, Dataset, open_data
from tta_bench.data.base import FilePath
from tta_bench.data.labels import read_labels
from tta_bench.data.reference import OWN, PublishedSet
from tta_bench.errors import Problem, UsageError
from tta_bench.registry import DATASETS, Registry
from tta_bench.streams import Shift
from tta_bench.suite.document import VARIABLE, Document
from tta_bench.suite.loader import plugins_of, read_document, validated
from tta_bench.suite.parts import config_class
from tta_bench.suite.schema import Suite
from tta_bench.suite.sources import data_key, odd_labels


@dataclass
class Place:
    """A folder or file that the suite's ``data`` names.

    Attributes:
        key: of ``data``.
        written: as the suite has it, with variables; empty where it comes from the command line.
        path: with variables replaced; empty where one is not set.
        published: the data set that it is for.
        remark: what the suite's comments say of its variable, or empty.
        problems: with what is in it; ``absent`` where there is nothing.
    """

    key: str
    written: str
    path: str
    published: PublishedSet
    remark: str = ""
    problems: list[Problem] = field(default_factory=list)

    @property
    def absent(self) -> bool:
        """Whether there is no such folder or file."""
        return not self.path or not pathlib.Path(self.path).expanduser().exists()

    @property
    def variables(self) -> list[str]:
        """The variables in it, by name."""
        return [match.group(1) for match in VARIABLE.finditer(self.written)]


@dataclass
class SuiteData:
    """The data of a suite.

    Attributes:
        name: the suite's.
        kind: of data.
        places: the folders and files that it names, in the suite's order.
        dataset: what could be opened of it, or None.
        config: of the dataset, without the keys that have a problem.
        shifts: those of the suite that the dataset has.
        problems: that are in no place.
        cache: "on" or "off", as the suite says.
    """

    name: str
    kind: str
    places: list[Place]
    dataset: Dataset | None = None
    config: DataConfig | None = None
    shifts: tuple[Shift, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    cache: str = "on"


def load(
    name: str, sets: Iterable[str] = (), plugins: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> SuiteData:
    """Open a suite's data; arguments as of :func:`tta_bench.suite.load`.

    Raises:
        UsageError: the suite is wrong in another way than that data are missing; unset variables of other parts are none.
    """
    document, problems = read_document(name, sets, environment), list[Problem]()
    _, registry = plugins_of(document, plugins, problems)
    given = document.data.get("data")
    config = config_class(DATASETS, given, registry)
    if problems or not isinstance(given, dict) or config is None or not issubclass(config, DataConfig):
        validated(document, registry, problems)
        raise UsageError(problems)
    places = [_place(document, config, key) for key in given if key in config.path_keys()]
    found = SuiteData(str(document.data.get("name", name)), str(given["kind"]), places)
    absent = [place.key for place in places if place.absent and given[place.key] is not None]
    if any(config.model_fields[key].is_required() or key in config.path_keys(FilePath) for key in absent):
        return found  # without a file of labels a folder would be read as another
    for key in absent:
        document.override(["data", key], None, f"data.{key}")
    suite = validated(document, registry, problems)
    if suite is None:
        raise UsageError(problems)
    found.cache, found.config = suite.cache, suite.data
    _open(found, suite, registry)
    return found


def _place(document: Document, config: type[DataConfig], key: str) -> Place:
    given = document.data["data"]
    published = config.published(given).get(key) or PublishedSet(key, OWN, "")
    place = Place(key, document.written(("data", key)), str(given[key] or ""), published)
    exports = [f"export {name}=" for name in place.variables]
    told = [line.partition("=")[2].partition("#")[2] for line in document.lines if any(e in line for e in exports)]
    place.remark = told[0].strip() if told else ""
    return place


def _open(found: SuiteData, suite: Suite, registry: Registry) -> None:
    """Open the data without the places that have problems, which become known one after the other."""
    while found.config is not None and found.dataset is None:
        config = found.config
        wanted = [shift for shift in suite.shifts() if _named(config, config.key_of(shift))]
        try:
            found.dataset = open_data(config, DataRequest(tuple(wanted), None, _labels(suite)), registry)
        except UsageError as error:
            found.config = _without(found, config, error.problems)
            continue
        for shift in wanted:
            problem = found.dataset.missing(shift) or odd_labels(found.dataset, shift)
            if problem is None:
                found.shifts += (shift,)
            else:
                _blame(found, config, problem, config.key_of(shift))


def _named(config: DataConfig, key: str) -> bool:
    """Whether the suite's data name a folder at ``key``; always where the kind has no such key."""
    return bool(getattr(config, key, True))


def _without(found: SuiteData, config: DataConfig, problems: list[Problem]) -> DataConfig | None:
    """The Config without the keys that the problems are with; None where it needs one of them, or they are with none."""
    keys = {_blame(found, config, problem) for problem in problems}
    if None in keys or any(type(config).model_fields[str(key)].is_required() for key in keys):
        return None
    return config.model_copy(update=dict.fromkeys(map(str, keys)))


def _blame(found: SuiteData, config: DataConfig, problem: Problem, key: str | None = None) -> str | None:
    """Add a problem to the place at ``key``, or that it is in, and return its key; None where it is in none."""
    key = key or data_key(config, problem.where)
    place = next((place for place in found.places if place.key == key), None)
    problems = found.problems if place is None else place.problems
    if problem not in problems:
        problems.append(problem)
    return None if place is None else key


def _labels(suite: Suite) -> tuple[str, ...] | None:
    """The names of the classes of the source models: those that the suite has, or the usual ones."""
    if not suite.data.by_labels:
        return None
    given: list[Any] = [labels for model in suite.models if (labels := getattr(model, "labels", None))]
    usual = suite.data.usual_labels()
    return read_labels(given[0]) if given else None if usual is None else tuple(usual)
