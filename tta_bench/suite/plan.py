"""Suite to an ordered list of Trials, each with a content key.

Planning opens the data (lists files, decodes nothing), loads every source model once to check its weights, and resolves
every method's hyperparameters, so that whatever is wrong is said before anything runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tta_bench import NUMERICS_VERSION
from tta_bench.data import Dataset, open_data
from tta_bench.data.base import digest
from tta_bench.data.cache import Entry as CacheEntry
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.models import ModelSpec
from tta_bench.registry import Entry
from tta_bench.streams import CLEAN, Shift, StreamSpec, build, specs, subset
from tta_bench.suite import LoadedSuite, Suite
from tta_bench.suite.resolve import Row, resolve
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
        seed: the trial's seed.
        precision: "float32" or "float64".
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
    seed: int
    precision: str
    asked: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Setting:
    """What all trials of a run share; sent once to every worker.

    Attributes:
        models: model name to its specification.
        datasets: model name to its data (one object, unless the geometry depends on the weights).
        methods: method name to its registry entry.
        contents: the digest of the images' fingerprint for each model name and shift, over the images that are used.
        parameters: model name to its number of parameters.
        reopen: model name to a function that opens its data anew, on whichever machine.
        folder: the driver's working directory, which relative paths (data, weights, checkpoints) are relative to.
    """

    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, Dataset]
    methods: Mapping[str, Entry]
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
        rows = subset(stream.images, stream.subset, stream.data_seed)
        return CacheEntry(self.datasets[model], shift, rows, self.contents[model, shift])


@dataclass(frozen=True)
class Plan:
    """Attributes: name: the suite's; setting: what trials share; trials: in order."""

    name: str
    setting: Setting
    trials: tuple[Trial, ...]

    def cache_entries(self, trials: Iterable[Trial] | None = None) -> list[CacheEntry]:
        """Each (data, shift) that ``trials`` (default: all) use, once."""
        found: dict[tuple[int, Shift], CacheEntry] = {}
        for trial in self.trials if trials is None else trials:
            for shift in trial.stream.shifts:
                place = (id(self.setting.datasets[trial.model]), shift)
                if place not in found:
                    found[place] = self.setting.cache_entry(trial.model, trial.stream, shift)
        return list(found.values())


def sources(loaded: LoadedSuite) -> dict[str, tuple[ModelSpec, Dataset, Mapping[str, Any]]]:
    """For each source model its specification, its data, and what a key would say of it; for pre-training.

    Raises:
        UsageError: with every problem of models and data.
    """
    problems: list[Problem] = []
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    if problems:
        raise UsageError(problems)
    return {name: (model.spec, datasets[name], model.asked) for name, model in models.items()}


def make(
    loaded: LoadedSuite,
    limit: int | None = None,
    wanted: Callable[[str, str, str], bool] = lambda *_: True,
    digests: Digests | None = None,
) -> Plan:
    """Plan a suite.

    Args:
        loaded: the suite.
        limit: size of the seeded subset of images, in place of the suite's ``max_images``.
        wanted: whether a row (label, method, model) is to be run; one that is not, and whose hyperparameters are refused
            (a checkpoint that is not there), is left out.
        digests: reads what image files hold, and remembers it; one without progress by default.

    Raises:
        UsageError: with every problem of models, data and hyperparameters.
    """
    suite, problems = loaded.suite, list[Problem]()
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    configs = resolve(loaded, wanted, problems)
    problems += _too_few_images(loaded, datasets, limit)
    if problems:
        raise UsageError(problems)
    digests = digests or Digests()
    setting = Setting(
        {name: model.spec for name, model in models.items()},
        datasets,
        {m.name: loaded.registry.entry(m.name) for m in suite.methods},
        dict(_contents(suite, datasets, limit, digests)),
        {name: model.parameters for name, model in models.items()},
        {
            name: functools.partial(open_data, suite.data, suite.shifts(), model.geometry)
            for name, model in models.items()
        },
        str(pathlib.Path.cwd()),
    )
    known = _Known(suite, setting, limit, digests)
    return Plan(suite.name, setting, tuple(_trials(suite, models, setting, configs, known)))


def _contents(
    suite: Suite, datasets: Mapping[str, Dataset], limit: int | None, digests: Digests
) -> Iterator[tuple[tuple[str, Shift], str]]:
    """Each model and shift with the digest of the images that are used; what models share is read once."""
    read: dict[tuple[int, Shift], str] = {}
    for model, dataset in datasets.items():
        rows = subset(len(dataset.ids), _images(suite, dataset, limit), suite.data.seed)
        for shift in suite.shifts():
            place = (id(dataset), shift)
            if place not in read:
                read[place] = digest(dataset.fingerprint(shift, rows, digests))
            yield (model, shift), read[place]


