"""Suite to an ordered list of Trials, each with a content key.

Planning opens the data (lists files, decodes nothing), loads each source model once to check its weights, and resolves
each method's hyperparameters, so that errors are reported before anything runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from tta_bench import NUMERICS_VERSION
from tta_bench.adapter import Adapter, Config
from tta_bench.data import Dataset, open_data
from tta_bench.data.base import digest
from tta_bench.data.cache import CacheEntry
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.models import Network
from tta_bench.precision import Mode
from tta_bench.protocols import Protocol, ProtocolConfig, Streams
from tta_bench.protocols.config import MEASURE
from tta_bench.registry import DATASETS, PROTOCOLS, Registry, foreign_code
from tta_bench.setting import Setting, setting_of
from tta_bench.streams import COMPOUND, Shift, StreamSpec, subset
from tta_bench.suite import LoadedSuite, Suite
from tta_bench.suite.cost_ratios import NOT_MEASURED, CostRatio, CostRow
from tta_bench.suite.keys import Keys
from tta_bench.suite.prepare import Accuracies, Request
from tta_bench.suite.resolve import ResolvedMethod, resolve, rows_problem
from tta_bench.suite.schema import Evaluation
from tta_bench.suite.select import Filter
from tta_bench.suite.sources import OpenedModel, open_datasets, open_models, request_of

MOST_TRIALS = 10_000  # of a plan without --yes; benchmarks/driver.py measures a run of as many


@dataclass(frozen=True)
class Trial:
    """One method, one source model, one stream, one seed.

    Attributes:
        key: SHA-256 of the canonical JSON of ``asked``.
        label: the row's name in tables; ``method`` is the registered name.
        variant: the method's variant ("official" where it has only one).
        preset: name of the published hyperparameters used; empty: the Config's defaults.
        preset_missing: the model's preset where the method lacks it and its defaults are used; or empty.
        config: resolved hyperparameters.
        model: name of the source model in the suite.
        stream: specification of the stream.
        setting: must agree with another trial's for their numbers to share a table.
        parameters: of its protocol, including those at their default.
        cost_ratio: the number that the stream follows, where its rule has one; None also where it could not be measured.
        mask: the class mask: the source model's classes that are kept, or None for all.
        obstacle: why the trial cannot run: the outcome of measuring its cost ratio; else None.
        calibrates: whether it measures a cost ratio.
        profiles: whether it ends after a few steps, of which it leaves a trace in the place of a result.
        seed: the trial's seed.
        mode: how the network computes.
        asked: everything that was asked for, and that the key depends on.
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
    mode: Mode
    asked: Mapping[str, Any] = field(repr=False)
    cost_ratio: float | None = None
    mask: tuple[int, ...] | None = field(default=None, repr=False)
    obstacle: CostRatio | None = None
    calibrates: bool = False
    profiles: bool = False

    @property
    def cost_row(self) -> CostRow | None:
        """The row whose cost ratio is measured for it; None where none is."""
        if (self.parameters["adapt"] or {}).get("cost_ratio") != MEASURE:
            return None
        return self.label, self.model, self.stream.batch_size, self.mode.text

    @property
    def counts_at_chance(self) -> bool:
        """Whether batches that are not adapted on are not predicted either, but count as random answers."""
        return (self.parameters["adapt"] or {}).get("skipped") == "chance"

    @property
    def step_size(self) -> int:
        """How many images the method adapts on at a time: the batch size, or the length of a window."""
        return self.parameters["window"] or self.stream.batch_size


