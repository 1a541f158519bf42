"""The setting of a report in plain words, ready for a paper.

It says what the records hold, and where they differ, how: several protocols, subsets, machines, missing trials.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.errors import UsageError
from tta_bench.registry import PROTOCOLS, installed
from tta_bench.report import method_wording
from tta_bench.report.citing import Cited, suites
from tta_bench.report.evidence import Evidence, modes, section_of
from tta_bench.report.words import Passage, Piece, listed
from tta_bench.setting import Setting
from tta_bench.store.results import Results

_SHORT = 12  # digits of a fingerprint


def setting(evidence: Evidence, cited: Cited) -> Passage:
    """Data, protocols, source models, methods, hyperparameters, missing results, and machines."""
    groups = _groups(evidence)
    sentences = [
        *_data(evidence, groups, cited),
        *_protocols(evidence, groups, cited),
        *_models(evidence, cited),
        *method_wording.sentences(evidence, cited),
        *_states(evidence),
        *_machines(evidence),
        *([f"The runs differ: {text}."] for text in evidence.mixed),
    ]
    spaced: list[list[Piece]] = [
        [" ", *sentence] if number else [*sentence] for number, sentence in enumerate(sentences)
    ]
    return [piece for sentence in spaced for piece in sentence]


# -- data and protocols ------------------------------------------------------------------------------------------------


Trials = Sequence[Mapping[str, Any]]
Groups = dict[str, list[Mapping[str, Any]]]


def _groups(evidence: Evidence) -> Groups:
    """The trials of each protocol with its parameters, and, where there are several data sets, of each of them."""
    several = len({trial["dataset"] for _, trial in evidence.trials()}) > 1
    names: dict[str, str] = {}  # by setting
    groups: Groups = {}
    for _, trial in evidence.trials():
        if trial["setting"] not in names:
            section = section_of(trial)
            mask = f", {section.mask_told}" if section.mask else ""
            names[trial["setting"]] = section.protocol_text + mask + f" on {trial['dataset']}" * several
        groups.setdefault(names[trial["setting"]], []).append(trial)
    return groups


def _data(evidence: Evidence, groups: Groups, cited: Cited) -> Iterator[Passage]:
    for title in dict.fromkeys(trial["dataset"] for _, trial in evidence.trials()):
        own = {name: trials for name, trials in groups.items() if trials[0]["dataset"] == title}
        runs = [run for run in evidence.runs if any(t["dataset"] == title for t in run.plan["trials"])]
        yield [f"Errors are on {title}", cited.datasets.get(title, ()), f": {_by_group(own, _shifts, '; ')}."]
        notes = dict.fromkeys(str(note) for run in runs for note in run.plan["notes"])
        yield from ((f"Images of {title} are {note}.",) for note in notes)
        yield [f"Streams draw on {listed(_images(runs, title), 'or')}."]


def _shifts(trials: Trials) -> str:
    """``clean images, and 2 corruptions (fog, snow) at severity 5``."""
    shifts = dict.fromkeys((name, severity) for trial in trials for name, severity, _ in trial["shifts"])
    alone = [name for name, severity in shifts if not severity and "+" not in name]
    pairs = sum("+" in name for name, _ in shifts)
    severities: dict[str, list[float]] = {}
    for name, severity in sorted(shifts, key=lambda shift: shift[1]):
        if severity:
            severities.setdefault(name, []).append(severity)
    at: dict[tuple[float, ...], list[str]] = {}  # corruptions by the severities that they have
    for name in dict.fromkeys(name for name, severity in shifts if severity):
        at.setdefault(tuple(severities[name]), []).append(name)
    others = [name for name in alone if name != "clean"]
    parts = ["clean images"] if "clean" in alone else []
    parts += [_named("shift", others)] if others else []
    parts += [
        f"{_named('corruption', names)} at severit{'ies' if len(own) > 1 else 'y'} {listed(f'{s:g}' for s in own)}"
        for own, names in at.items()
    ]
    parts += [f"{pairs:,} pairs of corruptions at changing severities"] if pairs else []
    return ", and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]])) + _masked(trials)


def _masked(trials: Trials) -> str:
    """``, where methods have networks of 200 classes for imagenet r``, or empty."""
    by_count: dict[int, dict[str, None]] = {}
    for trial in trials:
        if (classes := trial.get("classes")) is not None:
            by_count.setdefault(int(classes), {}).update((name, None) for name, *_ in trial["shifts"])
    told = [
        f"of {count:,} classes for {listed(name.replace('_', ' ') for name in names)}"
        for count, names in sorted(by_count.items())
    ]
    return f", where methods have networks {listed(told)}" if told else ""


def _named(noun: str, names: Sequence[str]) -> str:
    if set(names) == set(BENCHMARK):
        return "the 15 corruptions of the benchmark"
    known = ", ".join(name.replace("_", " ") for name in names)
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({known})"


def _images(runs: Sequence[Results], title: str) -> Iterator[str]:
    """How many images of a shift there are; a stream of several shifts states only the largest number."""
    for whole in (True, False):
        trials = [t for r in runs if r.plan["all_images"] == whole for t in r.plan["trials"] if t["dataset"] == title]
        if trials:
            single = all(len(trial["shifts"]) == 1 for trial in trials)
            least, most = (bound(int(trial["images"]) for trial in trials) for bound in (min, max))
            if single and least < most:
                of = "all images" if whole else "a seeded subset of the images"
                yield f"{of} of each shift, {least:,} to {most:,} as shifts differ in size"
            else:
                exact = "" if single else "up to "
                yield f"{(exact or 'all ') if whole else f'a seeded subset of {exact}'}{most:,} images of each shift"


def _protocols(evidence: Evidence, groups: Groups, cited: Cited) -> Iterator[Passage]:
    sections = {section.protocol_text: section for section in evidence.sections.values()}
    for name, section in sections.items():
        how = f": {text}" if (text := _in_words(section)) else ""
        yield [f"Protocol {name}", cited.protocols.get(name, ()), f"{how}."]
    if any(trial["adapt_images"] is not None for trials in groups.values() for trial in trials):
        yield [f"{_by_group(groups, _adapted)}."]
    yield [f"{_by_group(groups, _batches)}."]
    yield [f"{_by_group(groups, _seeds)}."]


def _in_words(section: Setting) -> str:
    """What a built-in protocol does, where no parameter changes it; plugins of others are not imported for it."""
    entries = [entry for entry in installed().entries(PROTOCOLS) if entry.name == section.protocol]
    changed = {"reset", "severities"} & {name for name, _ in section.parameters}
    if changed or len(entries) != 1 or not entries[0].target.startswith("tta_bench."):
        return ""
    try:
        about = inspect.getdoc(entries[0].load()) or ""
    except UsageError:
        return ""
    first = re.sub(r"\s*\([^()]*\)\.?$|\.$", "", about.partition("\n")[0])
    return first[:1].lower() + first[1:]


def _adapted(trials: Trials) -> str:
    numbers = sorted({int(n) for t in trials if (n := t["adapt_images"]) is not None})
    first = [f"the first {listed((f'{n:,}' for n in numbers), 'or')} images of a segment"] if numbers else []
    every = ["all images"] if any(t["adapt_images"] is None for t in trials) else []
    return f"Methods adapt on {listed([*first, *every], 'or on')}"


def _batches(trials: Trials) -> str:
    sizes = sorted({int(trial["batch_size"]) for trial in trials})
    return f"Batches have {listed((f'{size:,}' for size in sizes), 'or')} image{'s' if sizes != [1] else ''}"


def _seeds(trials: Trials) -> str:
    seeds = sorted({int(trial["seed"]) for trial in trials})
    return f"The seed is {seeds[0]}" if len(seeds) == 1 else f"The seeds are {listed(map(str, seeds))}"


def _by_group(groups: Mapping[str, Trials], tell: Callable[[Trials], str], between: str = ". ") -> str:
    """What is told of every group, once where it is the same of all."""
    told: dict[str, list[str]] = {}
    for name, trials in groups.items():
        told.setdefault(tell(trials), []).append(name)
    if len(told) == 1:
        return next(iter(told))
    return between.join(f"{text} (protocol{'s' * (len(own) > 1)} {'; '.join(own)})" for text, own in told.items())


# -- source models -----------------------------------------------------------------------------------------------------


def _models(evidence: Evidence, cited: Cited) -> Iterator[Passage]:
    told: dict[str, list[str]] = {}
    for run, suite in zip(evidence.runs, suites(evidence), strict=True):
        configs = {config["name"]: config for config in suite.get("models", [])}
        for name, about in run.plan["models"].items():
            text = _model(about, configs.get(name, {}))
            if text not in told.setdefault(name, []):
                told[name].append(text)
    if not told:
        return
    pieces: list[Piece] = [f"Source model{'s' if len(told) > 1 else ''}: "]
    for number, (name, texts) in enumerate(told.items()):
        pieces += ["; " if number else "", name, cited.models.get(name, ()), f", {', in another run '.join(texts)}"]
    yield [*pieces, "."]
    if cited.packages:
        parts = [[" and " if n else "", kind, entries] for n, (kind, entries) in enumerate(cited.packages.items())]
        yield ["Their networks are built by ", *(piece for part in parts for piece in part), "."]


def _model(about: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """``vit_base_patch16_224.augreg2_in21k_ft_in1k with timm's weights (SHA-256 0123…)``."""
    changed = " and ".join([*(["options"] if about.get("options") else []), *(["stem"] if about.get("stem") else [])])
    print_ = str(about.get("weights_sha256", ""))[:_SHORT]
    parts = [str(about.get("tag", "")), f"changed by its {changed}" if changed else "", _weights(config)]
    return " ".join(part for part in parts if part) + (f" (SHA-256 {print_}…)" if print_ else "")