def _trials(
    suite: Suite, models: Mapping[str, Model], setting: Setting, rows: list[Row], known: _Known
) -> Iterator[Trial]:
    for row in rows:
        config = row.config.model_dump(mode="json")
        shared = {
            "numerics_version": NUMERICS_VERSION,
            "method": row.asked,
            "model": models[row.model].asked,
            "data": "",
            **({"source": known.source(row.model)} if row.source_images else {}),
            "stream": "",
            "batch_size": suite.batch_size,
            "seed": 0,
            "precision": suite.precision,
        }
        texts = {name: _canonical(value) for name, value in shared.items()}
        for stream, own in itertools.chain.from_iterable(known.cells(row.model, seed) for seed in suite.seeds):
            yield Trial(
                key=_digest(texts | {name: _canonical(value) for name, value in own.items()}),
                label=row.label,
                method=row.method.name,
                variant=row.asked["variant"],
                preset=row.preset,
                preset_missing=row.preset_missing,
                config=config,
                model=row.model,
                stream=stream,
                seed=stream.seed,
                precision=suite.precision,
                asked=shared | own,
            )


# as tta_bench.data.base.digest writes a value out
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def _digest(texts: Mapping[str, str]) -> str:
    """``digest`` of a mapping, from the canonical JSON of its values: most of it is the same in many trials."""
    text = ",".join(f'"{name}":{texts[name]}' for name in sorted(texts))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def _images(suite: Suite, dataset: Dataset, limit: int | None) -> int:
    return min(filter(None, (limit or suite.data.max_images, len(dataset.ids))))


def _too_few_images(loaded: LoadedSuite, datasets: Mapping[str, Dataset], limit: int | None) -> Iterator[Problem]:
    after = loaded.suite.protocol.graded_after
    for images in sorted({_images(loaded.suite, dataset, limit) for dataset in datasets.values()}):
        if after is not None and images <= after:
            what = f"adapt_images {after} leaves none of {images} images to grade"
            yield loaded.document.problem(("protocol", "adapt_images"), what, "use more images, or smaller numbers")


def _streams(suite: Suite, dataset: Dataset, seed: int, limit: int | None) -> list[StreamSpec]:
    common: dict[str, int | None] = {
        "images": len(dataset.ids),
        "subset": _images(suite, dataset, limit),
        "batch_size": suite.batch_size,
        "seed": seed,
        "data_seed": suite.data.seed,
    }
    if suite.protocol.kind == "reset":
        common["graded_after"] = suite.protocol.graded_after
        counts = suite.protocol.adapt_images
        return [spec for n in counts for spec in specs("reset", suite.shifts(), adapt_images=n, **common)]
    return [spec for group in _by_severity(suite) for spec in specs("continual", group, **common)]


def _by_severity(suite: Suite) -> list[tuple[Shift, ...]]:
    """One continual stream for each severity, the corruptions in the suite's order."""
    groups = [
        tuple(CLEAN if name == "clean" else Shift(name, severity) for name in suite.corruptions)
        for severity in suite.severities
    ]
    return list(dict.fromkeys(groups))


class _Known:
    """What the trials of different methods share, each computed once: streams and digests of the data."""

    def __init__(self, suite: Suite, setting: Setting, limit: int | None, digests: Digests):
        self._suite, self._setting, self._limit, self._digests = suite, setting, limit, digests
        self._cells: dict[tuple[int, int], list[tuple[StreamSpec, dict[str, Any]]]] = {}
        self._sources: dict[int, str] = {}

    def cells(self, model: str, seed: int) -> list[tuple[StreamSpec, dict[str, Any]]]:
        """Each stream of a seed, with what a key says of it."""
        dataset = self._setting.datasets[model]
        place = (id(dataset), seed)
        if place not in self._cells:
            self._cells[place] = [
                (spec, {"data": self._data(model, spec.shifts), "stream": build(spec).sha256, "seed": seed})
                for spec in _streams(self._suite, dataset, seed, self._limit)
            ]
        return self._cells[place]

    def _data(self, model: str, shifts: tuple[Shift, ...]) -> str:
        return digest([self._setting.contents[model, shift] for shift in shifts])

    def source(self, model: str) -> str | None:
        """The digest of a model's source images, or None where there are none."""
        source = self._setting.datasets[model].source
        if source is None:
            return None
        if id(source) not in self._sources:
            self._sources[id(source)] = digest(source.fingerprint(source.all_rows(), self._digests))
        return self._sources[id(source)]