@dataclass(frozen=True)
class Materials:
    """What all trials of a run share; sent once to each worker.

    Attributes:
        models: model name to its network.
        datasets: model name to its data (one object, unless the geometry depends on the weights).
        registry: the plugins; plugin files are pickled with it.
        data_code: digest of the code of a third-party kind of data, else empty.
        contents: digest of the fingerprint of the images used, for each model name and shift (all compounds are one).
        parameters: model name to its number of parameters.
        reopen: model name to a function that opens its data on any machine.
        folder: the driver's working directory, the base of relative paths (data, weights, checkpoints).
        per_image: images of the longest stream whose results have arrays with an element for each image.
    """

    models: Mapping[str, Network]
    datasets: Mapping[str, Dataset]
    registry: Registry
    data_code: str
    contents: dict[tuple[str, Shift], str]
    parameters: Mapping[str, int]
    reopen: Mapping[str, Callable[[], Dataset]]
    folder: str
    per_image: int

    def enter(self) -> None:
        """Change to the driver's working directory, if this machine has it, so that relative paths resolve alike."""
        with contextlib.suppress(OSError):  # files at relative paths are then reported as missing
            os.chdir(self.folder)

    def cache_entry(self, model: str, stream: StreamSpec, shift: Shift) -> CacheEntry:
        """The cached images that a trial's stream uses under ``shift``."""
        dataset = self.datasets[model]
        return CacheEntry(dataset, shift, used_images(dataset, shift, stream), self.contents[model, shift])

    def streams(self) -> Streams:
        """A builder of streams over these data."""
        return Streams(self.registry, _labels_of(self.datasets))

    def all_images(self, trial: Trial) -> bool:
        """Whether a trial's stream may use all images of all its shifts."""
        dataset, size = self.datasets[trial.model], trial.stream.subset
        return size is None or all(size >= len(dataset.labels_of(shift)) for shift in trial.stream.shifts)

    def images_a_shift(self, trial: Trial) -> int:
        """Maximum number of images of one shift that a trial's stream may use."""
        dataset, stream = self.datasets[trial.model], trial.stream
        return max(len(used_images(dataset, shift, stream)) for shift in stream.shifts)

    def config(self, trial: Trial) -> Config:
        """The trial's hyperparameters, as its method's Config."""
        cls: type[Adapter] = self.registry.load(trial.method)
        return cls.Config.model_validate(trial.config, context={"registry": self.registry})


def _labels_of(datasets: Mapping[str, Dataset]) -> Callable[[str, Shift], np.ndarray]:
    return lambda model, shift: datasets[model].labels_of(shift)


def used_images(dataset: Dataset, shift: Shift, stream: StreamSpec) -> np.ndarray:
    """Sorted indices (n,) int32 of the images of a shift that a stream uses."""
    return subset(len(dataset.labels_of(shift)), stream.subset, stream.data_seed)


@dataclass(frozen=True)
class Plan:
    """The trials of a suite, in order, with what they share; ``axes`` are the names of what the suite varies."""

    name: str
    materials: Materials
    trials: tuple[Trial, ...]
    axes: tuple[str, ...] = ()

    def cache_entries(self, trials: Iterable[Trial] | None = None) -> list[CacheEntry]:
        """Each (data, shift) that ``trials`` (default: all) take from the image cache, once."""
        entries: dict[tuple[int, Shift], CacheEntry] = {}
        for trial in self.trials if trials is None else trials:
            for shift in trial.stream.cached:
                key = (id(self.materials.datasets[trial.model]), shift)
                if key not in entries:
                    entries[key] = self.materials.cache_entry(trial.model, trial.stream, shift)
        return list(entries.values())


