"""Checks of a machine before it gets a trial: code, data, weights and files as on the driver, and its image cache."""

from __future__ import annotations

import importlib.resources
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import tta_bench
from tta_bench import __version__
from tta_bench.code import file_sha256, folder_sha256
from tta_bench.data.base import CleanImages, Dataset, digest
from tta_bench.data.cache import CacheEntry, ImageCache
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.files import obstacle_to_writing
from tta_bench.models import state_sha256
from tta_bench.streams import Shift, StreamSpec
from tta_bench.suite.plan import Materials, Trial, content_of, used_images


def code_identity() -> dict[str, str]:
    """Version and digests of the installed code, which the driver and its workers must share."""
    folders = {name: pathlib.Path(str(importlib.resources.files(name))) for name in ("tta_bench", "tta_bench.methods")}
    return {"version": __version__, **{name: folder_sha256(folder) for name, folder in folders.items()}}


def code_mismatch(expected: Mapping[str, str]) -> str | None:
    """How this machine's code differs from that of a driver with the identity ``expected``, or None."""
    own = code_identity()
    if own == expected:
        return None
    mismatch = f"{socket.gethostname()} imports another tta_bench ({tta_bench.__file__}, version {own['version']})"
    return f"{mismatch}; install the driver's ({expected['version']}) on every node"


@dataclass(frozen=True)
class Requirements:
    """What a run needs on every machine.

    Attributes:
        code: code identity of the driver.
        materials: models and data.
        data: digest of the images' fingerprint, by model and shift.
        sources: digest of the source images' fingerprint, by model, for models whose trials prepare on them.
        weights: SHA-256 of the weights, by model.
        files: SHA-256 of files named in hyperparameters, by path.
        streams: a stream by model and shift, for the image cache.
    """

    code: Mapping[str, str]
    materials: Materials
    data: Mapping[tuple[str, Shift], str]
    sources: Mapping[str, str]
    weights: Mapping[str, str]
    files: Mapping[str, str]
    streams: Mapping[tuple[str, Shift], StreamSpec]


def requirements(materials: Materials, trials: Sequence[Trial]) -> Requirements:
    """The requirements of ``trials``, as found on this machine."""
    streams = {(t.model, shift.stored): t.stream for t in trials for shift in t.stream.shifts}
    data = {key: materials.contents[key] for key in streams}
    sources = {t.model: t.asked["source"] for t in trials if t.asked.get("source") is not None}
    weights = {t.model: t.asked["model"]["weights_sha256"] for t in trials}
    rows = {(t.label, t.model): t for t in trials}
    paths = {path for t in rows.values() for path in materials.config(t).files().values()}
    files = {path: file_sha256(path) for path in sorted(paths)}
    return Requirements(code_identity(), materials, data, sources, weights, files, streams)


def find_problems(needed: Requirements) -> list[str]:
    """Requirements that this machine does not meet, a sentence each."""
    if mismatch := code_mismatch(needed.code):
        return [mismatch]
    return [*_data_problems(needed), *_weight_problems(needed), *_file_problems(needed)]


def _data_problems(needed: Requirements) -> Iterator[str]:
    for model in dict.fromkeys(model for model, _ in needed.data):
        try:
            dataset = needed.materials.reopen[model]()
            digests = {shift: expected for (m, shift), expected in needed.data.items() if m == model}
            differing = [
                s.id for s, e in digests.items() if dataset.missing(s) or _content(needed, model, s, dataset) != e
            ]
            if model in needed.sources and _source_content(dataset.source) != needed.sources[model]:
                differing.append("source images")
        except (UsageError, OSError, ValueError) as error:
            yield f"data: {str(error).splitlines()[0]}"
            return
        if differing:
            more = " …" if differing[3:] else ""
            yield f"data of {dataset.title} differ from the driver's: {', '.join(differing[:3])}{more}"
            return


def _content(needed: Requirements, model: str, shift: Shift, dataset: Dataset) -> str:
    rows = used_images(dataset, shift, needed.streams[model, shift])
    return content_of(dataset, shift, rows, Digests(), needed.materials.data_code)


def _source_content(source: CleanImages | None) -> str | None:
    return None if source is None else digest(source.fingerprint(source.all_rows(), Digests()))


def _weight_problems(needed: Requirements) -> Iterator[str]:
    for model, expected in needed.weights.items():
        try:
            sha256 = state_sha256(needed.materials.models[model].load().net)
        except (UsageError, OSError) as error:
            yield f"weights of {model}: {str(error).splitlines()[0]}"
            continue
        if sha256 != expected:
            yield f"weights of {model} differ from the driver's"


def _file_problems(needed: Requirements) -> Iterator[str]:
    for path, expected in needed.files.items():
        try:
            if file_sha256(path) != expected:
                yield f"{path} differs from the driver's"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def prepare(needed: Requirements, cache: ImageCache) -> list[str]:
    """Check this machine and build its image cache; returns the problems found, a sentence each."""
    if problems := find_problems(needed):
        return problems
    cached = [(m, stream, shift) for (m, shift), stream in needed.streams.items() if shift in stream.cached]
    entries = [needed.materials.cache_entry(*each) for each in cached]
    unique = list({entry.key: entry for entry in entries}.values())
    try:
        missing = cache.to_build(unique)
        if problem := cache_space_problem(cache, missing):
            return [problem.message]
        cache.build(missing, os.cpu_count() or 1)
    except UsageError as error:
        return [str(error).splitlines()[0]]
    return []


def cache_space_problem(cache: ImageCache, missing: Sequence[CacheEntry]) -> Problem | None:
    """The problem that the image cache cannot be written, or does not fit on its disk; None where there is none."""
    if not missing or cache.root is None:
        return None
    hint = "choose another disk with --cache DIR, or --cache off to decode images on every use"
    if obstacle := obstacle_to_writing(cache.root.absolute()):
        return Problem(f"the image cache cannot be written: {obstacle}", str(cache.root), hint=hint)
    needed, free = cache.space(missing)
    if needed <= free:
        return None
    message = f"the image cache needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
    return Problem(message, where=str(cache.root), hint=hint)
