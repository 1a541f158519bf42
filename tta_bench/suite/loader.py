"""YAML to a validated Suite; all problems are reported together, each with line, column and a hint."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic
from pydantic import BaseModel

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.files import expanded, is_file
from tta_bench.registry import DATASETS, MODELS, PROTOCOLS, PluginKind, Registry, plugin_entries
from tta_bench.suite.document import Document, KeyPath, parse, read_text
from tta_bench.suite.parts import config_class, known_shifts, read
from tta_bench.suite.schema import OVERRIDES, Evaluation, Suite, named


@dataclass
class LoadedSuite:
    """A valid suite and its file.

    Attributes:
        suite: the values.
        document: the file, for messages with line and column.
        plugins: plugin files, from the suite and the command line.
        registry: installed plugins and those files.
    """

    suite: Suite
    document: Document
    plugins: list[pathlib.Path] = field(default_factory=list)
    registry: Registry = field(default_factory=Registry)

    def protocol_path(self, index: int) -> KeyPath:
        """Where the document has an entry of ``protocol``."""
        return _protocol_path(self.document, index)

    def protocol_problem(self, index: int, problem: Problem) -> Problem:
        """A problem that a protocol reports, whose ``where`` is a key of its own, with its place in the document."""
        path = (*self.protocol_path(index), *filter(None, problem.where.split(".")))
        return self.document.problem(path, problem.message, problem.hint)


def _protocol_path(document: Document, index: int) -> KeyPath:
    return ("protocol", index) if isinstance(document.data.get("protocol"), list) else ("protocol",)


def shipped() -> list[str]:
    """Names of the shipped suites; those of papers come last, as ``papers/sar``."""
    folder = importlib.resources.files("tta_bench.suites")
    names = [[f"{prefix}{file.name}" for file in place.iterdir() if file.name.endswith(".yaml")]
             for prefix, place in (("", folder), ("papers/", folder / "papers"))]  # fmt: skip
    return [name.removesuffix(".yaml") for group in names for name in sorted(group)]


def find(name: str) -> pathlib.Path:
    """The file of a suite, from its path or the name of a shipped suite.

    Raises:
        UsageError: there is no such file or suite.
    """
    if is_file(name):
        return expanded(name)
    if name in shipped():
        return pathlib.Path(str(importlib.resources.files("tta_bench.suites") / f"{name}.yaml"))
    raise UsageError(
        Problem(f"no such suite: {name}", hint="give a YAML file, or a shipped suite: " + ", ".join(shipped()))
    )


def load(
    name: str,
    *,
    sets: Iterable[str] = (),
    plugins: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> LoadedSuite:
    """Read and check a suite.

    Args:
        name: a path, or the name of a shipped suite.
        sets: ``key=value`` pairs that replace top-level or dotted keys (``data.max_images=500``); values are YAML.
        plugins: plugin files, in addition to those of the suite.
        environment: variables by name; ``os.environ`` by default.

    Raises:
        UsageError: with all problems.
    """
    document = read_document(name, sets, environment)
    problems = list(document.problems)
    files, registry = plugins_of(document, plugins, problems)
    suite = validated(document, registry, problems)
    problems += _protocol_problems(document, suite) if suite else []
    problems += _method_problems(document, registry)
    if problems or suite is None:
        raise UsageError(problems)
    return LoadedSuite(suite, document, files, registry)


def read_document(name: str, sets: Iterable[str], environment: Mapping[str, str] | None = None) -> Document:
    """The document of a suite with the keys that ``sets`` replace, not validated; arguments as of :func:`load`.

    Raises:
        UsageError: there is no such suite, or it is no YAML mapping.
    """
    path = find(name)
    document = parse(read_text(path), str(path), environment)
    if not isinstance(document.data, dict):
        raise UsageError(Problem("a suite must be a mapping", str(path), hint="see suites/digits_c.yaml"))
    for pair in sets:
        _set(document, pair)
    return document


def _set(document: Document, pair: str) -> None:
    key, equals, value = pair.partition("=")
    if not equals:
        raise UsageError(Problem(f"--set {pair}: not of the form key=value", hint="for example --set seeds=[0,1]"))
    origin = f"--set {pair}"
    parsed = parse(value, origin)
    if parsed.problems:
        raise UsageError(parsed.problems)
    document.override(key.split("."), parsed.data, origin)


# -- validation --------------------------------------------------------------------------------------------------------


# keys whose values a plugin's Config validates, with its kind and the default plugin
_PARTS: dict[str, tuple[PluginKind, str | None]] = {"data": (DATASETS, None), "protocol": (PROTOCOLS, "reset"),
                                              "models": (MODELS, "timm")}  # fmt: skip


def validated(document: Document, registry: Registry, problems: list[Problem]) -> Suite | None:
    """The suite of a document; None where there are problems with it, which are added to ``problems``."""
    try:
        # JSON mode is strict about types ("5" and true are not numbers) but accepts lists as tuples
        context = {"registry": registry, "shifts": known_shifts(document.data.get("data"), registry)}
        return Suite.model_validate_json(json.dumps(document.data), strict=True, context=context)
    except pydantic.ValidationError as error:
        problems += [_suite_problem(document, registry, dict(e)) for e in error.errors(include_url=False)]
        return None


def _suite_problem(document: Document, registry: Registry, error: dict[str, Any]) -> Problem:
    """A refused value as a problem, with hints from the Config of the part that it is in."""
    location = error["loc"]
    if location and location[0] in _PARTS:
        kind, default = _PARTS[location[0]]
        value, prefix = document.data.get(location[0]), location[:1]
        if isinstance(value, list) and len(location) > 1:
            value, prefix = value[location[1]], location[:2]
        config = config_class(kind, value, registry, default)
        further: tuple[str, ...] = ()
        if kind is PROTOCOLS:  # pydantic sees a tuple of entries, each with the protocol's own keys in a part
            location = (*prefix, *(part for part in location[2:] if part != "config"))
            further = OVERRIDES
        if config is not None and len(location) > len(prefix):
            error = {**error, "loc": location[len(prefix) :]}
            return _problem(document, config, error, prefix, further=further)
    return _problem(document, Suite, {**error, "loc": location})


def _protocol_problems(document: Document, suite: Suite) -> Iterator[Problem]:
    evaluations = suite.evaluations()
    for number, evaluation in enumerate(evaluations):
        path = _protocol_path(document, number)
        if (first := suite.protocol.index(suite.protocol[number])) < number:
            yield document.problem(path, f"repeats entry {first} of protocol", "leave one of them out")
        yield from _evaluation_problems(document, evaluation, path)


def _evaluation_problems(document: Document, evaluation: Evaluation, path: KeyPath) -> Iterator[Problem]:
    """Values of ``adapt_images`` that are not a multiple of the batch size, and a probe that is not a shift."""
    probe = evaluation.protocol.probe
    if probe is not None and evaluation.data.shift_named(probe.shift) is None:
        hint = "give clean, or a corruption with a severity: fog-5"
        yield document.problem((*path, "probe", "shift"), f"unknown shift {probe.shift!r}", hint)
    for count, size in itertools.product(evaluation.protocol.adapt_images, evaluation.batch_size):
        if count is not None and count % size:
            message = f"adapt_images {count} is not a whole number of batches of {size}"
            yield document.problem((*path, "adapt_images"), message, f"for example {-(-count // size) * size}")


def _path(document: Document, location: Iterable[str | int]) -> KeyPath:
    """The path in the document of pydantic's location, without parts that are not keys (a union's tag)."""
    path: list[str | int] = []
    node: Any = document.data
    for part in location:
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            path.append(part)
            node = node[part]  # type: ignore[index]
    return tuple(path)


def _problem(
    document: Document,
    model: type[BaseModel],
    error: Mapping[str, Any],
    prefix: KeyPath = (),
    whole: str = "suite",
    further: tuple[str, ...] = (),
) -> Problem:
    """A refused value as a problem; ``whole`` is the document's noun in messages on top-level keys.

    ``further`` are keys that are known at ``prefix`` beside the fields of ``model``.
    """
    location = (*prefix, *error["loc"])
    path, last, kind = _path(document, location), location[-1] if location else "", error["type"]
    where = ".".join(str(part) for part in path[:-1] if not isinstance(part, int)) or whole
    if kind == "extra_forbidden":
        inside = error["loc"][:-1]
        hint = near_miss(str(last), [*_fields_at(model, inside), *(further if not inside else ())])
        return document.problem(path, f"unknown key {last!r} in {where}", hint, at_key=True)
    if kind == "missing" and isinstance(last, int):
        return document.problem(path, f"{'.'.join(map(str, path))}: item {last + 1} of the list is missing")
    if kind == "missing":
        where = ".".join(str(part) for part in path if not isinstance(part, int)) or whole
        return document.problem(path, f"missing key {last!r} in {where}", at_key=True)
    context = error.get("ctx", {})
    if kind == "missing_kind":
        where = location[-2] if len(location) > 1 else "protocol"
        return document.problem(path, f"missing key 'kind' in {where}", str(context["hint"]), at_key=True)
    message = error["msg"].removeprefix("Value error, ")
    for jargon, word in (("a valid array", "a list"), ("an object", "a mapping"), ("a valid dictionary", "a mapping")):
        message = message.replace(jargon, word)  # pydantic speaks of JSON, the file is YAML
    shown = ".".join(str(part) for part in path)
    complete = kind.startswith("unknown_")
    hint = str(context.get("hint", "")) or _literal_hint(error)
    return document.problem(path, message if complete else f"{shown}: {message}", hint)


def _literal_hint(error: Mapping[str, Any]) -> str:
    if error["type"] != "literal_error":
        return ""
    allowed = str(error["ctx"]["expected"]).replace(" or ", ", ").replace("'", "")
    return near_miss(str(error["input"]), [word.strip() for word in allowed.split(",")])


def _fields_at(model: Any, location: Iterable[str | int]) -> list[str]:
    """Field names of the part of ``model`` at pydantic's ``location``."""
    for part in location:
        if part in getattr(model, "model_fields", {}):
            model = next(_models_in(model.model_fields[part].annotation), None)
    return list(getattr(model, "model_fields", {}))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def plugins_of(
    document: Document, further: Iterable[str], problems: list[Problem]
) -> tuple[list[pathlib.Path], Registry]:
    """The plugin files, and a registry with those that can be imported; problems with others are added."""
    listed = document.data.get("plugins") or []
    folder = pathlib.Path(document.name).parent
    files = [folder / p for p in listed if isinstance(p, str)] if isinstance(listed, list) else []
    files += [pathlib.Path(p) for p in further]
    importable = []
    for file in files:
        try:
            plugin_entries(file)
            importable.append(file)
        except UsageError as error:
            problems += error.problems
    return files, Registry(plugins=importable)


