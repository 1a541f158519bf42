"""The preparations that a suite's trials need: so far the pre-training of methods.

A hyperparameter that takes a file may be ``pretrain`` instead, or ``{pretrain: {epochs: 5}}``: the run then first
pre-trains the method for each source model, with these options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from tta_bench.errors import Problem, UsageError
from tta_bench.pretraining import Pretraining
from tta_bench.suite import LoadedSuite, MethodEntry, config_problems
from tta_bench.suite.document import KeyPath
from tta_bench.suite.sources import OpenedModel, open_datasets, open_models

WORD = "pretrain"
Request = tuple[str, str, str]  # registered name of the method, source model, options as JSON


def request_of(method: str, model: str, value: Any) -> Request | None:
    """The pre-training that a hyperparameter's value requests; None for other values."""
    if value == WORD:
        return method, model, "{}"
    if isinstance(value, Mapping) and list(value) == [WORD]:
        return method, model, json.dumps(value[WORD], sort_keys=True)
    return None


def pretrainings(loaded: LoadedSuite, allows: Callable[[str, str, str], bool]) -> dict[Request, Pretraining]:
    """The pre-trainings that the rows of a suite request, of the rows that ``allows`` (label, method, model) selects.

    Raises:
        UsageError: an option is refused, the suite has no source images, or a model or its data cannot be opened.
    """
    requests = dict(_requests(loaded, allows))
    if not requests:
        return {}
    problems = [p for request, path in requests.items() for p in _refused(loaded, request, path)]
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    if problems:
        raise UsageError(problems)
    return {request: _pretraining(loaded, request, models[request[1]], datasets[request[1]]) for request in requests}


def _requests(loaded: LoadedSuite, allows: Callable[[str, str, str], bool]) -> Iterator[tuple[Request, KeyPath]]:
    """Each request with its key in the file, of methods that can be pre-trained."""
    for index, method in enumerate(loaded.suite.methods):
        if not _can_be_pretrained(loaded, method.name):
            continue
        for label, chosen in method.variants():
            for model in (m.name for m in loaded.suite.models if allows(label, method.name, m.name)):
                for key, (name, value) in _values(method, model, chosen):
                    if (request := request_of(method.name, model, value)) is not None:
                        yield request, ("methods", index, *key, name)


def _values(
    method: MethodEntry, model: str, chosen: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], tuple[str, Any]]]:
    """The effective values, as rows are resolved, each with the part of the entry that it comes from."""
    own = method.per_model.get(model, {})
    last: dict[str, tuple[tuple[str, ...], tuple[str, Any]]] = {}
    for key, values in (("config",), method.config), (("per_model", model), own), (("grid",), chosen):
        last |= {name: (key, (name, value)) for name, value in values.items()}
    yield from last.values()


def _can_be_pretrained(loaded: LoadedSuite, name: str) -> bool:
    try:
        return hasattr(loaded.registry.load(name), "pretrain")
    except UsageError:  # reported when methods are resolved
        return False


def _refused(loaded: LoadedSuite, request: Request, path: KeyPath) -> list[Problem]:
    config = loaded.registry.load(request[0]).Pretraining
    try:
        config.model_validate(json.loads(request[2]))
    except pydantic.ValidationError as error:
        return config_problems(loaded.document, config, error, (*path, WORD))
    return []


def _pretraining(loaded: LoadedSuite, request: Request, model: OpenedModel, dataset: Any) -> Pretraining:
    method, _, options = request
    entry = loaded.registry.entry(method)
    settings = loaded.registry.load(method).Pretraining.model_validate(json.loads(options))
    suite = loaded.suite
    return Pretraining(entry, settings, suite.name, suite.data.seed, model.network, dataset, model.asked)
