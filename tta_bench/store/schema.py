"""The schema of results: every fact that is saved of a trial, with its type, kind and meaning.

The columns of the tables, the checks of what is read and the tables in ``docs/results.md`` come from the classes below;
``python -m tta_bench.store.schema`` prints the latter. A number's unit is in its name or its meaning. Statistics of a
method's own, ``stat_…``, may stand beside the facts of a segment and the arrays of batches.

A fact with a default is optional; all others are in the record of every trial that is ok.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from tta_bench.precision import Mode

Kind = Literal["key", "result", "cost", "origin"]
KINDS: dict[Kind, str] = {
    "key": "what was asked",
    "result": "equal bit for bit when a trial is run again on one kind of device with one thread count",
    "cost": "times and memory",
    "origin": "where the number comes from",
}
STATISTIC = "stat_"  # begins the name of a method's own statistics
_REQUIRED: Any = dataclasses.MISSING


def fact(kind: Kind, meaning: str, *, default: Any = _REQUIRED, column: bool = True, dtype: str = "") -> Any:
    """A field of a class below.

    Args:
        kind: one of ``KINDS``.
        meaning: in one sentence, with the unit where the name has none.
        default: where the record may lack it.
        column: whether a table has it.
        dtype: of an array.
    """
    return dataclasses.field(
        default=default, metadata={"kind": kind, "meaning": meaning, "column": column, "dtype": dtype}
    )


# -- what was asked ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial as ``plan.json`` has it."""

    label: str = fact("key", "the method's row in tables")
    method: str = fact("key", "registered name of the method")
    variant: str = fact("key", "official (as published code computes) or paper, where the two differ")
    preset: str = fact("key", "published hyperparameters that it started from; empty: the Config's defaults")
    model: str = fact("key", "source model")
    dataset: str = fact("key", "data set; generated corruptions say so")
    protocol: str = fact("key", "the rule that made the stream: reset (before every shift), continual, …")
    protocol_parameters: str = fact("key", "its parameters other than the defaults")
    setting: str = fact("key", "what must agree for two numbers to stand in one table; equal where all of it is")
    adapt_images: int | None = fact(
        "key", "images of a segment adapted on; the rest meets the frozen state; empty for all"
    )
    cost_ratio: float | None = fact(
        "key",
        "time of an adapting step relative to a plain forward pass that the stream follows, measured or given; empty "
        "without one, or with a list",
    )
    seed: int = fact("key", "trial seed")
    batch_size: int = fact("key", "nominal batch size")
    precision: str = fact("key", "in which the network computes: float32, tf32, bfloat16, float64")
    compile: str = fact("key", "on: passes through the network were to be compiled", default="off")
    deterministic: bool = fact(
        "key", "convolutions and float32 attention use deterministic algorithms alone", default=True
    )
    data: str = fact("key", "fingerprint of the images: rows are compared only where it is the same")
    classes: int | None = fact(
        "key", "classes that the network tells apart under a class mask; empty for all of its own", default=None
    )
    preset_missing: str = fact("origin", "the preset that the model names and the method lacks: its defaults were used")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentPlace:
    """A segment's position in its trial."""

    position: int = fact("key", "number of the segment in its trial, from 0")
    segment: str = fact("key", "name of the segment, a run of batches: its shift, or mixed, …")
    visit: int = fact("key", "how many earlier segments of the trial have the same name")
    role: str = fact("key", "stream, or probe: how well an earlier shift is still recognised")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftPlace:
    """The position of graded images in their trial."""

    position: int = fact("key", "number of the segment in its trial, from 0")
    segment: str = fact("key", "name of the segment, a run of batches: its shift, or mixed, …")
    visit: int = fact("key", "how often the shift was entered before, as the protocol counts it")
    role: str = fact("key", "stream, or probe: how well an earlier shift is still recognised")
    shift: str = fact("key", "corruption and severity; or clean, a natural variant, a domain")
    corruption: str = fact("key", "corruption, natural variant, domain, or clean")
    family: str = fact("key", "what a mean is over: corruption, natural, domain, …; or clean, compound", default="")
    severity: int = fact("key", "1 to 5; of shifts without one 0")


