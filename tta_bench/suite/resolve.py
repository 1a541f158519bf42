"""The hyperparameters of every method row with every source model, resolved: preset, config, per_model, grid."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from tta_bench.adapter import Adapter, Config
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig
from tta_bench.registry import Entry, code_sha256
from tta_bench.suite import LoadedSuite, MethodEntry, config_problems
from tta_bench.suite.prepare import Place, place_of


@dataclass(frozen=True)
class Row:
    """One method row with one model: its resolved hyperparameters, and what the key says of it.

    ``preset_missing`` is the model's preset where the method has hyperparameters but no preset of that name.
    """

    method: MethodEntry
    label: str
    model: str
    batch_size: int
    preset: str
    preset_missing: str
    config: Config
    asked: dict[str, Any]
    source_images: bool


def resolve(
    loaded: LoadedSuite,
    wanted: Callable[[str, str, str], bool],
    prepared: Mapping[Place, pathlib.Path],
    problems: list[Problem],
) -> list[Row]:
    """Every row of the suite's methods with every source model, in the suite's order.

    Args:
        loaded: the suite.
        wanted: whether a row (label, method, model) is to be run; what is wrong with one that is not is not said.
        prepared: the files that preparations have made for rows which ask for them.
        problems: gets what is wrong, each once; such a row is left out.
    """
    rows, code = [], functools.cache(code_sha256)
    for index, method in enumerate(loaded.suite.methods):
        try:
            cls: type[Adapter] = loaded.registry.load(method.name)
        except UsageError as error:
            problems += error.problems
            continue
        for label, chosen in method.variants():
            for model, size in itertools.product(loaded.suite.models, loaded.suite.batch_size):
                refused = problems if wanted(label, method.name, model.name) else []
                row = _row(loaded, index, cls, label, chosen, model, size, code, prepared, refused)
                rows += [row] if row else []
    problems += _unknown_presets(loaded)
    unique = list(dict.fromkeys(problems))  # a wrong field is wrong with every model
    problems[:] = unique
    return rows


def _row(
    loaded: LoadedSuite, index: int, cls: type[Adapter], label: str, chosen: Mapping[str, Any], model: ModelConfig,
    batch_size: int, code: Callable[[Entry], str], prepared: Mapping[Place, pathlib.Path], problems: list[Problem],
) -> Row | None:  # fmt: skip
    method = loaded.suite.methods[index]
    preset = model.preset if model.preset and model.preset in cls.presets else ""
    missing = model.preset if model.preset and not preset and cls.Config.model_fields else ""
    values = cls.presets[preset].resolve(batch_size) if preset else {}
    values |= _named(model.name, {**method.config, **method.per_model.get(model.name, {}), **chosen})
    values = {name: _made(prepared, place_of(method.name, model.name, value), value) for name, value in values.items()}
    try:
        config = cls.Config.model_validate(values, context={"registry": loaded.registry})
    except pydantic.ValidationError as error:
        problems += _placed(loaded, index, model.name, cls, error)
        return None
    asked = {
        "name": method.name,
        "variant": getattr(config, "variant", "official"),
        "config": config.keyed(),
        "code_sha256": code(loaded.registry.entry(method.name)),
        **{role: {"name": entry.name, "code_sha256": code(entry)} for role, entry in config.plugins().items()},
    }
    source_images = cls.declared(config).needs.source_images
    return Row(method, label, model.name, batch_size, preset, missing, config, asked, source_images)


def _made(prepared: Mapping[Place, pathlib.Path], place: Place | None, value: Any) -> Any:
    """A value, or in its place the file that was prepared for it."""
    return str(prepared[place]) if place is not None and place in prepared else value


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
