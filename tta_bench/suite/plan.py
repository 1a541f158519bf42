"""Suite to an ordered list of Trials, each with a content key.

Planning opens the data (lists files, decodes nothing), loads every source model once to check its weights, and resolves
every method's hyperparameters, so that whatever is wrong is said before anything runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tta_bench import NUMERICS_VERSION
from tta_bench.adapter import Adapter, Config
from tta_bench.data import DataRequest, Dataset, open_data
from tta_bench.data.base import digest
from tta_bench.data.cache import Entry as CacheEntry
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.models import Network
from tta_bench.protocols import Protocol, ProtocolConfig, Streams
from tta_bench.registry import DATASETS, PROTOCOLS, Registry, foreign_code
from tta_bench.setting import Setting, setting_of
from tta_bench.streams import Shift, StreamSpec, subset
from tta_bench.suite import LoadedSuite, Suite
from tta_bench.suite.keys import Keys
from tta_bench.suite.prepare import Place
from tta_bench.suite.resolve import Row, resolve
from tta_bench.suite.select import Filter
from tta_bench.suite.sources import Model, open_datasets, open_models


@dataclass(frozen=True)
class Trial:
    """One method, one source model, one stream, one seed.

    Attributes:
        key: SHA-256 of the canonical JSON of ``asked``.
        label: the row's name in tables; ``method`` is the registered name.
        variant: the method's variant ("official" where it has only one).
        preset: the published hyperparameters it started from; empty: the Config's own defaults.
        preset_missing: the preset that the model names and the method lacks, so that its defaults are used; or empty.
        config: resolved hyperparameters.
        model: the suite's name of the source model.
        stream: how the stream is made.
        setting: what must agree with another trial's for their numbers to stand in one table.
        parameters: of its protocol, those at their default too.
        seed: the trial's seed.
        precision: a name of :data:`tta_bench.run.precision.PRECISIONS`.
        asked: all that was asked for, which is all that the key depends on.
    """

    key: str
    label: str
    method: str
    variant: str
    preset: str
    preset_missing: str
    config: Mapping[str, Any]
    model: str
    stream: StreamSpec
    setting: Setting
    parameters: Mapping[str, Any]
    seed: int
    precision: str
    asked: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Materials:
    """What all trials of a run share; sent once to every worker.

    Attributes:
        models: model name to its network.
        datasets: model name to its data (one object, unless the geometry depends on the weights).
        registry: where plugins are found; files travel with it.
        data_code: digest of the code of the kind of data, where that is no part of the harness, else empty.
        contents: the digest of the images' fingerprint for each model name and shift, over the images that are used.
        parameters: model name to its number of parameters.
        reopen: model name to a function that opens its data anew, on whichever machine.
        folder: the driver's working directory, which relative paths (data, weights, checkpoints) are relative to.
    """

    models: Mapping[str, Network]
    datasets: Mapping[str, Dataset]
    registry: Registry
    data_code: str
    contents: Mapping[tuple[str, Shift], str]
    parameters: Mapping[str, int]
    reopen: Mapping[str, Callable[[], Dataset]]
    folder: str

    def enter(self) -> None:
        """Make this process's working directory the driver's, where this machine has it: its paths then mean the same."""
        with contextlib.suppress(OSError):  # what relative paths name is then not here, and said to be lacking
            os.chdir(self.folder)

    def cache_entry(self, model: str, stream: StreamSpec, shift: Shift) -> CacheEntry:
        """The cached images that a trial's stream uses under ``shift``."""
        dataset = self.datasets[model]
        return CacheEntry(dataset, shift, used_images(dataset, shift, stream), self.contents[model, shift])

    def streams(self) -> Streams:
        """A builder of streams over these data."""
        return Streams(self.registry, _labels_of(self.datasets))

    def all_images(self, trial: Trial) -> bool:
        """Whether a trial's stream may use all images of all its shifts, which need not have equally many."""
        dataset, size = self.datasets[trial.model], trial.stream.subset
        return size is None or all(size >= len(dataset.labels_of(shift)) for shift in trial.stream.shifts)

    def images_a_shift(self, trial: Trial) -> int:
        """How many images a trial's stream may use of that of its shifts which has most."""
        dataset, stream = self.datasets[trial.model], trial.stream
        return max(len(used_images(dataset, shift, stream)) for shift in stream.shifts)

    def config(self, trial: Trial) -> Config:
        """The trial's hyperparameters, as its method's Config."""
        cls: type[Adapter] = self.registry.load(trial.method)
        return cls.Config.model_validate(trial.config, context={"registry": self.registry})


def _labels_of(datasets: Mapping[str, Dataset]) -> Callable[[str, Shift], np.ndarray]:
    return lambda model, shift: datasets[model].labels_of(shift)


def used_images(dataset: Dataset, shift: Shift, stream: StreamSpec) -> np.ndarray:
    """(n,) int32 sorted indices of the images that a stream uses of a shift."""
    return subset(len(dataset.labels_of(shift)), stream.subset, stream.data_seed)


