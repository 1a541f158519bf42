"""Edits of finished runs, for tests of merging."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from runs import reseal

from tta_bench.store import documents


def edit_record(run: pathlib.Path, key: str, /, **values: Any) -> None:
    """Replace values in a trial's record."""
    path = run / "trials" / f"{key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    reseal(path)


def edit_arrays(run: pathlib.Path, key: str, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change a trial's arrays."""
    path = run / "trials" / f"{key}.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(path, **arrays)
    reseal(path.with_suffix(".json"))


def flip_predictions(run: pathlib.Path, key: str, images: int) -> None:
    """Change the first predictions of a trial."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["images/predicted"][:images] += 1

    edit_arrays(run, key, change)


def replanned(run: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a run's plan."""
    content = documents.plan(run)
    change(content)
    documents.write(run / documents.PLAN, content)


def planned(run: pathlib.Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((run / "plan.json").read_text())["trials"]
    return trials


def keys(run: pathlib.Path, label: str) -> list[str]:
    return [trial["key"] for trial in planned(run) if trial["label"] == label]


def record(run: pathlib.Path, key: str) -> Mapping[str, Any]:
    return json.loads((run / "trials" / f"{key}.json").read_text())  # type: ignore[no-any-return]


def snapshot(*runs: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Time and size of every file below the runs."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for run in runs for p in run.rglob("*")}
