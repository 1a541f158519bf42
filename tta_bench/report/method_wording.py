"""Methods of a report in plain words: with which optimizers, hyperparameters, source images and checkpoints they ran."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from tta_bench.report.citing import Cited
from tta_bench.report.evidence import Evidence
from tta_bench.report.reference import hyperparameters_set
from tta_bench.report.words import Passage, Piece, listed

_PATH = re.compile(r"[/\\\\]")
Models = dict[str, None]  # an ordered set of source models
Rows = dict[str, Models]  # by label


def sentences(evidence: Evidence, cited: Cited) -> Iterator[Passage]:
    """The sentences on methods."""
    rows: Rows = {}
    for _, trial in evidence.trials():
        rows.setdefault(trial["label"], {})[trial["model"]] = None
    yield from _methods(evidence, cited)
    yield from _optimizers(evidence, cited)
    yield from _origins(evidence, rows)
    yield from _set(evidence, rows)
    yield from _helps(evidence)


def _methods(evidence: Evidence, cited: Cited) -> Iterator[Passage]:
    labels: dict[str, dict[str, None]] = {}
    paper: dict[str, None] = {}
    for _, trial in evidence.trials():
        labels.setdefault(trial["method"], {})[trial["label"]] = None
        paper |= {trial["label"]: None} if trial["variant"] == "paper" else {}
    pieces: list[Piece] = [f"Method{'s' if len(labels) > 1 else ''}: "]
    for number, (method, own) in enumerate(labels.items()):
        entries = tuple(dict.fromkeys(entry for label in own for entry in cited.labels.get(label, ())))
        pieces += [", " if number else "", method, entries, "" if [*own] == [method] else f" as {listed(own)}"]
    if labels:
        yield [*pieces, "."]
    if paper:
        yield [f"Where paper and published code differ, {listed(paper)} follow{'s' * (len(paper) == 1)} the paper."]


def _optimizers(evidence: Evidence, cited: Cited) -> Iterator[Passage]:
    optimizers: dict[str, dict[str, None]] = {}
    for _, trial in evidence.trials():
        if isinstance(name := trial["config"].get("optimizer"), str):
            optimizers.setdefault(name, {})[trial["label"]] = None
    pieces: list[Piece] = [f"Optimizer{'s' if len(optimizers) > 1 else ''}: "]
    for number, (name, labels) in enumerate(optimizers.items()):
        pieces += ["; " if number else "", name, cited.optimizers.get(name, ()), f" of {listed(labels)}"]
    if optimizers:
        yield [*pieces, "."]


def _origins(evidence: Evidence, rows: Rows) -> Iterator[Passage]:
    """Which hyperparameters rows started from; those of methods that have some."""
    origins: dict[str, Rows] = {}
    for _, trial in evidence.trials():
        if trial["config"]:
            lacking = f", which lack the preset {trial['preset_missing']}," if trial["preset_missing"] else ""
            published = f"the published ones of preset {trial['preset']}"
            origin = published if trial["preset"] else f"the methods' defaults{lacking}"
            origins.setdefault(origin, {}).setdefault(trial["label"], {})[trial["model"]] = None
    texts = [f"{origin} for {_rows(own, rows)}" for origin, own in origins.items()]
    if texts:
        yield [f"Hyperparameters are {'; '.join(texts)}."]


def _set(evidence: Evidence, rows: Rows) -> Iterator[Passage]:
    """Which hyperparameters the suites set instead."""
    values: dict[str, dict[str, Rows]] = {}  # by label, hyperparameter, and value
    sessions = dict(zip((run.path for run in evidence.runs), evidence.sessions(), strict=True))
    for run, trial in evidence.trials():
        for name in hyperparameters_set(sessions[run.path], trial["label"], trial["model"]).names:
            own = values.setdefault(trial["label"], {}).setdefault(name, {})
            own.setdefault(_value(trial["config"].get(name)), {})[trial["model"]] = None
    for label, names in values.items():
        told = [
            f"{name} {' and '.join(f'{v}{_on(m, rows[label])}' for v, m in own.items())}" for name, own in names.items()
        ]
        yield [f"Set instead for {label}: {', '.join(told)}."]
    unknown = [
        run.path.name for run in evidence.runs if not (sessions[run.path] and sessions[run.path][-1].get("suite"))
    ]
    if unknown:
        yield [f"What was set instead of these is not recorded of {listed(unknown)}."]


def _value(value: object) -> str:
    """A hyperparameter's value; of a file only that it is one, as its place means nothing elsewhere."""
    if isinstance(value, str):
        return "from a file" if _PATH.search(value) else value
    return json.dumps(value)


def _rows(own: Rows, all_rows: Rows) -> str:
    return listed(f"{label}{_on(models, all_rows[label])}" for label, models in own.items())


def _on(models: Iterable[str], all_models: Mapping[str, None]) -> str:
    """`` on vit_b16``, where the row is on other source models, too."""
    return "" if set(models) == set(all_models) else f" on {listed(models)}"


def _helps(evidence: Evidence) -> Iterator[Passage]:
    """What methods had besides the stream."""
    rows = evidence.segments[evidence.segments["status"] == "ok"]
    seen = rows[rows["source_images"].fillna(0) > 0]
    texts = [
        f"{label} ({listed((f'{int(n):,}' for n in sorted(set(part['source_images']))), 'or')})"
        for label, part in seen.groupby("label", sort=False)
    ]
    if texts:
        yield [f"Clean unlabelled source images were seen by {listed(texts)}."]
    learned = dict.fromkeys(rows.loc[rows["checkpoint"].fillna("") != "", "label"])
    if learned:
        yield [f"Learned checkpoints are used by {listed(learned)}."]
