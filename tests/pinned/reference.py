"""Runs of a small suite whose numbers are stored beside this file: made, read, written and compared."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import torch

import tta_bench
import tta_bench.torchvision_repair
from tta_bench.commands import run as sweep
from tta_bench.store import records, results

FOLDER = pathlib.Path(__file__).resolve().parent
COMMAND = "python tests/pinned/store.py"
RUNS: dict[str, dict[str, Any]] = {  # rows that "only" leaves out are missing, which is pinned, too
    "reset": {"sets": ["corruptions=[contrast]"], "only": ["method=source|norm|tent|eata|mgg|failing"]},
    "continual": {"sets": ["protocol={kind: continual}", "seeds=[1]"]},
    "adapt_images": {
        "sets": ["protocol={kind: reset, adapt_images: [16, all]}", "corruptions=[fog]", "seeds=[0, 1]"],
        "only": ["method=tent|mgg,model=resnet_bn|resnet_gn"],
    },
}
IMAGES = 40  # in every row, as suite.yaml says
DTYPES = {"predicted": np.uint8, "correct": np.bool_, "confidence": np.float32, "image": np.uint16}
PLACE = ["run", "protocol", "label", "model", "shift", "seed", "adapt_images"]  # names a row

# What another processor or library may move: each of these columns by so much, and nothing in any other.
TOLERANCES = {"correct": 2, "error_pct": 5.0, "class_mean_error_pct": 20.0, "error_after_pct": 8.4,
              "error_adapted_pct": 12.5, "error_skipped_pct": 8.4, "most_predicted_pct": 5.0, "confidence_mean": 0.01, "ece_pct": 7.5, "nll": 0.1,
              "images_backwarded": 4, "stat_kept": 1.4}  # fmt: skip
EQUAL_PREDICTIONS = 0.99  # at least, of all images together
CONFIDENCES = {0.5: 1e-5, 0.9: 1e-4}  # a quantile of the differences of all images: at most


@dataclass(frozen=True)
class Reference:
    """Results with what made them.

    Attributes:
        made_with: ``numerics_version``, and the hardware and libraries on which the last bits depend.
        rows: the result columns as text, which keeps every bit of a float; a row for each run, trial and shift.
        images: for each name in ``DTYPES`` an array (rows, IMAGES) in stream order; zeros where a trial is not ok.
    """

    made_with: dict[str, str | int]
    rows: pd.DataFrame
    images: dict[str, np.ndarray]

    def part(self, run: str) -> Reference:
        """The rows of one run, without the columns that are empty in it."""
        chosen = self.rows["run"].eq(run).to_numpy()
        rows = self.rows[chosen].reset_index(drop=True)
        rows = rows.loc[:, rows.ne("").any()]
        return Reference(self.made_with, rows, {name: array[chosen] for name, array in self.images.items()})


# -- making ------------------------------------------------------------------------------------------------------------


def made_with() -> dict[str, str | int]:
    """What this process makes results with."""
    libraries = ("torch", "numpy", "scipy", "pillow", "scikit-learn", "timm")
    return {
        "numerics_version": tta_bench.NUMERICS_VERSION,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": _cpu(),
        "threads": 1,
        **{name: metadata.version(name) for name in libraries},
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in said:  # a virtual machine's may be vague
            further = ("cpu family", "model", "stepping", "cache size")
            return ", ".join([said["model name"], *(f"{name} {said[name]}" for name in further if name in said)])
    return platform.processor() or platform.machine()


def make(runs: list[str], scratch: pathlib.Path) -> Reference:
    """Run some of ``RUNS`` in this process with one thread; results and image cache go into folders of ``scratch``."""
    parts = []
    for run in runs:
        out, cache = str(scratch / run), str(scratch / "cache")
        with contextlib.chdir(FOLDER):
            sweep.run(
                sweep.RunOptions("suite.yaml", executor="local", cpus_per_trial=1, out=out, cache=cache, **RUNS[run]),
                "",
            )
        parts.append(_rows(results.load(scratch / run)).assign(run=run))
    made = pd.concat(parts, ignore_index=True)
    found = [_images(scratch / row.run, row.key, row.position) for row in made.itertuples()]
    columns = ["run", *results.result_columns(made).drop(columns=["data", "classes", "family"])]
    rows = _read_rows(made[columns].to_csv(index=False))
    return Reference(made_with(), rows, {name: np.stack([images[name] for images in found]) for name in DTYPES})


def _rows(loaded: results.Results) -> pd.DataFrame:
    """Both tables side by side: each segment is of one shift."""
    place = ["label", "model", "key", "position"]
    own = [*place, *(name for name in loaded.segments if name not in loaded.shifts)]
    return loaded.shifts.merge(loaded.segments[own], on=place, validate="one_to_one")


def _read_rows(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def _images(run: pathlib.Path, key: str, position: int) -> dict[str, np.ndarray]:
    record = records.read_trial(run, key).record
    if record is None or record["status"] != "ok":
        return {name: np.zeros(IMAGES, dtype) for name, dtype in DTYPES.items()}
    arrays = results.read_arrays(run, key, lambda name: name.startswith("images/"))
    chosen = arrays["images/shift"] == position  # a shift is a segment of its own
    return {name: arrays[f"images/{name}"][chosen].astype(dtype) for name, dtype in DTYPES.items()}


# -- storing -----------------------------------------------------------------------------------------------------------


def stored() -> Reference:
    """What is in the repository."""
    with np.load(FOLDER / "images.npz", allow_pickle=False) as arrays:
        images = {name: arrays[name] for name in DTYPES}
    about = json.loads((FOLDER / "made_with.json").read_text())
    return Reference(about, _read_rows((FOLDER / "rows.csv").read_text()), images)


def store(reference: Reference) -> None:
    """Put ``reference`` in its place."""
    np.savez_compressed(FOLDER / "images.npz", **reference.images)
    reference.rows.to_csv(FOLDER / "rows.csv", index=False)
    (FOLDER / "made_with.json").write_text(json.dumps(reference.made_with, indent=1) + "\n")


# -- comparing ---------------------------------------------------------------------------------------------------------


def differences(one: Reference, other: Reference) -> list[str]:
    """Where ``other`` is not what ``one`` says, the first row first; nothing where all is well.

    They must be equal bit for bit where the same hardware and libraries made them, and within the tolerances elsewhere.
    """
    versions = [reference.made_with["numerics_version"] for reference in (one, other)]
    if versions[0] != versions[1]:
        return [f"stored with NUMERICS_VERSION {versions[0]}, this is {versions[1]}: store the numbers anew, {COMMAND}"]
    exact = one.made_with == other.made_with
    found = [*_differing_rows(one, other, exact)] or [*_differing_images(one, other, exact)]
    how = "bit for bit" if exact else "within the tolerances for another processor or other libraries"
    advice = f"compared {how}; if the change is meant, raise tta_bench.NUMERICS_VERSION and run {COMMAND}"
    return [*found, advice] if found else []


def _differing_rows(one: Reference, other: Reference, exact: bool) -> Iterator[str]:
    if list(one.rows) != list(other.rows) or len(one.rows) != len(other.rows):
        yield f"stored {one.rows.shape} rows and columns {list(one.rows)}, found {other.rows.shape}, {list(other.rows)}"
        return
    for place, (was, now) in enumerate(zip(one.rows.to_dict("records"), other.rows.to_dict("records"), strict=True)):
        for name in one.rows:
            bound = 0.0 if exact else TOLERANCES.get(name, 0.0)
            if was[name] != now[name] and not _close(was[name], now[name], bound):
                yield f"{_row(one, place)}: {name} stored {was[name]!r}, found {now[name]!r}"


def _close(was: str, now: str, bound: float) -> bool:
    return bool(bound and was and now) and abs(float(was) - float(now)) <= bound


def _row(reference: Reference, place: int) -> str:
    return ", ".join(f"{name} {value}" for name, value in reference.rows.loc[place, PLACE].items() if value)


def _differing_images(one: Reference, other: Reference, exact: bool) -> Iterator[str]:
    for name, was in one.images.items():
        now = other.images[name]
        if (exact or name == "image") and not np.array_equal(was, now):
            for row, place in np.argwhere(was != now)[:1]:
                what = f"{name} of image {one.images['image'][row, place]}"
                yield f"{_row(one, row)}: {what} stored {was[row, place]!r}, found {now[row, place]!r}"
    ok = one.rows["status"].eq("ok").to_numpy()
    equal = (one.images["predicted"] == other.images["predicted"])[ok].mean()
    if equal < EQUAL_PREDICTIONS:
        yield f"{equal:.2%} of the predictions are the stored ones, fewer than {EQUAL_PREDICTIONS:.0%}"
    moved = np.abs(one.images["confidence"] - other.images["confidence"])[ok]
    for share, bound in CONFIDENCES.items():
        if (found := np.quantile(moved, share)) > bound:
            yield f"quantile {share} of the confidences' differences from the stored ones is {found:.1e}, above {bound:.0e}"


def changes(one: Reference, other: Reference) -> str:
    """How far ``other`` is from ``one``, in a few lines."""
    if not one.rows[PLACE].equals(other.rows[PLACE]):
        return f"{len(other.rows)} rows, not those that were stored ({len(one.rows)})"
    errors = [pd.to_numeric(reference.rows["error_pct"]).fillna(0.0) for reference in (one, other)]
    error = (errors[1] - errors[0]).abs()
    confidence = np.abs(one.images["confidence"] - other.images["confidence"]).max(1)
    predicted = one.images["predicted"] != other.images["predicted"]
    lines = [f"{predicted.sum()} predictions in {predicted.any(1).sum()} of {len(one.rows)} rows changed"]
    for name, largest in (("error_pct", error.to_numpy()), ("confidence", confidence)):
        lines.append(f"largest change of {name}: {largest.max():.3g} ({_row(one, int(largest.argmax()))})")
    return "\n".join(lines)
