"""What tests of merging change in runs, and look at."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from runs import reseal

from tta_bench.store import results


def changed(run: pathlib.Path, key: str, /, **values: Any) -> None:
    """Replace values in a trial's record."""
    path = run / "trials" / f"{key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    if path.with_suffix(".npz").exists():
        reseal(path)


def repredicted(run: pathlib.Path, key: str, images: int) -> None:
    """Change the first predictions of a trial."""
    path = run / "trials" / f"{key}.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["images/predicted"][:images] += 1
    np.savez(path, **arrays)
    reseal(path.with_suffix(".json"))


def replanned(run: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((run / "plan.json").read_text())
    change(content)
    (run / "plan.json").write_text(json.dumps(content))


def keys(run: pathlib.Path, label: str) -> list[str]:
    return [t["key"] for t in results.load(run).plan["trials"] if t["label"] == label]


def record(run: pathlib.Path, key: str) -> Mapping[str, Any]:
    return json.loads((run / "trials" / f"{key}.json").read_text())  # type: ignore[no-any-return]


def frozen(*runs: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Time and size of every file below the runs."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for run in runs for p in run.rglob("*")}
