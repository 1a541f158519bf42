"""Writing the joined run: records, predictions and logs first, ``plan.json`` last."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tta_bench.files import write_atomically, write_json
from tta_bench.store import records, results, runlog
from tta_bench.store.merge.inputs import Run, Trial
from tta_bench.store.merge.records import Record


def write(target: pathlib.Path, inputs: Sequence[Run], trials: Sequence[Trial], chosen: Mapping[str, Record]) -> None:
    """Write ``chosen`` and the plan of ``trials`` below ``target``, which exists and holds no run."""
    sessions, numbers = _sessions(inputs)
    folder = target / "trials"
    folder.mkdir()
    for key, record in chosen.items():
        for name in (f"trials/{key}.npz", runlog.name(key)):
            _copy(record.run.path / name, target / name)
        session = numbers[record.run.given, record.content["session"]]
        write_json(folder / f"{key}.json", records.renumbered(record.run.path, record.content, session))
    notes = sorted({note for run in inputs for note in run.plan["notes"]})
    write_json(target / "run.json", {"schema_version": results.SCHEMA_VERSION, "sessions": sessions})
    models = {name: about for run in inputs for name, about in run.plan["models"].items()}
    write_json(target / "plan.json", {**inputs[0].plan, "notes": notes, "models": models, "trials": trials})


def _copy(file: pathlib.Path, to: pathlib.Path) -> None:
    """Copy a file atomically; nothing where there is none."""
    if file.exists():
        to.parent.mkdir(exist_ok=True)
        with open(file, "rb") as source:
            write_atomically(to, lambda stream: shutil.copyfileobj(source, stream))


def _sessions(inputs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[tuple[str, int], int]]:
    """(all sessions, each saying in ``merged_from`` what it was; the new number of each run's session)."""
    sessions: list[dict[str, Any]] = []
    numbers = {}
    for run in inputs:
        for session in run.sessions:
            numbers[run.given, session["session"]] = len(sessions)
            origin = {"run": run.path.resolve().name, "session": session["session"]}
            if "merged_from" in session:
                origin["merged_from"] = session["merged_from"]
            sessions.append({**session, "session": len(sessions), "merged_from": origin})
    return sessions, numbers