# -- results of a trial -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended."""

    status: str = fact("result", "ok, failed, skipped, or missing (not run yet)")
    reason: str = fact("result", "why it is not ok")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Which record a row is from."""

    session: int = fact("origin", "session in run.json that ran it")
    key: str = fact("origin", "the trial's key: SHA-256 of all that was asked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(SegmentPlace):
    """A segment, of one or several shifts."""

    images: int = fact("result", "images graded in the segment")
    batches: int = fact("result", "batches in the segment")
    images_forwarded: int = fact("result", "images that entered the network, counted at its stem")
    images_backwarded: int | None = fact(
        "result",
        "images that a gradient came back for (that entered a loss), counted at the classifier; empty where the network "
        "has none that it calls",
    )
    updates: int = fact("result", "optimizer steps taken")
    most_predicted_pct: float | None = fact(
        "result", "share of the class that is predicted most, per cent of the images predicted: 100 after a collapse"
    )
    step_ms_median: float | None = fact("cost", "median time of a batch's step, warm-up batches apart, ms")
    step_ms_p95: float | None = fact("cost", "95th percentile of the same, ms")
    images_per_s: float | None = fact("cost", "images per second of step time, warm-up batches apart")
    warmup_ms: float | None = fact("cost", "time of the trial's first batches, ms")
    data_ms_median: float = fact("cost", "median time to load a batch, ms")
    peak_memory_mib: float | None = fact("cost", "peak device memory, MiB; empty on the CPU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(ShiftPlace):
    """Graded images of one segment, shift and visit."""

    images: int = fact("result", "images graded")
    distinct_images: int | None = fact("result", "of these, distinct ones, where images repeat", default=None)
    correct: int = fact("result", "images classified correctly, without those that count at chance")
    error_pct: float = fact(
        "result", "share of images classified wrongly, per cent; one that counts at chance is 1 − 1/C wrong"
    )
    class_mean_error_pct: float = fact("result", "mean over the classes that occur of a class's error, per cent")
    error_after_pct: float | None = fact(
        "result", "error over the images of the segment after the suite's largest adapt_images, per cent", default=None
    )
    images_adapted: int | None = fact(
        "result", "images in batches that were adapted on, where a segment has others, too", default=None
    )
    error_adapted_pct: float | None = fact("result", "error over those, per cent", default=None)
    images_skipped: int | None = fact(
        "result",
        "images in batches that were only predicted, or count at chance, where a segment has others, too",
        default=None,
    )
    error_skipped_pct: float | None = fact("result", "error over those, per cent", default=None)
    confidence_mean: float = fact("result", "mean probability of the predicted class")
    ece_pct: float | None = fact(
        "result",
        "expected calibration error, per cent: over 15 equally wide bins (a, b] of the predicted class's probability, the "
        "mean distance of accuracy from mean probability, weighted by images",
        default=None,
    )
    nll: float | None = fact(
        "result",
        "negative log-likelihood: mean of −log of the label's probability, which counts as 1e-12 where it is less, nats",
        default=None,
    )
    calibration_gaps: list[float] | None = fact(
        "result",
        "of each of the 15 bins, the sum of correctness minus probability: those of several rows add up to the gaps of "
        "their images together, whose ECE is 100 times the sum of absolute gaps over the number of images",
        default=None,
        column=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A trial as a whole; tables repeat it for each of its segments."""

    batch_statistics: str = fact(
        "result", "BatchNorm uses the batch's own statistics: per-batch, or per-image at batch 1"
    )
    adapted_parameters: int = fact("result", "scalars that require a gradient after setup")
    prepare_images_forwarded: int | None = fact("result", "images forwarded by prepare()", default=None)
    prepare_images_backwarded: int | None = fact("result", "images backwarded by prepare()", default=None)
    prepare_s: float | None = fact("cost", "time of prepare() in the run that made its result, s", default=None)
    trial_s: float = fact("cost", "wall time of the whole trial, s")
    compile_s: float | None = fact(
        "cost",
        "time of the batches in which passes were compiled, s; of other times only trial_s has them",
        default=None,
    )
    not_compiled: str | None = fact(
        "cost", "why passes ran as written though compile is on, by pass; empty where all were compiled", default=None
    )
    device_held_mib: float | None = fact(
        "cost",
        "device memory that torch held for the trial's process at its end, in use or not, MiB; empty on the CPU",
        default=None,
    )
    source_images: int | None = fact("origin", "clean unlabelled source images that the method saw", default=None)
    reset_keeps: str = fact("origin", "state that the published reset() leaves alone")
    needs_backward: bool = fact("origin", "the method takes backward passes")
    needs_source_images: bool = fact("origin", "it sees source images")
    needs_checkpoint: bool = fact("origin", "it needs a learned checkpoint")
    checkpoint: str = fact(
        "origin", "where that checkpoint comes from, and whether it was made for another source model"
    )
    needs_min_batch: int = fact("origin", "smallest batch it adapts on")
    needs_norm_kinds: str = fact("origin", "normalisation layers of which it needs one")
    needs_class_token: bool = fact("origin", "it needs a transformer with a class token")
    needs_linear_head: bool = fact("origin", "it needs a linear classifier")
    needs_packages: str = fact("origin", "packages that it needs")
    attempts: int | None = fact("origin", "how often it was tried; each fault before is in its log", default=None)
    faults: list[str] | None = fact("origin", "what went wrong before, a text each", default=None, column=False)
    failure: str | None = fact(
        "origin", "whose fault a failure was: method, memory, timeout or infrastructure", default=None, column=False
    )
    global_changes: str | None = fact(
        "origin",
        "what the method changed that others share (torch's switches and functions, …); its process ended for it",
        default=None,
    )
    device_share: float | None = fact(
        "origin", "part of the device that it had; below 1 its times are not its own", default=None
    )
    device_others_mib: float | None = fact(
        "origin",
        "memory of the GPU in use when the method was set up, but for what torch held for it, MiB: its process's own CUDA "
        "context, about 500, and other processes; empty on the CPU",
        default=None,
    )
    load_start: float | None = fact(
        "origin",
        "running and waiting processes of the machine for each CPU, mean of the minute before the trial; empty where the "
        "system does not tell",
        default=None,
    )
    load_end: float | None = fact(
        "origin", "the same before its end; well above 1 its times are too long", default=None
    )
    log: str | None = fact("origin", "its output, a file below the run's folder", default=None)
    images_not_kept: int | None = fact(
        "origin", "images of a stream too long for arrays images/… (the suite's per_image)", default=None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a trial ran."""

    host: str = fact("origin", "machine")
    pid: int = fact("origin", "process", column=False)
    device: str = fact("origin", "cpu or cuda")
    device_name: str = fact("origin", "model of the device")
    threads: int = fact("origin", "CPU threads of torch")
    torch: str = fact("origin", "torch's version")
    python: str = fact("origin", "Python's version", column=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record(Ending, Origin):
    """``trials/<key>.json``."""

    traceback: str = fact("origin", "where a method failed")
    facts: dict = fact("origin", "of the trial as a whole")
    segments: list = fact("origin", "a mapping for each segment")
    shifts: list = fact("origin", "a mapping for each segment, shift and visit")
    environment: dict = fact("origin", "where it ran")
    schema_version: int = fact("origin", "of both files")
    asked: dict = fact("origin", "all that the key is the digest of")
    checksum: str = fact("origin", "SHA-256 over both files")


# -- arrays ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """``batches/…`` in ``trials/<key>.npz``: an element for each batch."""

    batch: np.ndarray = fact("key", "number of the batch in the stream, from 0", dtype="int64")
    segment: np.ndarray = fact("key", "position of its segment", dtype="int16")
    images: np.ndarray = fact("result", "images in the batch, graded or not", dtype="int64")
    adapted: np.ndarray = fact("result", "the method adapted on it; else it was predicted or skipped", dtype="bool")
    step_ms: np.ndarray = fact("cost", "time of its step, ms", dtype="float64")
    data_ms: np.ndarray = fact("cost", "time spent waiting for its images, ms", dtype="float64")
    images_graded: np.ndarray | None = fact(
        "result",
        "images graded in the batch, where there are no arrays images/…",
        default=None,
        dtype="int64",
        column=False,
    )
    images_correct: np.ndarray | None = fact(
        "result",
        "of those, classified correctly; one that counts at chance is 1/C",
        default=None,
        dtype="float64",
        column=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """``images/…`` in ``trials/<key>.npz``: an element for each image in stream order."""

    shift: np.ndarray = fact("key", "position of its shift among those of the trial in plan.json", dtype="int16")
    visit: np.ndarray = fact("key", "how often that shift was entered before", dtype="int16")
    image: np.ndarray = fact("key", "number of the image in the data set", dtype="int32")
    batch: np.ndarray = fact("key", "number of its batch", dtype="int32")
    graded: np.ndarray = fact("key", "it counts; else it is only context for others", dtype="bool")
    predicted: np.ndarray = fact("result", "class; −C where the image was shown to no network and counts at chance, 1/C",
                                 dtype="int32")  # fmt: skip
    correct: np.ndarray = fact("result", "whether that is its label", dtype="bool")
    confidence: np.ndarray = fact("result", "probability of that class", dtype="float32")
    nll: np.ndarray | None = fact(
        "result",
        "−log of the label's probability, which counts as 1e-12 where it is less, nats; log C at chance",
        default=None,
        dtype="float32",
    )


# -- tables ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """What the table ``batches`` adds: the online curve, which begins anew in each segment."""

    images_graded: int = fact("result", "images in the batch that are graded", dtype="int64")
    error_pct: float = fact("result", "error of those, per cent; empty where there are none")
    images_seen: int = fact("result", "images graded in the segment so far", dtype="int64")
    running_error_pct: float = fact("result", "error of those, per cent")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        kind: one of ``KINDS``.
        meaning: in one sentence.
        dtype: pandas' name; integers and booleans may be missing.
    """

    name: str
    kind: Kind
    meaning: str
    dtype: str


_DTYPES = {str: "object", int: "Int64", float: "float64", bool: "boolean"}


@functools.cache
def types_of(owner: type) -> dict[str, tuple[type, bool]]:
    """Each fact of a class with its type and whether it may be None."""
    declared = {}
    for name, hint in typing.get_type_hints(owner).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        declared[name] = (options[0], type(None) in options)
    return declared


def _columns(*owners: type) -> tuple[Column, ...]:
    """The columns of several classes, by kind."""
    columns = [
        _column(owner, field) for owner in owners for field in dataclasses.fields(owner) if field.metadata["column"]
    ]
    return tuple(sorted(columns, key=lambda column: list(KINDS).index(column.kind)))


def _column(owner: type, field: dataclasses.Field) -> Column:
    dtype = field.metadata["dtype"] or _DTYPES[types_of(owner)[field.name][0]]
    return Column(field.name, field.metadata["kind"], field.metadata["meaning"], dtype)


SEGMENTS = _columns(Asked, Ending, Segment, Facts, Environment, Origin)
SHIFTS = _columns(Asked, Ending, Shift, Origin)
_OF_SETTING = ("protocol", "protocol_parameters", "setting", "adapt_images", "batch_size", *vars(Mode()))
_PLACE = ("label", "model", *_OF_SETTING, "seed", "position", "segment", "visit")
BATCHES = (
    *(column for column in SEGMENTS if column.name in _PLACE),
    *(column for column in _columns(Batches, Curve) if column.name != "segment"),
    SEGMENTS[-1],  # the key
)
TABLES = {"segments": SEGMENTS, "shifts": SHIFTS, "batches": BATCHES}


# -- checks ------------------------------------------------------------------------------------------------------------


def faults(record: Mapping[str, Any]) -> Iterator[str]:
    """A message for each fact of a record that is unknown, missing, of another type, or no per cent from 0 to 100.

    A trial that is not ok may lack facts.
    """
    wrong = [*_faults(Record, record, "")]
    yield from wrong
    if wrong:
        return
    whole = record["status"] == "ok"
    yield from _faults(Facts, record["facts"], "facts.", whole)
    yield from _faults(Environment, record["environment"], "environment.", whole)
    yield from row_faults(record["segments"], record["shifts"], whole)


def fact_faults(owner: type, facts: Any) -> Iterator[str]:
    """A message for each wrong fact; facts may be missing."""
    yield from _faults(owner, facts, "", whole=False)


def row_faults(segments: Iterable[Any], shifts: Iterable[Any], whole: bool = True) -> Iterator[str]:
    """A message for each wrong fact in a trial's rows; unless it is ``whole``, facts may be missing."""
    for name, owner, rows in (("segments", Segment, segments), ("shifts", Shift, shifts)):
        for number, row in enumerate(rows):
            yield from _faults(owner, row, f"{name}[{number}].", whole)


def fitting(owner: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that fit the schema."""
    return {name: value for name, value in facts.items() if not [*fact_faults(owner, {name: value})]}


def _faults(owner: type, facts: Any, where: str, whole: bool = True) -> Iterator[str]:
    if not isinstance(facts, Mapping):
        yield f"{where.rstrip('.')} is no mapping"
        return
    known = types_of(owner)
    for name, value in facts.items():
        if name in known:
            if not _fits(value, *known[name]):
                yield f"{where}{name} is {_shown(value)}, no {known[name][0].__name__}"
            elif name.endswith("_pct") and value is not None and not 0 <= value <= 100:
                yield f"{where}{name} is {_shown(value)}, not between 0 and 100"
        elif not (owner is Segment and name.startswith(STATISTIC) and _fits(value, float, True)):
            yield f"unknown fact {where}{name}"
    if whole:
        yield from (f"no {where}{name}" for name in _required(owner) if name not in facts)


def _fits(value: Any, kind: type, optional: bool) -> bool:
    if value is None:
        return optional
    if typing.get_origin(kind) is list:
        [element] = typing.get_args(kind)
        return type(value) is list and all(_fits(item, element, False) for item in value)
    if type(value) is int:
        return kind in (int, float) and -(2**63) <= value < 2**63
    return isinstance(value, float) if kind is float else type(value) is kind  # NumPy's is a float, too


def _shown(value: Any) -> str:
    """A value for a message. It may come from a method: its text may be long, or fail."""
    try:
        return f"{value!r:.100}"
    except Exception:
        return f"an object of {type(value).__name__}"


@functools.cache
def _required(owner: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(owner) if field.default is dataclasses.MISSING)


def array_faults(arrays: Mapping[str, np.ndarray], wanted: Callable[[str], bool]) -> Iterator[str]:
    """A message for each array that is unknown, of another type, or ``wanted`` and missing.

    Batches have ``images_graded`` and ``images_correct`` where there are no arrays of images, of which earlier folders
    lack one.
    """
    for name, array in arrays.items():
        if name in _ARRAYS:
            if array.dtype != _ARRAYS[name]:
                yield f"{name} is of {array.dtype}, not of {_ARRAYS[name]}"
        elif not name.startswith(f"batches/{STATISTIC}"):
            yield f"unknown array {name}"
        elif array.dtype.kind not in "biuf":
            yield f"{name} is of {array.dtype}, not of numbers"
    absent = _OF_LONG if not _OF_LONG & arrays.keys() else {name for name in _ARRAYS if name.startswith("images/")}
    known = arrays.keys() | absent | _LATER
    yield from (f"no array {name}" for name in _ARRAYS if wanted(name) and name not in known)


_LATER = {"images/nll"}
_OF_LONG = {"batches/images_graded", "batches/images_correct"}
_ARRAYS = {
    f"{group}/{field.name}": np.dtype(field.metadata["dtype"])
    for group, owner in (("batches", Batches), ("images", Images))
    for field in dataclasses.fields(owner)
}


# -- documentation -----------------------------------------------------------------------------------------------------


def markdown() -> str:
    """The lists in ``docs/results.md``: columns of the three tables, facts that are in no table, and arrays."""
    parts = [_listed(f"Table `{name}`", columns) for name, columns in TABLES.items()]
    parts.append(_listed("Only in `trials/<key>.json`", [*_hidden(Record, Shift, Facts, Environment)]))
    for group, owner in (("batches", Batches), ("images", Images)):
        columns = [_column(owner, field)._replace(name=f"{group}/{field.name}") for field in dataclasses.fields(owner)]
        parts.append(_listed(f"Arrays `{group}/…` in `trials/<key>.npz`", columns))
    return "\n".join(parts)


def _hidden(*owners: type) -> Iterator[Column]:
    """Facts that no table has."""
    shown = {column.name for columns in TABLES.values() for column in columns}
    for owner in owners:
        for field in dataclasses.fields(owner):
            if field.name not in shown:
                yield Column(field.name, field.metadata["kind"], field.metadata["meaning"], _name(owner, field.name))


def _name(owner: type, fact: str) -> str:
    return types_of(owner)[fact][0].__name__


def _listed(title: str, columns: Iterable[Column]) -> str:
    rows = [f"| `{c.name}` | {c.kind} | {c.dtype} | {c.meaning} |" for c in columns]
    return "\n".join([f"### {title}", "", "| name | kind | type | meaning |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(markdown())
