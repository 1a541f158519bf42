"""Calibration trials: short streams on which a run measures cost ratios before it plans the trials that follow them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

from tta_bench.data.base import digest
from tta_bench.data.digests import Digests
from tta_bench.streams import Shift, StreamSpec
from tta_bench.suite.cost_ratios import CostRow
from tta_bench.suite.plan import Materials, Plan, Trial, content_of, used_images

_BATCHES = 13  # at least, those of the warm-up included
_SEED = 0
_OF_PROTOCOL = ("cost_ratio", "skipped")  # in a trial's key


class Calibration(NamedTuple):
    """A trial that measures the cost ratio of a row; ``materials`` have the digest of its few images."""

    row: CostRow
    materials: Materials
    trial: Trial


def calibrations(plan: Plan, shift: Shift, digests: Digests) -> list[Calibration]:
    """The calibration of each row whose cost ratio is measured.

    It runs the method on batches of the evaluation's size, of a few images, again and again where there are not enough.
    They are under ``shift``, or, where that has another class mask than the row's first trial, under that one's first. Its
    key depends on everything that a trial's does, but for the protocol and the seed.
    """
    trials = {trial.cost_row: trial for trial in reversed(plan.trials)}
    return [
        _calibration(plan.materials, row, trial, _shift_of(plan.materials, trial, shift), digests)
        for row, trial in trials.items()
        if row
    ][::-1]


def _shift_of(materials: Materials, trial: Trial, shift: Shift) -> Shift:
    """A shift whose labels fit the trial's network."""
    return shift if materials.datasets[trial.model].mask_of(shift) == trial.mask else trial.stream.shifts[0]


def _calibration(materials: Materials, row: CostRow, trial: Trial, shift: Shift, digests: Digests) -> Calibration:
    dataset, spec = materials.datasets[trial.model], _stream(materials, trial, shift)
    content = content_of(dataset, shift, used_images(dataset, shift, spec), digests, materials.data_code)
    [(spec, stream)] = materials.streams().specs(trial.model, spec)
    kept = {name: value for name, value in trial.asked.items() if name not in _OF_PROTOCOL}
    asked = {**kept, "data": digest([content]), "stream": stream.sha256, "seed": _SEED}
    calibrating = replace(
        trial, key=digest(asked), stream=spec, seed=_SEED, asked=asked, obstacle=None, calibrates=True
    )
    return Calibration(row, replace(materials, contents={(trial.model, shift): content}), calibrating)


def _stream(materials: Materials, trial: Trial, shift: Shift) -> StreamSpec:
    """Batches of one size: all images again and again, of which there are as many as the batches need at most."""
    size, images = trial.stream.batch_size, len(used_images(materials.datasets[trial.model], shift, trial.stream))
    whole = min(images // size, _BATCHES)
    protocol = json.dumps({"kind": "recurring", "visits": -(-_BATCHES // max(whole, 1))})
    return StreamSpec(protocol, (shift,), whole * size or images, trial.stream.data_seed, size, _SEED)
