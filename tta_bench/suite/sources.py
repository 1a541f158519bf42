"""A suite's source models and their data, opened and checked: what planning and pre-training begin with.

Nothing is decoded; every model is built once, to check its weights.
"""

from __future__ import annotations

import pathlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tta_bench.data import DataRequest, Dataset, Geometry, open_data
from tta_bench.errors import Problem, UsageError
from tta_bench.models import Network, open_network, state_sha256
from tta_bench.registry import MODELS, foreign_code
from tta_bench.run.server import Process, own_server
from tta_bench.suite import LoadedSuite

_AT_A_TIME = 4  # networks that are being built, each of them in memory


@dataclass(frozen=True)
class Model:
    """A checked source model: its network, and what the key says of it."""

    network: Network
    num_classes: int
    image_size: int | None
    geometry: Geometry | None
    parameters: int
    asked: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The suite's name for it."""
        return str(self.network.config.name)


def open_models(loaded: LoadedSuite, problems: list[Problem]) -> dict[str, Model]:
    """The suite's source models by name; what is wrong is added to ``problems``, and that model left out.

    Each is built in a process of its own, some at a time, so that planning neither imports timm nor keeps a network.
    """
    models, looks = dict[str, Model](), deque[_Look]()
    try:
        for index, config in enumerate(loaded.suite.models):
            if len(looks) == _AT_A_TIME:
                models |= _answer(loaded, looks.popleft(), problems)
            network = open_network(config, loaded.registry)
            looks.append(_Look(index, network, own_server().fork(_look, network)))
        while looks:
            models |= _answer(loaded, looks.popleft(), problems)
    finally:
        for look in looks:
            look.process.end()
    return models


class _Look(NamedTuple):
    """A network that is being built in another process: ``entry`` is its place in the suite."""

    entry: int
    network: Network
    process: Process


def _look(connection: Connection, network: Network) -> None:
    """In the other process: what planning has to know of a network, or why it cannot be had."""
    try:
        model = network.load()
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
    connection.send(Model(network, model.num_classes, size, geometry, parameters, asked))


def _answer(loaded: LoadedSuite, look: _Look, problems: list[Problem]) -> dict[str, Model]:
    """The model under its name, or nothing where there is a problem with it."""
    config = look.network.config
    try:
        answer: Model | list[Problem] = look.process.connection.recv()
        look.process.end()
    except (EOFError, ConnectionError):
        answer = [Problem(f"the process that builds it ends, with exit code {look.process.end(kill=False)}")]
    if isinstance(answer, list):
        problems += [_placed(loaded, look, problem) for problem in answer]
        return {}
    code = foreign_code(loaded.registry.entry(config.kind, MODELS))
    asked = {**answer.asked, **({"code_sha256": code} if code else {})}
    return {config.name: replace(answer, network=look.network, asked=asked)}


def _placed(loaded: LoadedSuite, look: _Look, problem: Problem) -> Problem:
    given = loaded.document.data["models"][look.entry]
    weights = given.get("weights") and "weights" in problem.message.split(":")[0]
    key = "weights" if weights else next((key for key in look.network.place if given.get(key)), "name")
    return loaded.document.problem(("models", look.entry, key), _sentence(problem), problem.hint)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} ({problem.where})" if problem.where else problem.message


# -- data --------------------------------------------------------------------------------------------------------------


def open_datasets(loaded: LoadedSuite, models: Mapping[str, Model], problems: list[Problem]) -> dict[str, Dataset]:
    """Each model's data by the model's name; what is wrong with them, or does not fit, is added to ``problems``."""
    config, shifts = loaded.suite.data, loaded.suite.shifts()
    by_weights = config.by_weights
    opened: dict[Geometry | None, Dataset] = {}
    datasets = {}
    try:
        for geometry in {None: None} if not by_weights else {m.geometry: None for m in models.values()}:
            opened[geometry] = open_data(config, DataRequest(shifts, geometry), loaded.registry)
    except UsageError as error:
        problems += [loaded.document.problem(_place(loaded, p), _sentence(p), p.hint) for p in error.problems]
        return {}
    for dataset in opened.values():
        for shift in shifts:
            if wrong := dataset.missing(shift):
                place = ("corruptions", loaded.suite.corruptions.index(shift.name))
                problems.append(loaded.document.problem(place, _sentence(wrong), wrong.hint))
    for name, model in models.items():
        datasets[name] = opened[model.geometry if by_weights else None]
        problems += _misfits(loaded, model, datasets[name])
    return datasets


def _place(loaded: LoadedSuite, problem: Problem) -> tuple[str, ...]:
    """The first key of ``data`` whose folder a problem names."""
    values = {key: v for key, v in loaded.document.data["data"].items() if isinstance(v, str) and key != "kind"}
    order = type(loaded.suite.data).model_fields
    named = [key for key in order if values.get(key) and _inside(problem.where, values[key])]
    return ("data", named[0]) if named else ("data",)


def _inside(where: str, folder: str) -> bool:
    return pathlib.Path(where).resolve().is_relative_to(pathlib.Path(folder).expanduser().resolve())


def _misfits(loaded: LoadedSuite, model: Model, dataset: Dataset) -> Iterator[Problem]:
    index = [m.name for m in loaded.suite.models].index(model.name)
    if model.num_classes != dataset.num_classes:
        what = f"model {model.name!r} has {model.num_classes} classes, {dataset.title} has {dataset.num_classes}"
        yield loaded.document.problem(("models", index, "name"), what, "use a model and data with the same classes")
    if model.image_size is not None and model.image_size != dataset.side:
        what = (
            f"model {model.name!r} takes {model.image_size}x{model.image_size} images, "
            f"{dataset.title} has {dataset.side}x{dataset.side}"
        )
        yield loaded.document.problem(("models", index, "name"), what, "choose another model, or another preprocess:")
