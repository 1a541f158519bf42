"""What a suite's trials need before they can be planned: pre-trained methods, and accuracies that streams follow.

A hyperparameter that takes a file may be ``pretrain`` instead, or ``{pretrain: {epochs: 5}}``: the run then first
pre-trains the method for each source model, with these options. A protocol with ``accuracy: measure`` follows the accuracy
of a source model, the calibration network, under pairs of corruptions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic

from tta_bench import NUMERICS_VERSION
from tta_bench.data import Dataset
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import Network
from tta_bench.pretraining import Pretraining
from tta_bench.protocols import Protocol, Source
from tta_bench.registry import DATASETS, PROTOCOLS, foreign_code
from tta_bench.streams import CLEAN, COMPOUND, subset
from tta_bench.suite import LoadedSuite, MethodEntry, config_problems
from tta_bench.suite.document import KeyPath
from tta_bench.suite.schema import Evaluation
from tta_bench.suite.sources import OpenedModel, open_datasets, open_models

WORD = "pretrain"
Accuracies = Mapping[int, Mapping[str, list[list[float]]]]  # by entry of ``protocol``, then pair ``a+b``
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


# -- accuracies that streams follow ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyJob:
    """The accuracy matrices of an entry of ``protocol``, not measured.

    Attributes:
        evaluation: the protocol, whose streams say which pairs are needed.
        protocol: its class.
        network, dataset: the calibration network and its data.
        rows: (n,) int32 clean evaluation images that accuracies are measured on.
        images: that a stream may use.
        asked: everything that a matrix depends on.
    """

    evaluation: Evaluation
    protocol: type[Protocol]
    network: Network
    dataset: Dataset
    rows: np.ndarray
    images: int
    asked: Mapping[str, Any]

    def follow(self, matrices: Mapping[str, Any]) -> None:
        """Walk all streams, which takes from ``matrices`` those that they need, one after another.

        Raises:
            UsageError: one is missing, or a stream cannot be made.
        """
        shifts = self.evaluation.shifts()
        labels = (np.zeros(self.images, dtype=np.int64),) * len(shifts)
        for config, seed in itertools.product(self.evaluation.protocol.singles(), self.evaluation.seeds):
            source = Source(shifts, labels, 1, seed)
            for _ in self.protocol(config.with_accuracy(matrices)).parts(source):
                pass


def accuracy_jobs(loaded: LoadedSuite, limit: int | None, digests: Digests) -> dict[int, AccuracyJob]:
    """The accuracies that streams need, by entry of ``protocol``.

    Raises:
        UsageError: a calibration network is no source model of the suite, or a model or its data cannot be opened.
    """
    needing = [each for each in loaded.suite.evaluations() if each.protocol.measures_accuracy]
    if not needing:
        return {}
    problems: list[Problem] = []
    models = open_models(loaded, problems)
    datasets = open_datasets(loaded, models, problems)
    names = [model.name for model in loaded.suite.models]
    chosen = {each.index: getattr(each.protocol, "calibration", None) or names[0] for each in needing}
    for index, name in chosen.items():
        if name not in names:
            path = (*loaded.protocol_path(index), "calibration")
            problems.append(loaded.document.problem(path, f"unknown model {name!r}", near_miss(name, names)))
        elif name in datasets and (problem := datasets[name].missing(COMPOUND)):
            path = (*loaded.protocol_path(index), "accuracy")
            problems.append(loaded.document.problem(path, problem.message, problem.hint))
    if problems:
        raise UsageError(problems)
    return {
        each.index: _accuracy_job(loaded, each, models[name], datasets[name], limit, digests)
        for each, name in zip(needing, chosen.values(), strict=True)
    }


def _accuracy_job(
    loaded: LoadedSuite, evaluation: Evaluation, model: OpenedModel, dataset: Dataset, limit: int | None, digests: Digests
) -> AccuracyJob:  # fmt: skip
    data, available = loaded.suite.data, len(dataset.labels_of(CLEAN))
    images = min(limit or data.max_images or available, available)
    count = min(getattr(evaluation.protocol, "calibration_images", images), images)
    rows = subset(available, count, data.seed)
    asked = {
        "numerics_version": NUMERICS_VERSION,
        "model": dict(model.asked),
        "data": dataset.fingerprint(COMPOUND, rows, digests),
        "data_code": foreign_code(loaded.registry.entry(data.kind, DATASETS)),
    }
    cls: type[Protocol] = loaded.registry.load(evaluation.protocol.kind, PROTOCOLS)
    return AccuracyJob(evaluation, cls, model.network, dataset, rows, images, asked)