@dataclass(frozen=True)
class Plan:
    """Attributes: name: the suite's; materials: what trials share; trials: in order; axes: what the suite varies."""

    name: str
    materials: Materials
    trials: tuple[Trial, ...]
    axes: tuple[str, ...] = ()

    def cache_entries(self, trials: Iterable[Trial] | None = None) -> list[CacheEntry]:
        """Each (data, shift) that ``trials`` (default: all) use, once."""
        found: dict[tuple[int, Shift], CacheEntry] = {}
        for trial in self.trials if trials is None else trials:
            for shift in trial.stream.shifts:
                place = (id(self.materials.datasets[trial.model]), shift)
                if place not in found:
                    found[place] = self.materials.cache_entry(trial.model, trial.stream, shift)
        return list(found.values())


def sources(loaded: LoadedSuite) -> dict[str, tuple[Network, Dataset, Mapping[str, Any]]]:
    """For each source model its network, its data, and what a key would say of it; for pre-training.

    Raises:
        UsageError: with every problem of models and data.
    """
    problems: list[Problem] = []
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    if problems:
        raise UsageError(problems)
    return {name: (model.network, datasets[name], model.asked) for name, model in models.items()}


def make(
    loaded: LoadedSuite,
    limit: int | None = None,
    only: Filter | None = None,
    digests: Digests | None = None,
    prepared: Mapping[Place, pathlib.Path] | None = None,
) -> Plan:
    """Plan a suite.

    Args:
        loaded: the suite.
        limit: size of the seeded subset of images, in place of the suite's ``max_images``.
        only: which rows are to be run, all by default; one that is not, and whose hyperparameters are refused (such as a
            checkpoint that is not there), is left out.
        digests: reads what image files hold, and remembers it; one without progress by default.
        prepared: the files that preparations have made for rows which ask for them.

    Raises:
        UsageError: with every problem of models, data and hyperparameters.
    """
    suite, problems = loaded.suite, list[Problem]()
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    configs = resolve(loaded, only.allows if only else lambda *_: True, prepared or {}, problems)
    problems += _too_few_images(loaded, datasets, Streams(loaded.registry, _labels_of(datasets)), limit)
    if problems:
        raise UsageError(problems)
    digests = digests or Digests()
    code = foreign_code(loaded.registry.entry(suite.data.kind, DATASETS))
    materials = Materials(
        {name: model.network for name, model in models.items()},
        datasets,
        loaded.registry,
        code,
        dict(_contents(suite, datasets, limit, digests, code)),
        {name: model.parameters for name, model in models.items()},
        {name: reopening(loaded, model) for name, model in models.items()},
        str(pathlib.Path.cwd()),
    )
    known = _Known(suite, materials, limit, digests)
    trials = tuple(_trials(suite, models, materials, configs, known))
    if known.problems:
        places = [("protocol", *filter(None, p.where.split("."))) for p in known.problems]  # keys that are at fault
        problems += [
            loaded.document.problem(place, p.message, p.hint) for place, p in zip(places, known.problems, strict=True)
        ]
        raise UsageError(problems)
    return Plan(suite.name, materials, trials, suite.axes())


def _contents(
    suite: Suite, datasets: Mapping[str, Dataset], limit: int | None, digests: Digests, code: str
) -> Iterator[tuple[tuple[str, Shift], str]]:
    """Each model and shift with the digest of the images that are used; what models share is read once."""
    read: dict[tuple[int, Shift], str] = {}
    for model, dataset in datasets.items():
        for shift in suite.shifts():
            place = (id(dataset), shift)
            if place not in read:
                rows = subset(len(dataset.labels_of(shift)), limit or suite.data.max_images, suite.data.seed)
                read[place] = content_of(dataset, shift, rows, digests, code)
            yield (model, shift), read[place]


def content_of(dataset: Dataset, shift: Shift, rows: np.ndarray, digests: Digests, code: str) -> str:
    """The digest that stands for images ``rows`` (n,) under a shift; ``code``: of a plugin that makes them, or empty."""
    found = dataset.fingerprint(shift, rows, digests)
    return digest([found, code] if code else found)


def reopening(loaded: LoadedSuite, model: Model) -> Callable[[], Dataset]:
    """A function that opens a model's data anew."""
    request = DataRequest(loaded.suite.shifts(), model.geometry)
    return functools.partial(open_data, loaded.suite.data, request, loaded.registry)


def _trials(
    suite: Suite, models: Mapping[str, Model], materials: Materials, rows: list[Row], known: _Known
) -> Iterator[Trial]:
    axes = suite.axes()
    for row, precision in itertools.product(rows, suite.precision):
        config = row.config.model_dump(mode="json")
        shared = {
            "numerics_version": NUMERICS_VERSION,
            "method": row.asked,
            "model": models[row.model].asked,
            "data": "",
            **({"source": known.source(row.model)} if row.source_images else {}),
            "stream": "",
            "batch_size": row.batch_size,
            "seed": 0,
            "precision": precision,
        }
        key_of = Keys(shared)
        cells = (known.cells(row.model, row.batch_size, seed) for seed in suite.seeds)
        for stream, protocol, own in itertools.chain.from_iterable(cells):
            yield Trial(
                key=key_of(own),
                label=row.label,
                method=row.method.name,
                variant=row.asked["variant"],
                preset=row.preset,
                preset_missing=row.preset_missing,
                config=config,
                model=row.model,
                stream=stream,
                setting=setting_of(materials.datasets[row.model].title, protocol, stream, precision, axes),
                parameters=protocol.values(),
                seed=stream.seed,
                precision=precision,
                asked=shared | own,
            )