def sources(loaded: LoadedSuite) -> dict[str, tuple[Network, Dataset, Mapping[str, Any]]]:
    """The network, the data set and the part of a trial's key of each source model; for pre-training.

    Raises:
        UsageError: with all problems of models and data.
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
    prepared: Mapping[Request, pathlib.Path] | None = None,
    costs: Mapping[CostRow, CostRatio] | None = None,
    accuracies: Accuracies = MappingProxyType({}),
    most: int | None = MOST_TRIALS,
) -> Plan:
    """Plan a suite.

    Args:
        loaded: the suite.
        limit: size of the seeded subset of images, instead of the suite's ``max_images``.
        only: selects rows, all by default; an unselected row whose hyperparameters are refused (such as a missing
            checkpoint) is left out.
        digests: of image files; one without progress by default.
        prepared: files made by preparations.
        costs: measured cost ratios; trials that need another one have an obstacle.
        accuracies: measured accuracy matrices.
        most: the largest number of trials; None for any.

    Raises:
        UsageError: with all problems of models, data and hyperparameters; or there are more trials.
    """
    check_size(loaded, most)
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
        suite.per_image,
    )
    cells = _Cells(loaded, materials, limit, digests, accuracies)
    trials = tuple(itertools.islice(_trials(models, materials, configs, cells, costs or {}), most and most + 1))
    if most is not None and len(trials) > most:
        hint = "plan a part of the suite, with --set, or confirm with --yes"
        raise UsageError(Problem(f"the suite has more than {most:,} trials", loaded.document.name, hint=hint))
    if cells.problems:
        raise UsageError(cells.problems)
    return Plan(suite.name, materials, trials, suite.axes())


def check_size(loaded: LoadedSuite, most: int | None) -> None:
    """Refuse a suite with more than ``most`` trials before anything is made of its rows; None: any number."""
    if problem := rows_problem(loaded, most):
        raise UsageError(problem)


def _contents(
    suite: Suite, datasets: Mapping[str, Dataset], limit: int | None, digests: Digests, code: str
) -> Iterator[tuple[tuple[str, Shift], str]]:
    """The digest of the images used for each model and shift; data shared by models is read once."""
    known: dict[tuple[int, Shift], str] = {}
    for model, dataset in datasets.items():
        for shift in suite.shifts():
            key = (id(dataset), shift)
            if key not in known:
                rows = subset(len(dataset.labels_of(shift)), limit or suite.data.max_images, suite.data.seed)
                known[key] = content_of(dataset, shift, rows, digests, code)
            yield (model, shift), known[key]


def content_of(dataset: Dataset, shift: Shift, rows: np.ndarray, digests: Digests, code: str) -> str:
    """The digest of images ``rows`` (n,) under a shift; ``code`` is that of a third-party kind of data, or empty."""
    fingerprint = dataset.fingerprint(shift, rows, digests)
    return digest([fingerprint, code] if code else fingerprint)


def reopening(loaded: LoadedSuite, model: OpenedModel) -> Callable[[], Dataset]:
    """A function that opens a model's data again."""
    request = request_of(loaded.suite.data, loaded.suite.shifts(), model)
    return functools.partial(open_data, loaded.suite.data, request, loaded.registry)


def _trials(
    models: Mapping[str, OpenedModel], materials: Materials, rows: list[ResolvedMethod], cells: _Cells,
    costs: Mapping[CostRow, CostRatio],
) -> Iterator[Trial]:  # fmt: skip
    for row, mode in [(each, mode) for each in rows for mode in each.evaluation.modes]:
        axes = row.evaluation.axes()
        cost = costs.get((row.label, row.model, row.batch_size, mode.text), NOT_MEASURED)
        config = row.config.model_dump(mode="json")
        shared = {
            "numerics_version": NUMERICS_VERSION,
            "method": row.asked,
            "model": models[row.model].asked,
            "data": "",
            **({"source": cells.source(row.model)} if row.source_images else {}),
            "stream": "",
            "batch_size": row.batch_size,
            "seed": 0,
            **mode.asked(),
        }
        key_of = Keys(shared)
        by_seed = (cells.of(row.model, row.evaluation, row.batch_size, seed, cost) for seed in row.evaluation.seeds)
        dataset = materials.datasets[row.model]
        for stream, protocol, own in itertools.chain.from_iterable(by_seed):
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
                setting=setting_of(dataset.title, protocol, stream, mode, axes, dataset.mask_rule),
                parameters=protocol.values(),
                seed=stream.seed,
                mode=mode,
                asked=shared | own,
                cost_ratio=cost.ratio if protocol.measures_cost else protocol.cost_ratio,
                mask=mask_of(dataset, stream.shifts),
                obstacle=cost if protocol.measures_cost and cost.ratio is None else None,
            )


def mask_of(dataset: Dataset, shifts: Iterable[Shift]) -> tuple[int, ...] | None:
    """The class mask of a stream of ``shifts``, or None.

    Raises:
        UsageError: they have different ones.
    """
    masks: dict[tuple[int, ...] | None, Shift] = {}
    for shift in shifts:
        masks.setdefault(dataset.mask_of(shift), shift)
    if len(masks) > 1:
        told = " and ".join(f"{shift.id} ({_told(mask, dataset.num_classes)})" for mask, shift in masks.items())
        hint = "write protocol: {kind: reset}, which has a stream for each shift, or data: {…, mask: none}"
        raise UsageError(Problem(f"one stream joins {told}: a trial has one network, with one class mask", hint=hint))
    return next(iter(masks), None)


