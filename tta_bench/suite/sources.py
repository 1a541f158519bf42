"""Open and check a suite's source models and data, for planning and pre-training.

Nothing is decoded; each model is built once, to check its weights.
"""

from __future__ import annotations

import pathlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tta_bench.data import DataConfig, DataRequest, Dataset, Geometry, open_data
from tta_bench.data.base import label_fault
from tta_bench.data.labels import LABELS
from tta_bench.errors import Problem, UsageError
from tta_bench.models import Network, open_network, state_sha256
from tta_bench.registry import MODELS, foreign_code
from tta_bench.run.server import Process, own_server
from tta_bench.streams import Shift
from tta_bench.suite import LoadedSuite
from tta_bench.suite.document import KeyPath

_MAX_PROCESSES = 4  # each has one network in memory


@dataclass(frozen=True)
class OpenedModel:
    """A checked source model.

    Attributes:
        asked: its part of a trial's key.
        labels: the names of its classes, where they are known.
        mask_obstacle: why it takes no class mask, or empty.
        remark: what the start of a run says of its weights, or empty.
    """

    network: Network
    num_classes: int
    image_size: int | None
    geometry: Geometry | None
    parameters: int
    asked: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    mask_obstacle: str = ""
    remark: str = ""

    @property
    def name(self) -> str:
        """Its name in the suite."""
        return str(self.network.config.name)


def open_models(loaded: LoadedSuite, problems: list[Problem]) -> dict[str, OpenedModel]:
    """The suite's source models by name; models with a problem are left out, and the problem is added to ``problems``.

    Each is built in its own process, so that planning neither imports timm nor keeps a network in memory.
    """
    models, builds = dict[str, OpenedModel](), deque[_Build]()
    try:
        for index, config in enumerate(loaded.suite.models):
            if len(builds) == _MAX_PROCESSES:
                models |= _received(loaded, builds.popleft(), problems)
            network = open_network(config, loaded.registry)
            builds.append(_Build(index, network, own_server().fork(_build, network)))
        while builds:
            models |= _received(loaded, builds.popleft(), problems)
    finally:
        for build in builds:
            build.process.end()
    return models


class _Build(NamedTuple):
    """A network that is being built in another process; ``number`` is the index of its entry in the suite."""

    number: int
    network: Network
    process: Process


def _build(connection: Connection, network: Network) -> None:
    """In the other process: send the opened model, or the problems with it."""
    try:
        model = network.load()
        labels = network.labels(model.net)
    except UsageError as error:
        connection.send(error.problems)
        return
    asked = {
        "tag": network.tag,
        "weights_sha256": state_sha256(model.net),
        "mean": [round(float(v), 6) for v in model.mean.flatten()],
        "std": [round(float(v), 6) for v in model.std.flatten()],
        **network.asked(),
    }
    size, geometry = network.image_size(model.net), network.geometry(model.net)
    parameters = sum(p.numel() for p in model.parameters())
    named = None if labels is None else tuple(labels)
    connection.send(OpenedModel(network, model.num_classes, size, geometry, parameters, asked, named,
                                model.mask_obstacle(), network.remark))  # fmt: skip


def _received(loaded: LoadedSuite, build: _Build, problems: list[Problem]) -> dict[str, OpenedModel]:
    """The model by its name; empty where there is a problem with it."""
    config = build.network.config
    try:
        answer: OpenedModel | list[Problem] = build.process.connection.recv()
        build.process.end()
    except (EOFError, ConnectionError):
        answer = [Problem(f"the process that builds it exits with code {build.process.end(kill=False)}")]
    if isinstance(answer, list):
        problems += [_located(loaded, build, problem) for problem in answer]
        return {}
    build.network.remark = answer.remark
    code = foreign_code(loaded.registry.entry(config.kind, MODELS))
    asked = {**answer.asked, **({"code_sha256": code} if code else {})}
    return {config.name: replace(answer, network=build.network, asked=asked)}


def _located(loaded: LoadedSuite, build: _Build, problem: Problem) -> Problem:
    given = loaded.document.data["models"][build.number]
    weights = given.get("weights") and "weights" in problem.message.split(":")[0]
    key = "weights" if weights else next((key for key in build.network.suite_keys if given.get(key)), "name")
    return loaded.document.problem(("models", build.number, key), _sentence(problem), problem.hint)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} ({problem.where})" if problem.where else problem.message


# -- data --------------------------------------------------------------------------------------------------------------


