"""Resolved hyperparameters of each method with each source model: preset, config, per_model, grid."""

from __future__ import annotations

import functools
import itertools
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from tta_bench.adapter import Adapter, Config
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig
from tta_bench.registry import PluginEntry, code_sha256
from tta_bench.suite import LoadedSuite, MethodEntry, config_problems
from tta_bench.suite.prepare import Request, request_of
from tta_bench.suite.schema import LONGEST_LABEL, Evaluation, label_fault


@dataclass(frozen=True)
class ResolvedMethod:
    """One method with one model: its resolved hyperparameters, and its part of the trial key.

    ``preset_missing`` is the model's preset where the method has hyperparameters but no preset of that name.
    """

    method: MethodEntry
    label: str
    model: str
    evaluation: Evaluation
    batch_size: int
    preset: str
    preset_missing: str
    config: Config
    asked: dict[str, Any]
    source_images: bool


def resolve(
    loaded: LoadedSuite,
    wanted: Callable[[str, str, str], bool],
    prepared: Mapping[Request, pathlib.Path],
    problems: list[Problem],
) -> list[ResolvedMethod]:
    """Each of the suite's methods with each source model, protocol and batch size, in the suite's order.

    Args:
        loaded: the suite.
        wanted: whether (label, method, model) is selected; problems of others are not reported.
        prepared: files made by preparations.
        problems: receives each problem once; combinations with a problem are left out.
    """
    rows, code = [], functools.cache(code_sha256)
    for index, method in enumerate(loaded.suite.methods):
        try:
            cls: type[Adapter] = loaded.registry.load(method.name)
        except UsageError as error:
            problems += error.problems
            continue
        for label, chosen in method.variants():
            for model, evaluation in itertools.product(loaded.suite.models, loaded.suite.evaluations()):
                refused = problems if wanted(label, method.name, model.name) else []
                for size in evaluation.batch_size:
                    row = _row(loaded, index, cls, label, chosen, model, evaluation, size, code, prepared, refused)
                    rows += [row] if row else []
    problems += [*_odd_labels(loaded), *_unknown_presets(loaded)]
    unique = list(dict.fromkeys(problems))  # a field's problem is the same with every model
    problems[:] = unique
    return rows


def _row(
    loaded: LoadedSuite, index: int, cls: type[Adapter], label: str, chosen: Mapping[str, Any], model: ModelConfig,
    evaluation: Evaluation, batch_size: int, code: Callable[[PluginEntry], str],
    prepared: Mapping[Request, pathlib.Path], problems: list[Problem],
) -> ResolvedMethod | None:  # fmt: skip
    method = loaded.suite.methods[index]
    preset = model.preset if model.preset and model.preset in cls.presets else ""
    missing = model.preset if model.preset and not preset and cls.Config.model_fields else ""
    values = cls.presets[preset].resolve(evaluation.step_size(batch_size)) if preset else {}
    values |= _substituted(model.name, {**method.config, **method.per_model.get(model.name, {}), **chosen})
    for name, value in values.items():
        request = request_of(method.name, model.name, value)
        if request is not None and request in prepared:
            values[name] = str(prepared[request])
    try:
        config = cls.Config.model_validate(values, context={"registry": loaded.registry})
    except pydantic.ValidationError as error:
        problems += _config_problems(loaded, index, model.name, cls, error)
        return None
    asked = {
        "name": method.name,
        "variant": getattr(config, "variant", "official"),
        "config": config.keyed(),
        "code_sha256": code(loaded.registry.entry(method.name)),
        **{role: {"name": entry.name, "code_sha256": code(entry)} for role, entry in config.plugins().items()},
    }
    source_images = cls.declared(config).needs.source_images
    return ResolvedMethod(
        method, label, model.name, evaluation, batch_size, preset, missing, config, asked, source_images
    )


def _substituted(model: str, value: Any) -> Any:
    """``value`` with ``{model}`` replaced by the source model's name in all strings."""
    if isinstance(value, Mapping):
        return {key: _substituted(model, item) for key, item in value.items()}
    return value.replace("{model}", model) if isinstance(value, str) else value


def _config_problems(
    loaded: LoadedSuite, index: int, model: str, cls: type[Adapter], error: pydantic.ValidationError
) -> list[Problem]:
    """The refused fields as problems at the key that set them: ``grid``, ``per_model`` or ``config``."""
    method = loaded.suite.methods[index]
    fields = [str(e["loc"][0]) for e in error.errors() if e["loc"]]
    own = method.per_model.get(model, {})
    where: tuple[str, ...] = ("config",)
    if any(name in method.grid for name in fields):
        where = ("grid",)
    elif any(name in own for name in fields):
        where = ("per_model", model)
    return config_problems(loaded.document, cls.Config, error, ("methods", index, *where))


def rows_problem(loaded: LoadedSuite, most: int | None) -> Problem | None:
    """The problem that the suite has more than ``most`` rows, which are counted, not made: methods and their grids, times
    everything else that is varied beside shifts. None as ``most``: any number.
    """
    suite = loaded.suite
    each = sum(len(e.batch_size) * len(e.seeds) * len(e.modes) * e.protocol.combinations() for e in suite.evaluations())
    rows = [len(suite.models) * each * method.rows() for method in suite.methods]
    if most is None or sum(rows) <= most:
        return None
    largest = rows.index(max(rows))
    path = ("methods", largest, *(("grid",) if suite.methods[largest].grid else ()))
    return loaded.document.problem(path, f"the suite has at least {sum(rows):,} trials, more than {most:,}",
                                   "shorten the grid or a list of the suite, or confirm with --yes")  # fmt: skip


def _odd_labels(loaded: LoadedSuite) -> Iterator[Problem]:
    """Labels of grids that cannot be shown, or that two rows have."""
    known = set[str]()
    for index, method in enumerate(loaded.suite.methods):
        path = ("methods", index, *(("grid",) if method.grid else ()))
        for label, _ in method.variants():
            same = unicodedata.normalize("NFC", label)  # two that look the same are one
            if fault := label_fault(label, 3 * LONGEST_LABEL):
                yield loaded.document.problem(path, f"the label {label!r} {fault}", "give the method a label:")
            elif same in known:
                yield loaded.document.problem(path, f"two rows have the label {label!r}", "give one a different label:")
            known.add(same)


def _unknown_presets(loaded: LoadedSuite) -> Iterator[Problem]:
    """Presets of models that no method of the suite has, if any method has presets."""
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