def _weights(config: Mapping[str, Any]) -> str:
    given = str(config.get("weights") or "")
    if given.startswith("package:"):
        return f"with weights of the package {given.removeprefix('package:').partition('/')[0]}"
    if given:
        return "with weights from a file"
    own = config.get("timm") or config.get("weights_enum")
    return f"with {config['kind']}'s weights" if own else ""


# -- results and machines ----------------------------------------------------------------------------------------------

_STATES = {"skipped": "skipped", "failed": "failed", "missing": "not run"}


def _states(evidence: Evidence) -> Iterator[Passage]:
    trials = evidence.segments.drop_duplicates(["run", "key", "label", "setting"])
    counts = trials["status"].value_counts()
    gaps = [f"{text}: {counts[name]:,}" for name, text in _STATES.items() if counts.get(name)]
    if gaps:
        yield [f"Of {len(trials):,} planned trials {counts.get('ok', 0):,} have a result ({', '.join(gaps)})."]


def _machines(evidence: Evidence) -> Iterator[Passage]:
    rows = evidence.segments[evidence.segments["status"] == "ok"].drop_duplicates(["run", "key"])
    if not len(rows):
        return
    kinds = _devices(rows)
    several = len(kinds) > 1
    texts = [
        f"{text} ({count:,} trial{'s' if count > 1 else ''})" if several else text for text, count in kinds.items()
    ]
    yield [f"Trials ran in {listed(modes(rows))} on {listed(texts, 'or on')}."]
    used = [
        session
        for number, sessions in enumerate(evidence.sessions())
        for session in sessions
        if session["session"] in set(rows[rows["run"] == number]["session"].dropna().astype(int))
    ]
    names = {
        "tta-bench": [str(session["tta_bench"]) for session in used],
        "torch": [str(version) for version in rows["torch"]],  # of the machine that ran the trial
        "timm": [session["packages"]["timm"] for session in used if "timm" in session["packages"]],
    }
    texts = [f"{name} {listed(dict.fromkeys(values), 'or')}" for name, values in names.items() if values]
    yield [f"Software: {listed(texts)}."]


def _devices(rows: pd.DataFrame) -> dict[str, int]:
    """Hardware in words, with its number of trials."""
    columns = ["device", "device_name", "threads", "device_share"]
    counted = rows.reindex(columns=columns).value_counts(sort=False, dropna=False)
    kinds: dict[str, int] = {}
    for (device, name, threads, share), count in counted.items():
        if device == "cpu":
            text = f"one {name} CPU with {threads} thread{'s' if threads > 1 else ''}"
        else:
            text = f"one {name}{', shared with other trials' if share < 1 else ''}"
        kinds[text] = kinds.get(text, 0) + int(count)
    return kinds
