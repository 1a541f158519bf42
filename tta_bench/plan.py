"""Suite to an ordered list of Trials, each with a content key.

Planning opens the data (lists files, decodes nothing), loads every source model once to check its weights, and resolves
every method's hyperparameters, so that whatever is wrong is said before anything runs.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic

from tta_bench import NUMERICS_VERSION
from tta_bench.adapter import Adapter, Config
from tta_bench.data import Dataset, Geometry, open_data
from tta_bench.data.base import digest
from tta_bench.data.cache import Entry as CacheEntry
from tta_bench.data.folder import FolderPart
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelSpec, check_timm_name, load, needed_image_size, state_sha256
from tta_bench.registry import Entry, code_digest, file_sha256
from tta_bench.streams import CLEAN, Shift, StreamSpec, build, specs, subset
from tta_bench.suite import LoadedSuite, MethodEntry, ModelEntry, Suite, config_problems


@dataclass(frozen=True)
class Trial:
    """One method, one source model, one stream, one seed.

    Attributes:
        key: SHA-256 of the canonical JSON of ``asked``.
        label: the row's name in tables; ``method`` is the registered name.
        variant: the method's variant ("official" where it has only one).
        preset: the published hyperparameters it started from; empty: the Config's own defaults.
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
        parameters: model name to its number of parameters.
        reopen: model name to a function that opens its data anew, on whichever machine.
    """

    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, Dataset]
    methods: Mapping[str, Entry]
    parameters: Mapping[str, int]
    reopen: Mapping[str, Callable[[], Dataset]]

    def cache_entry(self, model: str, stream: StreamSpec, shift: Shift) -> CacheEntry:
        """The cached images that a trial's stream uses under ``shift``."""
        rows = subset(stream.images, stream.subset, stream.data_seed)
        return CacheEntry(self.datasets[model], shift, rows)


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


@dataclass(frozen=True)
class _Model:
    """A checked source model: its specification, and what the key says of it."""

    spec: ModelSpec
    num_classes: int
    image_size: int | None
    geometry: Geometry | None
    parameters: int
    asked: Mapping[str, Any]


def sources(loaded: LoadedSuite) -> dict[str, tuple[ModelSpec, Dataset, Mapping[str, Any]]]:
    """For each source model its specification, its data, and what a key would say of it; for pre-training.

    Raises:
        UsageError: with every problem of models and data.
    """
    problems: list[Problem] = []
    models = {m.name: model for i, m in enumerate(loaded.suite.models) if (model := _model(loaded, i, m, problems))}
    datasets = _datasets(loaded, models, problems)
    if problems:
        raise UsageError(problems)
    return {name: (model.spec, datasets[name], model.asked) for name, model in models.items()}


def make(
    loaded: LoadedSuite, limit: int | None = None, wanted: Callable[[str, str, str], bool] = lambda *_: True
) -> Plan:
    """Plan a suite.

    Args:
        loaded: the suite.
        limit: size of the seeded subset of images, in place of the suite's ``max_images``.
        wanted: whether a row (label, method, model) is to be run; one that is not, and whose hyperparameters are refused
            (a checkpoint that is not there), is left out.

    Raises:
        UsageError: with every problem of models, data and hyperparameters.
    """
    suite, problems = loaded.suite, list[Problem]()
    models = {m.name: model for i, m in enumerate(suite.models) if (model := _model(loaded, i, m, problems))}
    datasets = _datasets(loaded, models, problems)
    configs = _configs(loaded, wanted, problems)
    problems += _too_few_images(loaded, datasets, limit)
    if problems:
        raise UsageError(problems)
    setting = Setting(
        {name: model.spec for name, model in models.items()},
        datasets,
        {m.name: loaded.registry.entry(m.name) for m in suite.methods},
        {name: model.parameters for name, model in models.items()},
        {
            name: functools.partial(open_data, suite.data, suite.shifts(), model.geometry)
            for name, model in models.items()
        },
    )
    return Plan(suite.name, setting, tuple(_trials(suite, models, setting, configs, limit)))


# -- models ------------------------------------------------------------------------------------------------------------


