"""Trials that runs asked for in different ways: what differs, and the refusal that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.errors import Problem
from tta_bench.store.merge import words
from tta_bench.store.merge.inputs import BROKEN, Run, Trial


@dataclass(frozen=True)
class Clash:
    """A trial of ``run`` that was asked for in another way than ``by`` asked."""

    trial: Trial
    by: Run
    run: Run
    difference: str


def refusal(clashes: Sequence[Clash]) -> Problem:
    """All that is said of ``clashes``: how many, the first, and what to do."""
    lines = []
    for clash in clashes[: words.SHOWN]:
        lines.append(f"  {words.row(clash.trial)}: {words.place(clash.trial)}")
        lines.append(f"    {clash.by.given} and {clash.run.given} differ in {clash.difference}")
    if len(clashes) > words.SHOWN:
        lines.append(f"  and {len(clashes) - words.SHOWN} more")
    what = f"{words.count(len(clashes), 'trial was', 'trials were')} asked for in different ways"
    hint = "run one of the runs again as the other was run, or name the run that counts with --keep RUN"
    return Problem(what, source="\n".join(lines), hint=hint)


def asked_for(run: Run, trial: Trial) -> Mapping[str, Any]:
    """What the key depends on, where the trial was run, else what the plan says of it; hyperparameters with defaults."""
    try:
        asked: Mapping[str, Any] = json.loads((run.path / "trials" / f"{trial['key']}.json").read_text())["asked"]
    except BROKEN:
        return {"method": {"config": trial["config"]}, "batch_size": trial["batch_size"]}
    return {**asked, "method": method_of(trial, asked)}


def method_of(trial: Trial, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method as it was asked for, with the hyperparameters that a key leaves out: those at their defaults."""
    method: Mapping[str, Any] = asked.get("method", {})
    return {**method, "config": {**trial["config"], **method.get("config", {})}}


def difference_of(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The first values that differ, each under its dotted name with both sides."""
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    names = [name for name in left if name in right and left[name] != right[name]]
    shown = [f"{name} ({str(left[name])[:24]} / {str(right[name])[:24]})" for name in names[: words.SHOWN]]
    return ", ".join(shown) or "code, weights, data or hyperparameters (which, is known of trials that ran)"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
