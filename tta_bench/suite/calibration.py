"""Calibration trials: short streams on which a run measures cost ratios before it plans the trials that follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from tta_bench.data.base import digest
from tta_bench.data.digests import Digests
from tta_bench.streams import Shift, StreamSpec
from tta_bench.suite.cost_ratios import CostRow
from tta_bench.suite.plan import Materials, Plan, Trial, content_of, used_images

_BATCHES = 13  # at least, those of the warm-up included
_SEED = 0
_OF_PROTOCOL = ("cost_ratio", "skipped")  # in a trial's key
_NO_RULES: Mapping[str, Any] = MappingProxyType({})


class Calibration(NamedTuple):
    """A trial that measures the cost ratio of a row; ``materials`` have the digest of its few images."""

    row: CostRow
    materials: Materials
    trial: Trial


def calibrations(plan: Plan, shift: Shift, digests: Digests) -> list[Calibration]:
    """The calibration of each row whose cost ratio is measured.

    It runs the method on batches of the evaluation's size, of a few images, again and again where there are not enough.
    They are under ``shift``, or, where that has another class mask than the row's first trial, under that one's first.
    """
    trials = {trial.cost_row: trial for trial in reversed(plan.trials)}
    return [
        _calibration(plan.materials, row, trial, fitting(plan.materials, trial, shift), digests)
        for row, trial in trials.items()
        if row
    ][::-1]


def fitting(materials: Materials, trial: Trial, shift: Shift) -> Shift:
    """A shift whose labels fit the trial's network."""
    return shift if materials.datasets[trial.model].mask_of(shift) == trial.mask else trial.stream.shifts[0]


def _calibration(materials: Materials, row: CostRow, trial: Trial, shift: Shift, digests: Digests) -> Calibration:
    return Calibration(row, *shortened(materials, replace(trial, calibrates=True), shift, digests, _BATCHES))


def shortened(
    materials: Materials,
    trial: Trial,
    shift: Shift,
    digests: Digests,
    batches: int,
    rules: Mapping[str, Any] = _NO_RULES,
) -> tuple[Materials, Trial]:
    """A trial on ``batches`` batches at least of a few images under ``shift``, and its materials.

    Its key depends on everything that the trial's does, and its mode, but for the protocol and the seed. ``rules`` are
    keys that the short protocol has, too.
    """
    dataset, spec = materials.datasets[trial.model], _stream(materials, trial, shift, batches, rules)
    content = content_of(dataset, shift, used_images(dataset, shift, spec), digests, materials.data_code)
    [(spec, stream)] = materials.streams().specs(trial.model, spec)
    kept = {name: value for name, value in trial.asked.items() if name not in (*_OF_PROTOCOL, *vars(trial.mode))}
    asked = {**kept, **trial.mode.asked(), "data": digest([content]), "stream": stream.sha256, "seed": _SEED}
    short = replace(trial, key=digest(asked), stream=spec, seed=_SEED, asked=asked, obstacle=None)
    return replace(materials, contents={(trial.model, shift): content}), short


def _stream(materials: Materials, trial: Trial, shift: Shift, batches: int, rules: Mapping[str, Any]) -> StreamSpec:
    """Batches of one size: all images again and again, of which there are as many as the batches need at most."""
    size, images = trial.stream.batch_size, len(used_images(materials.datasets[trial.model], shift, trial.stream))
    whole = min(images // size, batches)
    protocol = json.dumps({"kind": "recurring", "visits": -(-batches // max(whole, 1)), **rules})
    return StreamSpec(protocol, (shift,), whole * size or images, trial.stream.data_seed, size, _SEED)
