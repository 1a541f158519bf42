"""A suite's source models and their data, opened and checked: what planning and pre-training begin with.

Nothing is decoded; every model is loaded once, to check its weights.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tta_bench.data import Dataset, Geometry, open_data
from tta_bench.data.folder import FolderPart
from tta_bench.errors import Problem, UsageError
from tta_bench.models import ModelSpec, check_timm_name, load, needed_image_size, state_sha256
from tta_bench.suite import LoadedSuite, ModelEntry


@dataclass(frozen=True)
class Model:
    """A checked source model: its specification, and what the key says of it."""

    spec: ModelSpec
    num_classes: int
    image_size: int | None
    geometry: Geometry | None
    parameters: int
    asked: Mapping[str, Any]


def open_models(loaded: LoadedSuite, problems: list[Problem]) -> dict[str, Model]:
    """The suite's source models by name; what is wrong is added to ``problems``, and that model left out."""
    return {m.name: model for i, m in enumerate(loaded.suite.models) if (model := _open(loaded, i, m, problems))}


def _open(loaded: LoadedSuite, index: int, entry: ModelEntry, problems: list[Problem]) -> Model | None:
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
        "mean": [round(float(v), 6) for v in model.mean.flatten()],
        "std": [round(float(v), 6) for v in model.std.flatten()],
        **({"options": dict(spec.options)} if spec.options else {}),
        **({"stem": spec.stem} if spec.stem else {}),
    }
    geometry = _published_geometry(published) if spec.timm else None
    count = sum(p.numel() for p in model.parameters())
    return Model(spec, model.num_classes, needed_image_size(spec, model.net), geometry, count, asked)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} ({problem.where})" if problem.where else problem.message


def _published_geometry(published: Mapping[str, Any]) -> Geometry:
    """timm's evaluation transform: resize to crop / crop_pct, then the centre crop."""
    crop = int(published["input_size"][-1])
    return Geometry(int(crop // published["crop_pct"]), crop, published["interpolation"])


# -- data --------------------------------------------------------------------------------------------------------------


def open_datasets(loaded: LoadedSuite, models: Mapping[str, Model], problems: list[Problem]) -> dict[str, Dataset]:
    """Each model's data by the model's name; what is wrong with them, or does not fit, is added to ``problems``."""
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
    return pathlib.Path(where).resolve().is_relative_to(pathlib.Path(folder).expanduser().resolve())


def _misfits(loaded: LoadedSuite, model: Model, dataset: Dataset) -> Iterator[Problem]:
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
