"""What a suite's trials need that other jobs make: so far what methods learn before the test.

A hyperparameter that names a file may say ``pretrain`` in its place, or ``{pretrain: {epochs: 5}}``: then the run
pre-trains the method for each source model first, with these options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from tta_bench.errors import UsageError
from tta_bench.pretraining import Pretraining
from tta_bench.suite import LoadedSuite, MethodEntry, config_problems
from tta_bench.suite.sources import Model, open_datasets, open_models

WORD = "pretrain"
Place = tuple[str, str, str]  # registered name of the method, source model, options as JSON


def place_of(method: str, model: str, value: Any) -> Place | None:
    """What a hyperparameter's value asks for; None where it asks for nothing."""
    if value == WORD:
        return method, model, "{}"
    if isinstance(value, Mapping) and list(value) == [WORD]:
        return method, model, json.dumps(value[WORD], sort_keys=True)
    return None


def pretrainings(loaded: LoadedSuite, allows: Callable[[str, str, str], bool]) -> dict[Place, Pretraining]:
    """The pre-training that each row of the suite asks for, of those that ``allows`` (label, method, model).

    Raises:
        UsageError: an option is refused, the suite names no source images, or a model or its data cannot be opened.
    """
    asked = dict(_asked(loaded, allows))
    if not asked:
        return {}
    problems = [p for place, path in asked.items() for p in _refused(loaded, place, path)]
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    if problems:
        raise UsageError(problems)
    return {place: _pretraining(loaded, place, models[place[1]], datasets[place[1]]) for place in asked}


def _asked(
    loaded: LoadedSuite, allows: Callable[[str, str, str], bool]
) -> Iterator[tuple[Place, tuple[str | int, ...]]]:
    """Each request with its place in the file; of methods that learn nothing there is none."""
    for index, method in enumerate(loaded.suite.methods):
        if not _learns(loaded, method.name):
            continue
        for label, chosen in method.variants():
            for model in (m.name for m in loaded.suite.models if allows(label, method.name, m.name)):
                for key, (name, value) in _values(method, model, chosen):
                    if (place := place_of(method.name, model, value)) is not None:
                        yield place, ("methods", index, *key, name)


def _values(
    method: MethodEntry, model: str, chosen: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], tuple[str, Any]]]:
    """The values that count, as rows are resolved, each with the part of the entry that it is from."""
    own = method.per_model.get(model, {})
    last: dict[str, tuple[tuple[str, ...], tuple[str, Any]]] = {}
    for key, values in (("config",), method.config), (("per_model", model), own), (("grid",), chosen):
        last |= {name: (key, (name, value)) for name, value in values.items()}
    yield from last.values()


def _learns(loaded: LoadedSuite, name: str) -> bool:
    try:
        return hasattr(loaded.registry.load(name), "pretrain")
    except UsageError:  # said where methods are resolved
        return False


def _refused(loaded: LoadedSuite, place: Place, path: tuple[str | int, ...]) -> list[Any]:
    config = loaded.registry.load(place[0]).Pretraining
    try:
        config.model_validate(json.loads(place[2]))
    except pydantic.ValidationError as error:
        return config_problems(loaded.document, config, error, (*path, WORD))
    return []


def _pretraining(loaded: LoadedSuite, place: Place, model: Model, dataset: Any) -> Pretraining:
    method, _, options = place
    entry = loaded.registry.entry(method)
    settings = loaded.registry.load(method).Pretraining.model_validate(json.loads(options))
    suite = loaded.suite
    return Pretraining(entry, settings, suite.name, suite.data.seed, model.network, dataset, model.asked)
