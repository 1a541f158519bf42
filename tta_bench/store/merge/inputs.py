"""What a merge is given: runs' folders, opened, and refused where they are no parts of one benchmark."""

from __future__ import annotations

import json
import pathlib
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench import suite
from tta_bench.errors import Problem, UsageError
from tta_bench.setting import Setting
from tta_bench.store import records, results
from tta_bench.suite import plan as planning

Trial = Mapping[str, Any]  # a trial as plan.json has it

# what reading a torn file raises
BROKEN = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Run:
    """An input: ``given`` is how the user names it."""

    given: str
    path: pathlib.Path
    plan: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]

    @property
    def trials(self) -> Sequence[Trial]:
        return self.plan["trials"]  # type: ignore[no-any-return]


def opened(runs: Sequence[str]) -> list[Run]:
    """The runs in the order given.

    Raises:
        UsageError: fewer than two, one of them twice, or a folder that holds no whole run of this schema version.
    """
    if len(runs) < 2:
        raise UsageError(
            Problem(f"{len(runs)} runs given; merge joins two or more", hint="tta-bench merge A B --out C")
        )
    inputs = [_open(given) for given in runs]
    places = [run.path.resolve() for run in inputs]
    for run, place in zip(inputs, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(Problem("the run is given twice", run.given, hint="give each run once"))
    return inputs


def _open(given: str) -> Run:
    path = pathlib.Path(given)
    plan, sessions = _content(path / "plan.json"), _content(path / "run.json")
    return Run(given, path, plan, sessions["sessions"])


def _content(path: pathlib.Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        hint = "give folders that 'tta-bench run' printed last, copied whole"
        raise UsageError(Problem(f"not a whole run: {error}", str(path.parent), hint=hint)) from error
    if content["schema_version"] != results.SCHEMA_VERSION:
        raise UsageError(records.other_version(content["schema_version"], path))
    return content


def check_out(target: pathlib.Path, inputs: Sequence[Run]) -> None:
    """Refuse a folder that holds a run: nothing is ever written over one.

    Raises:
        UsageError: ``target`` is one of ``inputs``, or holds a run or a part of one.
    """
    if any(run.path.resolve() == target.resolve() for run in inputs):
        what = "--out is one of the runs to merge, which are left as they are"
        raise UsageError(Problem(what, str(target), hint="choose a new folder with --out DIR"))
    if any((target / name).exists() for name in ("plan.json", "run.json", "trials")):
        what = "--out holds a run, or a part of one"
        raise UsageError(Problem(what, str(target), hint="choose a new folder with --out DIR, or remove that one"))


def winning(keep: str | None, inputs: Sequence[Run]) -> Run | None:
    """The run that ``--keep`` names: as it was given, by its place, or by its folder's name where one has it.

    Raises:
        UsageError: it names none of them, or several.
    """
    if keep is None:
        return None
    place = pathlib.Path(keep).resolve()
    found = [run for run in inputs if run.path.resolve() == place]
    found = found or [run for run in inputs if run.path.resolve().name == keep]
    if len(found) != 1:
        what = "names several of the runs" if found else "is none of the runs"
        raise UsageError(Problem(f"--keep {keep} {what}", hint="one of: " + ", ".join(run.given for run in inputs)))
    return found[0]


def check_alike(inputs: Sequence[Run]) -> None:
    """Refuse runs that are no parts of one benchmark: their cells would stand in one table and mean different things.

    Raises:
        UsageError: with every way in which a run differs from the first.
    """
    first, problems = inputs[0], []
    for run in inputs[1:]:
        ours, theirs = _setting(first), _setting(run)
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name]:
                what = f"{name} is {_shown(theirs[name])}, and {_shown(ours[name])} in {first.given}"
                problems.append(Problem(what, run.given, hint="merge runs of one suite, of the same images"))
    if problems:
        raise UsageError(sorted(problems, key=str))


def _setting(run: Run) -> dict[str, Any]:
    """What a benchmark's tables take for granted, by name."""
    counts = [count for t in run.trials if (count := t["adapt_images"]) is not None]
    return {
        "suite": [run.plan["suite"]],
        "all_images (no --limit)": [run.plan["all_images"]],
        "the number of images": sorted({t["images"] for t in run.trials}),
        "batch_size": sorted({t["batch_size"] for t in run.trials}),
        "precision": sorted({t["precision"] for t in run.trials}),
        "protocol": sorted({_protocol(t) for t in run.trials}),
        "the largest adapt_images": [max(counts, default="all")],  # error_after_pct is over the images after it
        "numerics_version": [run.plan["numerics_version"]],
        **{f"the weights of {model}": [about["weights_sha256"][:16]] for model, about in run.plan["models"].items()},
        **{f"the data of {model}": sorted(names) for model, names in _datasets(run).items()},
    }


def _protocol(trial: Trial) -> str:
    """The protocol in words, but for the number of images adapted on, which runs may divide among them."""
    setting = Setting.of(trial["setting_values"]).without("adapt_images")
    return f"{setting.protocol}, {setting.told}" if setting.told else setting.protocol


def _datasets(run: Run) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for trial in run.trials:
        names.setdefault(trial["model"], set()).add(trial["dataset"])
    return names


def _shown(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def planned(name: str, first: Run) -> Run:
    """The suite as a run without results, planned anew over as many images as the first run had.

    Raises:
        UsageError: the suite cannot be planned here.
    """
    made = planning.make(suite.load(name), None if first.plan["all_images"] else max(t["images"] for t in first.trials))
    with tempfile.TemporaryDirectory() as folder:  # through the one place that knows how plan.json says it
        results.write_plan(pathlib.Path(folder), made)
        return Run(f"--suite {name}", pathlib.Path(folder), _content(pathlib.Path(folder) / "plan.json"), [])