def _told(mask: tuple[int, ...] | None, classes: int) -> str:
    return f"all {classes:,} classes" if mask is None else f"{len(mask):,} of {classes:,} classes"


def _too_few_images(
    loaded: LoadedSuite, datasets: Mapping[str, Dataset], streams: Streams, limit: int | None
) -> Iterator[Problem]:
    """Where ``adapt_images`` leaves nothing to grade; checked before images are read, which can take long."""
    whole = {
        id(d): name for name, d in datasets.items() if not any(d.missing(shift) for shift in loaded.suite.shifts())
    }
    for evaluation in loaded.suite.evaluations():
        after = evaluation.protocol.graded_after
        if after is None:
            continue
        trials = itertools.product(whole.values(), evaluation.batch_size, evaluation.seeds)
        segments = (
            segment
            for model, batch_size, seed in trials
            for _, spec in _wholes(loaded, evaluation, limit, batch_size, seed)
            for segment in _segments(streams, model, spec)
        )
        size, name = min(segments, default=(after + 1, ""))
        if size <= after:
            message = f"adapt_images {after} leaves none of {size} images of segment {name} to grade"
            path = (*loaded.protocol_path(evaluation.index), "adapt_images")
            yield loaded.document.problem(path, message, "use more images, or smaller numbers")


def _segments(streams: Streams, model: str, spec: StreamSpec) -> Iterator[tuple[int, str]]:
    """(images, name) of each segment of a stream, probes excepted."""
    with contextlib.suppress(UsageError):  # reported when the trials are made
        for _, stream in streams.specs(model, spec):
            bounds = stream.bounds
            parts = [s for s in stream.segments if s.role != "probe"]
            yield from ((int(bounds[s.last] - bounds[s.first]), s.name) for s in parts)


def _wholes(
    loaded: LoadedSuite, evaluation: Evaluation, limit: int | None, batch_size: int, seed: int,
    cost: CostRatio = NOT_MEASURED, accuracies: Accuracies = MappingProxyType({}),
) -> Iterator[tuple[ProtocolConfig, StreamSpec]]:  # fmt: skip
    """Each combination of protocol parameters, with the specification of each whole stream.

    Without a measured cost ratio the stream is that of a method that is always free: it has the same segments.
    """
    cls: type[Protocol] = loaded.registry.load(evaluation.protocol.kind, PROTOCOLS)
    data, after = loaded.suite.data, evaluation.protocol.graded_after
    groups = evaluation.by_severity() if cls.by_severity else [evaluation.shifts()]
    for protocol, given in itertools.product(evaluation.protocol.singles(), groups):
        followed = protocol.with_cost_ratio(1.0 if cost.ratio is None else cost.ratio)
        if evaluation.index in accuracies:
            followed = followed.with_accuracy(accuracies[evaluation.index])
        spec = StreamSpec(followed.canonical(), given, limit or data.max_images, data.seed, batch_size, seed, after)
        yield protocol, spec


_Cell = tuple[StreamSpec, ProtocolConfig, dict[str, Any]]


