"""Provenance for the page: hyperparameters of methods; source models, images and sessions of runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from tta_bench.report.content import Method
from tta_bench.report.evidence import Evidence
from tta_bench.store.results import Results

_SHORT = 12  # digits of a fingerprint that are shown


@dataclass(frozen=True)
class MethodView:
    """A method with its hyperparameters.

    Attributes:
        columns: groups of source models with equal hyperparameters; a single empty name where there is one group.
        rows: (hyperparameter, its value in each column, whether these differ).
    """

    label: str
    columns: list[str]
    rows: list[tuple[str, list[str], bool]]


def methods(configured: Sequence[Method]) -> list[MethodView]:
    """Each label once, in order."""
    views = []
    for label in dict.fromkeys(method.label for method in configured):
        models: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for method in configured:
            if method.label == label:
                models.setdefault(tuple(_values(method)), []).append(method.model)
        columns = [", ".join(alike) for alike in models.values()] if len(models) > 1 else [""]
        values = [dict(of_models) for of_models in models]
        names = list(dict.fromkeys(name for of_models in values for name in of_models))
        rows = [(name, [of_models.get(name, "–") for of_models in values]) for name in names]
        views.append(MethodView(label, columns, [(name, row, len(set(row)) > 1) for name, row in rows]))
    return views


def _values(method: Method) -> Iterator[tuple[str, str]]:
    yield from (("method", method.method), ("variant", method.variant), ("preset", method.preset or "none"))
    yield from _flat(method.config)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``optimizer_options.eps`` and the like, each with its value as text."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class SessionView:
    """A session of a run.

    Attributes:
        hardware: that its trials ran on.
        text: the session as ``run.json`` has it, YAML.
    """

    number: int
    hardware: list[str]
    text: str


@dataclass(frozen=True)
class RunView:
    """A run's folder.

    Attributes:
        models: (source model, its description in plan.json).
        images: (data set, shift, source model or empty for all, short fingerprint).
    """

    name: str
    path: str
    plan: Mapping[str, Any]
    models: list[tuple[str, Mapping[str, Any]]]
    images: list[tuple[str, str, str, str]]
    sessions: list[SessionView]


def runs(evidence: Evidence) -> list[RunView]:
    """Each run, in the order given."""
    views = []
    for number, (run, sessions) in enumerate(zip(evidence.runs, evidence.sessions(), strict=True)):
        rows = evidence.segments[evidence.segments["run"] == number]
        shown = [_session(session, rows[rows["session"] == session["session"]]) for session in sessions]
        models = list(run.plan["models"].items())
        name = run.path.resolve().name
        views.append(RunView(name, str(run.path), run.plan, models, list(_images(run)), shown))
    return views


def _images(run: Results) -> Iterator[tuple[str, str, str, str]]:
    prints: dict[tuple[str, str], dict[str, str]] = {}
    for trial in run.plan["trials"]:
        names = [shift[2] for shift in trial["shifts"]]
        shift = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} shifts in a row"
        prints.setdefault((trial["dataset"], shift), {})[trial["model"]] = trial["data"][:_SHORT]
    for (dataset, shift), by_model in prints.items():
        if len(set(by_model.values())) == 1:
            yield dataset, shift, "", next(iter(by_model.values()))
        else:
            yield from ((dataset, shift, model, text) for model, text in by_model.items())


def _session(session: Mapping[str, Any], rows: pd.DataFrame) -> SessionView:
    text = yaml.safe_dump(dict(session), sort_keys=False, allow_unicode=True, default_flow_style=None)
    return SessionView(int(session["session"]), list(_hardware(rows)), text)


def _hardware(rows: pd.DataFrame) -> Iterator[str]:
    columns = ["device_name", "host", "threads", "torch"]
    filled = rows[rows["device_name"].notna()]
    for (device, host, threads, torch), part in filled.groupby(columns, sort=False, dropna=False):
        trials = part["key"].nunique()
        counted, on = (
            f"{trials} trial{'s' if trials != 1 else ''}",
            f"{threads} CPU thread{'s' if threads != 1 else ''}",
        )
        yield f"{counted} on {device} ({host}), {on}, torch {torch}"