def _too_few_images(
    loaded: LoadedSuite, datasets: Mapping[str, Dataset], streams: Streams, limit: int | None
) -> Iterator[Problem]:
    """That ``adapt_images`` adapts on a whole segment; looked for before images are read, which may take long."""
    after, shifts = loaded.suite.protocol.graded_after, loaded.suite.shifts()
    if after is None:
        return
    whole = {id(d): name for name, d in datasets.items() if not any(d.missing(shift) for shift in shifts)}
    sizes = (found for model in whole.values() for found in _segments(loaded, model, streams, limit))
    size, name = min(sizes, default=(after + 1, ""))
    if size <= after:
        what = f"adapt_images {after} leaves none of {size} images of segment {name} to grade"
        yield loaded.document.problem(("protocol", "adapt_images"), what, "use more images, or smaller numbers")


def _segments(loaded: LoadedSuite, model: str, streams: Streams, limit: int | None) -> Iterator[tuple[int, str]]:
    """(images, name) of each segment of a suite's streams."""
    suite = loaded.suite
    for batch_size, seed in itertools.product(suite.batch_size, suite.seeds):
        for _, spec in _wholes(suite, loaded.registry, limit, batch_size, seed):
            with contextlib.suppress(UsageError):  # a rule that cannot be followed is told of when its trials are made
                for _, stream in streams.specs(model, spec):
                    bounds = stream.bounds
                    parts = [s for s in stream.segments if s.role != "probe"]
                    yield from ((int(bounds[s.last] - bounds[s.first]), s.name) for s in parts)


def _wholes(
    suite: Suite, registry: Registry, limit: int | None, batch_size: int, seed: int
) -> Iterator[tuple[ProtocolConfig, StreamSpec]]:
    """Each protocol that a suite asks for, and the whole of each stream that it makes."""
    cls: type[Protocol] = registry.load(suite.protocol.kind, PROTOCOLS)
    size, after = limit or suite.data.max_images, suite.protocol.graded_after
    groups = suite.by_severity() if cls.by_severity else [suite.shifts()]
    for protocol, given in itertools.product(suite.protocol.singles(), groups):
        yield protocol, StreamSpec(protocol.canonical(), given, size, suite.data.seed, batch_size, seed, after)


_Cell = tuple[StreamSpec, ProtocolConfig, dict[str, Any]]


class _Known:
    """What the trials of different methods share, each computed once: streams and digests of the data.

    Attributes:
        problems: why streams cannot be made.
    """

    def __init__(self, suite: Suite, materials: Materials, limit: int | None, digests: Digests):
        self._suite, self._materials, self._limit, self._digests = suite, materials, limit, digests
        self._streams = materials.streams()
        self._cells: dict[tuple[int, int, int], list[_Cell]] = {}
        self._sources: dict[int, str] = {}
        self.problems: list[Problem] = []

    def cells(self, model: str, batch_size: int, seed: int) -> list[_Cell]:
        """Each stream of a seed, its protocol, and what a key says of it."""
        place = (id(self._materials.datasets[model]), batch_size, seed)
        if place not in self._cells:
            try:
                self._cells[place] = list(self._made(model, batch_size, seed))
            except UsageError as error:
                self._cells[place] = []
                self.problems += [p for p in error.problems if p not in self.problems]
        return self._cells[place]

    def _made(self, model: str, batch_size: int, seed: int) -> Iterator[_Cell]:
        seen = set[tuple[str, str]]()  # of each value of the protocol: two that make equal streams have rows each
        for protocol, spec in _wholes(self._suite, self._materials.registry, self._limit, batch_size, seed):
            for found, stream in self._streams.specs(model, spec):
                if unknown := [s.id for s in found.shifts if (model, s) not in self._materials.contents]:
                    what = f"the data have no images of {unknown[0]}, nor of {len(unknown) - 1} more of its shifts"
                    raise UsageError(Problem(what, hint="these data show one corruption at a time"))
                place = (protocol.canonical(), stream.sha256)
                if place not in seen:  # clean images are in the stream of every severity
                    seen.add(place)
                    data = self._data(model, found.shifts)
                    yield found, protocol, {"data": data, "stream": stream.sha256, "seed": seed}

    def _data(self, model: str, shifts: tuple[Shift, ...]) -> str:
        return digest([self._materials.contents[model, shift] for shift in shifts])

    def source(self, model: str) -> str | None:
        """The digest of a model's source images, or None where there are none."""
        source = self._materials.datasets[model].source
        if source is None:
            return None
        if id(source) not in self._sources:
            self._sources[id(source)] = digest(source.fingerprint(source.all_rows(), self._digests))
        return self._sources[id(source)]