def open_datasets(
    loaded: LoadedSuite, models: Mapping[str, OpenedModel], problems: list[Problem]
) -> dict[str, Dataset]:
    """Each model's data set by the model's name; problems, and mismatches with the model, are added to ``problems``."""
    config, shifts = loaded.suite.data, loaded.suite.shifts()
    requests = {name: request_of(config, shifts, model) for name, model in models.items()}
    opened: dict[DataRequest, Dataset] = {}
    refused: list[Problem] = []
    unasked = {} if config.by_labels or config.by_weights else {"": DataRequest(shifts)}  # no model could be opened
    for name, request in (requests or unasked).items():
        if request not in opened:
            try:
                opened[request] = open_data(config, request, loaded.registry)
            except UsageError as error:
                refused += [_data_problem(loaded, problem, name) for problem in error.problems]
    if refused:
        problems += dict.fromkeys(refused)
        return {}
    masked = set[Dataset]()
    for dataset in opened.values():
        lacking = {shift: p for shift in shifts if (p := dataset.missing(shift) or odd_labels(dataset, shift))}
        for shift, problem in lacking.items():
            problems.append(loaded.document.problem(_shift_path(loaded, shift), _sentence(problem), problem.hint))
        if any(dataset.mask_of(shift) is not None for shift in shifts if shift not in lacking):
            masked.add(dataset)
    for name, request in requests.items():
        problems += _mismatches(loaded, models[name], opened[request], opened[request] in masked)
    return {name: opened[request] for name, request in requests.items()}


def request_of(config: DataConfig, shifts: tuple[Shift, ...], model: OpenedModel) -> DataRequest:
    """What a model's data set is opened for; equal requests share one."""
    return DataRequest(
        shifts, model.geometry if config.by_weights else None, model.labels if config.by_labels else None
    )


def _data_problem(loaded: LoadedSuite, problem: Problem, model: str) -> Problem:
    """A problem of opening the data with its place in the document: the model's, where its classes are not named."""
    if problem.where == LABELS:
        index = [m.name for m in loaded.suite.models].index(model)
        return loaded.document.problem(("models", index, "name"), f"model {model!r}: {problem.message}", problem.hint)
    key = data_key(loaded.suite.data, problem.where)
    return loaded.document.problem(("data", key) if key else ("data",), _sentence(problem), problem.hint)


def odd_labels(dataset: Dataset, shift: Shift) -> Problem | None:
    """Where a label is no class, or an image has none: a wrong number would come of it, and no error."""
    labels, mask = dataset.labels_of(shift), dataset.mask_of(shift)
    if fault := label_fault(labels, dataset.num_classes if mask is None else len(mask)):
        return Problem(f"{dataset.title}: {fault}")
    if labels is getattr(dataset, "labels", None) and len(labels) != len(dataset.ids):
        return Problem(f"{dataset.title}: {len(labels)} labels for {len(dataset.ids)} images")
    return None


def _shift_path(loaded: LoadedSuite, shift: Shift) -> KeyPath:
    """Where the document asks for a shift: among corruptions, or as a probe."""
    evaluation = next(each for each in loaded.suite.evaluations() if shift in each.shifts())
    path = loaded.protocol_path(evaluation.index)
    if shift.name not in evaluation.corruptions:
        return (*path, "probe", "shift")
    own = loaded.suite.protocol[evaluation.index].corruptions is not None
    return (*(path if own else ()), "corruptions", evaluation.corruptions.index(shift.name))


def data_key(config: DataConfig, where: str) -> str | None:
    """The key of a suite's ``data`` whose folder holds the file or folder ``where``, the innermost; or None."""
    keys = [
        key for key in config.path_keys() if getattr(config, key) and where and _inside(where, getattr(config, key))
    ]
    return max(keys, key=lambda key: len(pathlib.Path(getattr(config, key)).resolve().parts), default=None)


def _inside(where: str, folder: str) -> bool:
    return pathlib.Path(where).resolve().is_relative_to(pathlib.Path(folder).expanduser().resolve())


def _mismatches(loaded: LoadedSuite, model: OpenedModel, dataset: Dataset, masked: bool) -> Iterator[Problem]:
    index = [m.name for m in loaded.suite.models].index(model.name)
    if model.num_classes != dataset.num_classes:
        message = f"model {model.name!r} has {model.num_classes} classes, {dataset.title} has {dataset.num_classes}"
        yield loaded.document.problem(("models", index, "name"), message, "use a model and data with the same classes")
    if masked and model.mask_obstacle:
        message = f"model {model.name!r} takes no class mask: {model.mask_obstacle}"
        hint = "choose a network with one linear layer last, or grade among all its classes: data: {…, mask: none}"
        yield loaded.document.problem(("models", index, "name"), message, hint)
    if model.image_size is not None and model.image_size != dataset.side:
        message = (
            f"model {model.name!r} takes {model.image_size}x{model.image_size} images, "
            f"{dataset.title} has {dataset.side}x{dataset.side}"
        )
        yield loaded.document.problem(
            ("models", index, "name"), message, "choose another model, or another preprocess:"
        )
