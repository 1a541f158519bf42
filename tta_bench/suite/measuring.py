"""Measuring trials: a few batches of each row of a plan, in several modes, before the suite is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tta_bench.data.digests import Digests
from tta_bench.precision import Mode
from tta_bench.streams import Shift
from tta_bench.suite.calibration import fitting, shortened
from tta_bench.suite.plan import Materials, Trial

_WARMUP_BATCHES, _TIMED_BATCHES = 3, 8  # with a window: its length at least


class Row(NamedTuple):
    """What trials with the same batches share.

    Attributes:
        label: the method's row in tables.
        model: name of the source model.
        batch_size: nominal.
        rules: those of the protocol that change what a batch costs, as JSON: ``window``, and a reset before each batch.
    """

    label: str
    model: str
    batch_size: int
    rules: str

    @property
    def window(self) -> int:
        """The length of the window; 0 without one."""
        window: int = json.loads(self.rules).get("window", 0)
        return window

    @property
    def text(self) -> str:
        """``tent, resnet50, batch 64``."""
        rules = [f"{name} {value}" for name, value in json.loads(self.rules).items()]
        return ", ".join([self.label, self.model, f"batch {self.batch_size}", *rules])


class MeasuringTrial(NamedTuple):
    """A trial that measures a row in the trial's mode. Attributes: warmup: batches that are not timed."""

    row: Row
    materials: Materials
    trial: Trial
    warmup: int


def row_of(trial: Trial) -> Row:
    """The row of a plan's trial."""
    rules: dict[str, Any] = {"window": trial.parameters["window"]} if trial.parameters["window"] else {}
    if trial.parameters["reset"] == "batch":
        rules["reset"] = "batch"
    return Row(trial.label, trial.model, trial.stream.batch_size, json.dumps(rules))


def by_row(trials: Iterable[Trial]) -> dict[Row, list[Trial]]:
    """The trials of each row, in plan order; those with the same key once."""
    rows: dict[Row, list[Trial]] = {}
    for trial in {trial.key: trial for trial in trials}.values():
        rows.setdefault(row_of(trial), []).append(trial)
    return rows


def compared_modes(own: Sequence[Mode], *, compiles: bool) -> list[Mode]:
    """The modes to compare: the default, which is the reference, a suite's own, and faster ones.

    Args:
        own: the suite's.
        compiles: whether compiling is worth its time although the suite does not ask for it.
    """
    deterministic = own[0].deterministic
    faster = [Mode("tf32", "off", deterministic), Mode("bfloat16", "off", deterministic)]
    if compiles:
        faster.append(Mode("bfloat16", "on", deterministic))
    return list(dict.fromkeys([Mode(), *own, *faster]))


def measurings(
    materials: Materials, trials: Sequence[Trial], modes: Sequence[Mode], shift: Shift, digests: Digests
) -> Iterator[MeasuringTrial]:
    """The measuring trials of the rows of ``trials``, each in all ``modes`` on the same batches.

    They are under ``shift``, where its labels fit the row's network.
    """
    for row, [first, *_] in by_row(trials).items():
        warmup = row.window or _WARMUP_BATCHES
        batches, rules = warmup + max(row.window, _TIMED_BATCHES), json.loads(row.rules)
        for mode in modes:
            fits = fitting(materials, first, shift)
            own, trial = shortened(materials, replace(first, mode=mode), fits, digests, batches, rules)
            yield MeasuringTrial(row, replace(own, per_image=trial.stream.length), trial, warmup)