def _method_problems(document: Document, registry: Registry) -> Iterator[Problem]:
    """Unknown and ambiguous names, repeated labels, unknown models; checked even where the rest of the file is invalid."""
    entries = document.data.get("methods")
    models = document.data.get("models")
    if not isinstance(entries, list) or not isinstance(models, list):
        return
    model_names: dict[str, None] = {}
    for i, model in enumerate(models):
        name = model.get("name") if isinstance(model, dict) else None
        if not isinstance(name, str):
            continue
        if name in model_names:
            yield document.problem(("models", i, "name"), f"two models have the name {name!r}")
        model_names[name] = None
    labels = set[str]()
    for i, entry in enumerate(entries):
        entry = named(entry)
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        label = str(entry.get("label") or name)
        if label in labels:
            yield document.problem(
                ("methods", i), f"two methods have the label {label!r}", "give one a different label:"
            )
        labels.add(label)
        key: KeyPath = ("methods", i, "name") if isinstance(entries[i], dict) else ("methods", i)
        try:
            registry.entry(name)
        except UsageError as error:
            yield document.problem(key, error.problems[0].message, error.problems[0].hint)
        per_model = entry.get("per_model")
        for model in per_model if isinstance(per_model, dict) else ():
            if model not in model_names:
                hint = near_miss(model, model_names)
                yield document.problem(
                    ("methods", i, "per_model", model), f"unknown model {model!r}", hint, at_key=True
                )


def config_problems(
    document: Document, config: type[BaseModel], error: pydantic.ValidationError, prefix: KeyPath, whole: str = "suite"
) -> list[Problem]:
    """The refused values of a plugin's Config at ``prefix`` in the document; ``whole`` is the document's noun."""
    return [_problem(document, config, dict(e), prefix, whole) for e in error.errors(include_url=False)]


def configured(kind: PluginKind, value: Mapping[str, Any], registry: Registry) -> BaseModel:
    """A part of a suite, such as its protocol, from a mapping without a file.

    Raises:
        UsageError: with all problems of the mapping.
    """
    try:
        return read(kind, value, registry)  # type: ignore[no-any-return]
    except pydantic.ValidationError as error:
        document = Document(kind.noun, [], data=dict(value))
        config = config_class(kind, value, registry) or BaseModel
        whole = f"{kind.noun} {value.get('kind')!r}"
        raise UsageError(config_problems(document, config, error, (), whole)) from error
