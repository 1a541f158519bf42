"""Run folders made by hand: what tests of the report need, in milliseconds."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tta_bench.files import write_json
from tta_bench.run.runner import TrialResult
from tta_bench.setting import Setting
from tta_bench.store import records, results

Cell = tuple[str, str, str, int]  # label, source model, shift id, seed


def write_run(
    path: pathlib.Path,
    cells: Mapping[Cell, np.ndarray | str],
    *,
    images: int | None = None,
    image_ids: np.ndarray | None = None,
    facts: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    session: Mapping[str, Any] | None = None,
    **plan: Any,
) -> pathlib.Path:
    """Write a run with one trial a cell.

    Args:
        path: the run's folder.
        cells: verdicts of a trial's images, (N,) bool, True for correct; or "failed", "skipped", "missing".
        images: images a shift in the plan; N where it is left out.
        image_ids: (N,) image indices; 0 to N − 1 where it is left out.
        facts, environment, session: what differs in every trial's record, and in ``run.json``.
        plan: what differs in the plan: its own keys, or keys of every trial in it.
    """
    path.mkdir(parents=True)
    size = images or next((len(c) for c in cells.values() if not isinstance(c, str)), 10)
    trials = [_planned(cell, size, plan) for cell in cells]
    own = {name: value for name, value in plan.items() if name not in trials[0]} if trials else {}
    whole = {"schema_version": records.SCHEMA_VERSION, "numerics_version": 1, "suite": "suite", "notes": [],
             "all_images": True, "models": {t["model"]: {"tag": t["model"]} for t in trials}, "trials": trials}  # fmt: skip
    write_json(path / "plan.json", {**whole, **own})
    about = {"session": 0, "tta_bench": "0.1.0", "packages": {"torch": "2.13.0", "timm": "1.0.31"}, **(session or {})}
    write_json(path / "run.json", {"schema_version": records.SCHEMA_VERSION, "sessions": [about]})
    for trial, verdict in zip(trials, cells.values(), strict=True):
        if isinstance(verdict, str):
            result = TrialResult(trial["key"], verdict, f"{verdict} for a reason")
        else:
            result = ok_result(trial, verdict, image_ids, facts, environment)
        if verdict != "missing" if isinstance(verdict, str) else True:
            records.write(path, result, {}, session=0)
    return path


def _planned(cell: Cell, size: int, changed: Mapping[str, Any]) -> dict[str, Any]:
    label, model, shift, seed = cell
    corruption, _, severity = shift.partition("-")
    trial = {
        "label": label, "method": label, "variant": "official", "preset": "", "config": {}, "model": model,
        "dataset": "D", "protocol": "reset", "parameters": {}, "preset_missing": "", "adapt_images": None, "cost_ratio": None, "shifts": [[corruption, int(severity or 0), shift]],
        "segments": [[shift, 0, "stream"]], "cells": [[0, 0, 0]], "seed": seed, "batch_size": 10, "images": size, "precision": "float32", "data": f"of {shift}",
        "asked": {"method": {"config": {}}},
    }  # fmt: skip
    trial |= {name: value for name, value in changed.items() if name in (*trial, "num_classes")}
    trial |= _setting(trial)
    key = hashlib.sha256(json.dumps([*cell, sorted(map(str, changed.items()))]).encode()).hexdigest()
    return {"key": key, **trial}


def _setting(trial: Mapping[str, Any]) -> dict[str, Any]:
    adapted = {} if trial["adapt_images"] is None else {"adapt_images": trial["adapt_images"]}
    severities = [severity] if (severity := trial["shifts"][0][1]) else []
    same = {name: trial[name] for name in ("dataset", "protocol", "batch_size", "precision")}
    values = {**same, "parameters": {**trial["parameters"], **adapted}, "severities": severities}
    setting = Setting.of(values)
    return {"setting": setting.id, "setting_values": values, "protocol_parameters": setting.told}


def ok_result(
    trial: Mapping[str, Any],
    correct: np.ndarray,
    ids: np.ndarray | None = None,
    facts: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> TrialResult:
    """A result of a planned trial, of size and shape as a real one's; see :func:`write_run`."""
    facts = facts or {}
    count, size = len(correct), trial["batch_size"]
    batch = np.arange(count, dtype=np.int32) // size
    numbers = np.unique(batch)
    [[corruption, severity, shift]] = trial["shifts"]
    place = {"position": 0, "segment": shift, "visit": 0, "role": "stream"}
    row = {
        **place, "shift": shift, "corruption": corruption, "severity": severity, "images": count,
        "correct": int(correct.sum()), "error_pct": 100.0 * float((~correct).mean()), "class_mean_error_pct": 50.0,
        "confidence_mean": 0.5, **{k: v for k, v in facts.items() if k in _OF_SHIFTS},
    }  # fmt: skip
    segment = {
        **place, "images": count, "batches": len(numbers), "images_forwarded": count, "images_backwarded": 0,
        "updates": len(numbers), "most_predicted_pct": 100.0, "step_ms_median": 5.0, "step_ms_p95": 6.0,
        "images_per_s": 100.0, "warmup_ms": None, "data_ms_median": 1.0, "peak_memory_mib": None,
        **{k: v for k, v in facts.items() if k in _OF_SEGMENTS},
    }  # fmt: skip
    per_image = {
        "shift": np.zeros(count, dtype=np.int16), "image": (np.arange(count) if ids is None else ids).astype(np.int32),
        "visit": np.zeros(count, dtype=np.int16), "graded": np.ones(count, dtype=bool),
        "batch": batch, "predicted": np.zeros(count, dtype=np.int32), "correct": correct, "confidence": np.zeros(count, np.float32),
    }  # fmt: skip
    per_batch = {
        "batch": numbers.astype(np.int64),
        "segment": np.zeros(len(numbers), dtype=np.int16),
        "images": np.bincount(batch),
        "adapted": np.ones(len(numbers), dtype=bool),
        "step_ms": np.ones(len(numbers)),
        "data_ms": np.ones(len(numbers)),
    }
    where = {
        "host": "node",
        "pid": 1,
        "device": "cpu",
        "device_name": "x86_64",
        "threads": 1,
        "torch": "2.13.0",
        "python": "3.11.7",
        **(environment or {}),
    }
    kept = {
        "batch_statistics": "", "adapted_parameters": 0, "trial_s": 1.0, "reset_keeps": "", "needs_backward": False,
        "needs_source_images": False, "needs_checkpoint": False, "checkpoint": "", "needs_min_batch": 1,
        "needs_norm_kinds": "", "needs_class_token": False, "needs_linear_head": False, "needs_packages": "", "device_share": 1.0,
        **{k: v for k, v in facts.items() if k not in (*_OF_SEGMENTS, *_OF_SHIFTS)},
    }  # fmt: skip
    return TrialResult(trial["key"], "ok", facts=kept, segments=[segment], shifts=[row], batches=per_batch,
                       images=per_image, environment=where)  # fmt: skip