class _Cells:
    """What trials of different methods share, computed once: streams and digests of the data.

    Attributes:
        problems: with making streams.
    """

    def __init__(
        self, loaded: LoadedSuite, materials: Materials, limit: int | None, digests: Digests, accuracies: Accuracies
    ):
        self._accuracies = accuracies
        self._loaded, self._materials, self._limit, self._digests = loaded, materials, limit, digests
        self._streams = materials.streams()
        self._cells: dict[tuple[object, ...], list[_Cell]] = {}
        self._compared: dict[tuple[object, ...], tuple[int, str]] = {}  # entry and stream of each cell of the tables
        self._sources: dict[int, str] = {}
        self.problems: list[Problem] = []

    def of(self, model: str, evaluation: Evaluation, batch_size: int, seed: int, cost: CostRatio) -> list[_Cell]:
        """The streams of a protocol and a seed, each with its parameters and its part of a trial's key."""
        key = (id(self._materials.datasets[model]), evaluation.index, batch_size, seed, cost.ratio)
        if key not in self._cells:
            try:
                self._cells[key] = list(self._make(model, evaluation, batch_size, seed, cost))
            except UsageError as error:
                self._cells[key] = []
                located = [self._loaded.protocol_problem(evaluation.index, problem) for problem in error.problems]
                self.problems += [problem for problem in located if problem not in self.problems]
        return self._cells[key]

    def _make(self, model: str, evaluation: Evaluation, batch_size: int, seed: int, cost: CostRatio) -> Iterator[_Cell]:
        dataset = self._materials.datasets[model]
        seen = set[tuple[str, str]]()  # by protocol parameters: two that make equal streams both have rows
        for protocol, spec in _wholes(self._loaded, evaluation, self._limit, batch_size, seed, cost, self._accuracies):
            further: dict[str, Any] = {"cost_ratio": cost.ratio} if protocol.measures_cost else {}
            further |= {"skipped": "chance"} if protocol.counts_at_chance else {}
            for part, stream in self._streams.specs(model, spec):
                self._add_compounds(model, part.shifts)
                if unknown := [s.id for s in part.shifts if (model, s.stored) not in self._materials.contents]:
                    message = f"the suite has no images of {unknown[0]}, nor of {len(unknown) - 1} more of its shifts"
                    raise UsageError(Problem(message, hint="add them to corruptions and severities"))
                key = (protocol.canonical(), stream.sha256)
                if key not in seen and not self._repeated(model, evaluation, protocol, part, stream.sha256):
                    seen.add(key)  # clean images are in the stream of every severity
                    data, mask = self._data(model, part.shifts), mask_of(dataset, part.shifts)
                    masked = {} if mask is None else {"classes": digest(list(mask))}
                    yield part, protocol, {"data": data, "stream": stream.sha256, "seed": seed, **further, **masked}

    def _add_compounds(self, model: str, shifts: tuple[Shift, ...]) -> None:
        """Add the digest of all compounds to the contents, where a stream has some.

        Raises:
            UsageError: the data cannot show them.
        """
        contents, dataset = self._materials.contents, self._materials.datasets[model]
        if (model, COMPOUND) in contents or not any(shift.parts for shift in shifts):
            return
        if problem := dataset.missing(COMPOUND):
            raise UsageError(problem)
        rows = subset(
            len(dataset.labels), self._limit or self._loaded.suite.data.max_images, self._loaded.suite.data.seed
        )
        contents[model, COMPOUND] = content_of(dataset, COMPOUND, rows, self._digests, self._materials.data_code)

    def _repeated(
        self, model: str, evaluation: Evaluation, protocol: ProtocolConfig, spec: StreamSpec, sha256: str
    ) -> bool:
        """Whether an earlier entry of the suite's protocols has the stream.

        Raises:
            UsageError: an earlier entry has another stream, whose numbers would be in the same cells of a table.
        """
        severities = frozenset(shift.severity for shift in spec.shifts if shift.severity is not None)
        rules = protocol.canonical(), spec.protocol  # as the suite has them, and with a measured cost ratio
        setting = (id(self._materials.datasets[model]), *rules, spec.batch_size, spec.seed, severities)
        for shift in spec.shifts:
            index, other = self._compared.setdefault((*setting, shift), (evaluation.index, sha256))
            if index != evaluation.index and other != sha256:
                message = f"entry {index} of protocol has another stream of {shift.id} in the same setting"
                raise UsageError(Problem(message, hint="join the two entries, or leave the shift out of one of them"))
            if index != evaluation.index:
                return True
        return False

    def _data(self, model: str, shifts: tuple[Shift, ...]) -> str:
        stored = dict.fromkeys(shift.stored for shift in shifts)
        return digest([self._materials.contents[model, shift] for shift in stored])

    def source(self, model: str) -> str | None:
        """The digest of a model's source images, or None where there are none."""
        source = self._materials.datasets[model].source
        if source is None:
            return None
        if id(source) not in self._sources:
            self._sources[id(source)] = digest(source.fingerprint(source.all_rows(), self._digests))
        return self._sources[id(source)]
