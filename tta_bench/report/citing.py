"""What a paper cites for the tables of a report: the entries of its data, source models, protocols and methods."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tta_bench.citations import FILE, Citation, Library
from tta_bench.errors import Problem
from tta_bench.registry import DATASETS, METHODS, MODELS, OPTIMIZERS, PROTOCOLS, PluginKind, installed
from tta_bench.report.evidence import Evidence
from tta_bench.setting import Setting, words
from tta_bench.store.results import Results

Citations = tuple[Citation, ...]


@dataclass
class Cited:
    """The entries of a report.

    Attributes:
        entries: all, each key once, in the order of use.
        labels, models, datasets, protocols, optimizers: those that stand beside a method's label, a source model, a data
            set, a protocol with its parameters (``Setting.protocol_text``), and an optimizer.
        packages: those of a kind of model itself, where a model has its own: timm's, by its name.
        without: plugins without an entry, as ``method source``.
        problems: with files of references, whose entries are missing.
    """

    entries: list[Citation] = field(default_factory=list)
    labels: dict[str, Citations] = field(default_factory=dict)
    models: dict[str, Citations] = field(default_factory=dict)
    datasets: dict[str, Citations] = field(default_factory=dict)
    protocols: dict[str, Citations] = field(default_factory=dict)
    optimizers: dict[str, Citations] = field(default_factory=dict)
    packages: dict[str, Citations] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def suites(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The suite of each run as its last session has it; empty where ``run.json`` has none."""
    return [sessions[-1].get("suite") or {} if sessions else {} for sessions in evidence.sessions()]


def cited(evidence: Evidence) -> Cited:
    """The entries of the runs' plugins; a plugin file is looked for where the run's command line and suite name it."""
    library = Library(installed(), _plugin_files(evidence))
    gathered = _Gathering(library)
    for run, suite in zip(evidence.runs, suites(evidence), strict=True):
        gathered.data(run, suite)
        gathered.source_models(run, suite)
    for section in evidence.sections.values():
        gathered.protocol(section)
    rows = {(t["label"], t["preset"], json.dumps(t["config"], sort_keys=True)): t for _, t in evidence.trials()}
    for trial in rows.values():
        gathered.method(trial)
    return gathered.result()


class _Gathering:
    def __init__(self, library: Library):
        self._library, self._cited = library, Cited()
        self._by_key: dict[str, Citation] = {}

    def result(self) -> Cited:
        self._cited.problems += self._library.problems
        return self._cited

    def data(self, run: Results, suite: Mapping[str, Any]) -> None:
        config = suite.get("data") or {}
        by_title: dict[str, dict[str, None]] = {}
        for trial in run.plan["trials"]:
            by_title.setdefault(trial["dataset"], {}).update(dict.fromkeys(name for name, *_ in trial["shifts"]))
        for title, shifts in by_title.items() if "kind" in config else ():
            self._add(self._cited.datasets, title, config["kind"], {**config, "shift": [*shifts]}, DATASETS)

    def source_models(self, run: Results, suite: Mapping[str, Any]) -> None:
        configs = {config["name"]: config for config in suite.get("models", [])}
        for name, about in run.plan["models"].items():
            if name in configs:
                config = configs[name]
                self._add(self._cited.models, name, config["kind"], {**config, "tag": about.get("tag")}, MODELS)
                whole = self._library.of(config["kind"], {}, MODELS)
                if package := tuple(entry for entry in whole if entry not in self._cited.models[name]):
                    self._cited.packages[config["kind"]] = package

    def protocol(self, section: Setting) -> None:
        parameters = {name: words(name, json.loads(value)) for name, value in section.parameters}
        self._add(self._cited.protocols, section.protocol_text, section.protocol, parameters, PROTOCOLS)

    def method(self, trial: Mapping[str, Any]) -> None:
        values = {**trial["config"], "variant": trial["variant"], "preset": trial["preset"]}
        self._add(self._cited.labels, trial["label"], trial["method"], values, METHODS)
        if (optimizer := trial["config"].get("optimizer")) in self._library.registry.names(OPTIMIZERS):
            self._add(self._cited.optimizers, optimizer, optimizer, trial["config"], OPTIMIZERS)

    def _add(
        self, to: dict[str, Citations], place: str, name: str, values: Mapping[str, Any], kind: PluginKind
    ) -> None:
        entries = [entry for entry in self._library.of(name, values, kind) if self._kept(entry, f"{kind.noun} {name}")]
        near = self._library.nearest(name, values, kind) if kind == MODELS else entries
        to[place] = tuple(dict.fromkeys([*to.get(place, ()), *(entry for entry in near if entry in entries)]))
        missing = f"{kind.noun} {name}"
        if not entries and not self._library.named(name, kind) and missing not in self._cited.without:
            self._cited.without.append(missing)

    def _kept(self, entry: Citation, whose: str) -> bool:
        """Whether an entry is in the report; not one whose key another has, as a citation would mean the other."""
        first = self._by_key.setdefault(entry.key, entry)
        if first == entry:
            self._cited.entries += [entry] if entry not in self._cited.entries else []
            return True
        problem = Problem(f"the key {entry.key} of {whose} is another entry's", FILE, hint="give it another key")
        self._cited.problems += [problem] if problem not in self._cited.problems else []
        return False


def _plugin_files(evidence: Evidence) -> Iterator[pathlib.Path]:
    """Plugin files of the runs' suites and command lines, as far as they are still there."""
    for run_sessions in evidence.sessions():
        for session in run_sessions:
            command = [str(word) for word in session.get("command", [])]
            named = [after for word, after in itertools.pairwise(command) if word == "--plugin"]
            named += [word.removeprefix("--plugin=") for word in command if word.startswith("--plugin=")]
            beside = [pathlib.Path(word).parent for word in command if word.endswith((".yaml", ".yml"))]
            listed = [
                folder / str(name) for name in (session.get("suite") or {}).get("plugins", []) for folder in beside
            ]
            yield from _existing([*map(pathlib.Path, named), *listed])


def _existing(files: Iterable[pathlib.Path]) -> Iterator[pathlib.Path]:
    yield from (file for file in files if file.is_file())