_OF_SHIFTS = ("error_after_pct", "ece_pct", "nll", "calibration_gaps")
_OF_SEGMENTS = ("step_ms_median", "step_ms_p95", "images_per_s", "peak_memory_mib", "images_backwarded")


def rows_of(loaded: results.Results) -> pd.DataFrame:
    """Both tables of a run whose segments are of one shift each, side by side."""
    place = ["label", "model", "key", "position"]
    own = [*place, *(name for name in loaded.segments if name not in loaded.shifts)]
    return loaded.shifts.merge(loaded.segments[own], on=place, validate="one_to_one")


def result_rows(run: pathlib.Path) -> pd.DataFrame:
    """What of them must be equal bit for bit when the run is repeated."""
    return results.result_columns(rows_of(results.load(run)))


def reseal(record: pathlib.Path) -> None:
    """Make the checksum of an edited trial anew: it is then what another run might have written."""
    content = json.loads(record.read_text())
    checksum = records.checksum(content, record.with_suffix(".npz").read_bytes())
    record.write_text(json.dumps({**content, "checksum": checksum}))


def verdicts(error: float, images: int = 1000, first: int = 0) -> np.ndarray:
    """(images,) bool with ``error`` per cent of them wrong: those from index ``first`` on, around the end."""
    wrong = round(images * error / 100)
    correct = np.ones(images, dtype=bool)
    correct[(first + np.arange(wrong)) % images] = False
    return correct