def _model(loaded: LoadedSuite, index: int, entry: ModelEntry, problems: list[Problem]) -> _Model | None:
    document = loaded.document
    if entry.timm is not None and (wrong := check_timm_name(entry.timm)):
        problems.append(document.problem(("models", index, "timm"), *wrong))
        return None
    spec = ModelSpec(**entry.model_dump())
    try:
        model = load(spec)
    except UsageError as error:
        network = "timm" if entry.timm else "architecture"
        for problem in error.problems:
            key = "weights" if entry.weights and "weights" in problem.message else network
            problems.append(document.problem(("models", index, key), _sentence(problem), problem.hint))
        return None
    published = getattr(model.net, "pretrained_cfg", None) or {}
    asked = {
        "tag": spec.tag,
        "weights_sha256": state_sha256(model.net),
        "options": dict(spec.options),
        "stem": spec.stem,
        "mean": [round(float(v), 6) for v in model.mean.flatten()],
        "std": [round(float(v), 6) for v in model.std.flatten()],
        "class_mask": None,
    }
    geometry = _published_geometry(published) if spec.timm else None
    count = sum(p.numel() for p in model.parameters())
    return _Model(spec, model.num_classes, needed_image_size(spec, model.net), geometry, count, asked)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} ({problem.where})" if problem.where else problem.message


def _published_geometry(published: Mapping[str, Any]) -> Geometry:
    """timm's evaluation transform: resize to crop / crop_pct, then the centre crop."""
    crop = int(published["input_size"][-1])
    return Geometry(int(crop // published["crop_pct"]), crop, published["interpolation"])


# -- data --------------------------------------------------------------------------------------------------------------


def _datasets(loaded: LoadedSuite, models: Mapping[str, _Model], problems: list[Problem]) -> dict[str, Dataset]:
    part, shifts = loaded.suite.data, loaded.suite.shifts()
    by_weights = isinstance(part, FolderPart) and part.preprocess == "weights"
    opened: dict[Geometry | None, Dataset] = {}
    datasets = {}
    try:
        for geometry in {None: None} if not by_weights else {m.geometry: None for m in models.values()}:
            opened[geometry] = open_data(part, shifts, geometry)
    except UsageError as error:
        problems += [loaded.document.problem(_place(loaded, p), _sentence(p), p.hint) for p in error.problems]
        return {}
    for dataset in opened.values():
        for shift in shifts:
            if wrong := dataset.missing(shift):
                place = ("corruptions", loaded.suite.corruptions.index(shift.corruption))
                problems.append(loaded.document.problem(place, _sentence(wrong), wrong.hint))
    for name, model in models.items():
        datasets[name] = opened[model.geometry if by_weights else None]
        problems += _misfits(loaded, model, datasets[name])
    return datasets


def _place(loaded: LoadedSuite, problem: Problem) -> tuple[str, ...]:
    """The key of ``data`` whose folder a problem names, ``root`` before any other."""
    values = loaded.document.data["data"]
    named = [key for key in ("root", "source", "archive") if values.get(key) and _inside(problem.where, values[key])]
    return ("data", named[0]) if named else ("data",)


def _inside(where: str, folder: str) -> bool:
    import pathlib

    return pathlib.Path(where).resolve().is_relative_to(pathlib.Path(folder).expanduser().resolve())


def _misfits(loaded: LoadedSuite, model: _Model, dataset: Dataset) -> Iterator[Problem]:
    index = [m.name for m in loaded.suite.models].index(model.spec.name)
    if model.num_classes != dataset.num_classes:
        what = f"model {model.spec.name!r} has {model.num_classes} classes, {dataset.name} has {dataset.num_classes}"
        yield loaded.document.problem(("models", index, "name"), what, "use a model and data with the same classes")
    if model.image_size is not None and model.image_size != dataset.side:
        what = (
            f"model {model.spec.name!r} takes {model.image_size}x{model.image_size} images, "
            f"{dataset.name} has {dataset.side}x{dataset.side}"
        )
        yield loaded.document.problem(("models", index, "name"), what, "choose another model, or another preprocess:")


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One method row with one model: its resolved hyperparameters, and what the key says of it."""

    method: MethodEntry
    label: str
    model: str
    preset: str
    config: Config
    asked: dict[str, Any]
    source_images: bool


def _configs(loaded: LoadedSuite, wanted: Callable[[str, str, str], bool], problems: list[Problem]) -> list[_Row]:
    rows = []
    for index, method in enumerate(loaded.suite.methods):
        try:
            cls: type[Adapter] = loaded.registry.load(method.name)
        except UsageError as error:
            problems += error.problems
            continue
        for label, chosen in method.variants():
            for model in loaded.suite.models:
                refused = problems if wanted(label, method.name, model.name) else []
                row = _row(loaded, index, cls, label, chosen, model, refused)
                rows += [row] if row else []
    problems += _unknown_presets(loaded)
    unique = list(dict.fromkeys(problems))  # a wrong field is wrong with every model
    problems[:] = unique
    return rows


def _row(
    loaded: LoadedSuite, index: int, cls: type[Adapter], label: str, chosen: Mapping[str, Any], model: ModelEntry,
    problems: list[Problem],
) -> _Row | None:  # fmt: skip
    method = loaded.suite.methods[index]
    preset = model.preset if model.preset and model.preset in cls.presets else ""
    values = cls.presets[preset].resolve(loaded.suite.batch_size) if preset else {}
    values |= _named(model.name, {**method.config, **method.per_model.get(model.name, {}), **chosen})
    try:
        config = cls.Config.model_validate(values)
    except pydantic.ValidationError as error:
        problems += _placed(loaded, index, model.name, cls, error)
        return None
    asked = {
        "name": method.name,
        "variant": getattr(config, "variant", "official"),
        "config": _keyed(config),
        "code": code_digest(loaded.registry.entry(method.name)),
    }
    return _Row(method, label, model.name, preset, config, asked, cls.needs.source_images)


def _named(model: str, value: Any) -> Any:
    """``value`` with the source model's name in place of ``{model}``, in all texts: a checkpoint for each model."""
    if isinstance(value, Mapping):
        return {key: _named(model, item) for key, item in value.items()}
    return value.replace("{model}", model) if isinstance(value, str) else value


def _placed(
    loaded: LoadedSuite, index: int, model: str, cls: type[Adapter], error: pydantic.ValidationError
) -> list[Problem]:
    """The refused fields, at the place that set them: the grid, the model's own values, or ``config``."""
    method = loaded.suite.methods[index]
    fields = [str(e["loc"][0]) for e in error.errors() if e["loc"]]
    own = method.per_model.get(model, {})
    where: tuple[str, ...] = ("config",)
    if any(name in method.grid for name in fields):
        where = ("grid",)
    elif any(name in own for name in fields):
        where = ("per_model", model)
    return config_problems(loaded.document, cls.Config, error, ("methods", index, *where))


def _unknown_presets(loaded: LoadedSuite) -> Iterator[Problem]:
    """Presets that none of the suite's methods has, where some method has presets at all."""
    classes = [loaded.registry.load(m.name) for m in loaded.suite.methods if _loads(loaded, m.name)]
    known = sorted({name for cls in classes for name in cls.presets})  # type: ignore[attr-defined]
    for index, model in enumerate(loaded.suite.models):
        if model.preset and known and model.preset not in known:
            hint = near_miss(model.preset, known)
            yield loaded.document.problem(("models", index, "preset"), f"no method has a preset {model.preset!r}", hint)


def _loads(loaded: LoadedSuite, name: str) -> bool:
    try:
        loaded.registry.load(name)
    except UsageError:
        return False
    return True


def _keyed(config: Config) -> dict[str, Any]:
    """The hyperparameters as the key has them: a file by its content, not by its name."""
    values: dict[str, Any] = config.model_dump(mode="json")
    for name, path in config.files().items():
        *parents, last = name.split(".")
        place = functools.reduce(lambda node, key: node[key], parents, values)
        place[last] = {"sha256": file_sha256(path)}
    return values


# -- trials ------------------------------------------------------------------------------------------------------------


def _trials(
    suite: Suite, models: Mapping[str, _Model], setting: Setting, rows: list[_Row], limit: int | None
) -> Iterator[Trial]:
    known = _Known(suite, setting, limit)
    for row in rows:
        config = row.config.model_dump(mode="json")
        shared = {
            "numerics_version": NUMERICS_VERSION,
            "method": row.asked,
            "model": models[row.model].asked,
            "data": "",
            "source": known.source(row.model) if row.source_images else None,
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

    def __init__(self, suite: Suite, setting: Setting, limit: int | None):
        self._suite, self._setting, self._limit = suite, setting, limit
        self._cells: dict[tuple[int, int], list[tuple[StreamSpec, dict[str, Any]]]] = {}
        self._images: dict[tuple[int, tuple[Shift, ...]], str] = {}
        self._sources: dict[int, str] = {}

    def cells(self, model: str, seed: int) -> list[tuple[StreamSpec, dict[str, Any]]]:
        """Each stream of a seed, with what a key says of it."""
        dataset = self._setting.datasets[model]
        place = (id(dataset), seed)
        if place not in self._cells:
            self._cells[place] = [
                (spec, {"data": self._fingerprint(dataset, spec.shifts), "stream": build(spec).sha256, "seed": seed})
                for spec in _streams(self._suite, dataset, seed, self._limit)
            ]
        return self._cells[place]

    def _fingerprint(self, dataset: Dataset, shifts: tuple[Shift, ...]) -> str:
        place = (id(dataset), shifts)
        if place not in self._images:
            self._images[place] = digest([dataset.fingerprint(shift) for shift in shifts])
        return self._images[place]

    def source(self, model: str) -> str | None:
        """The digest of a model's source images, or None where there are none."""
        source = self._setting.datasets[model].source
        if source is None:
            return None
        if id(source) not in self._sources:
            self._sources[id(source)] = digest(source.fingerprint())
        return self._sources[id(source)]
