"""What a machine must have before it gets a trial: the driver's code, data, weights and files; and its image cache."""

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
from tta_bench.models import state_sha256
from tta_bench.streams import Shift, StreamSpec
from tta_bench.suite.plan import Materials, Trial, content_of, used_images


def identity() -> dict[str, str]:
    """What the driver and its workers must agree on: the code that runs, wherever each of them found it."""
    folders = {name: pathlib.Path(str(importlib.resources.files(name))) for name in ("tta_bench", "tta_bench.methods")}
    return {"version": __version__, **{name: folder_sha256(folder) for name, folder in folders.items()}}


def other_code(expected: Mapping[str, str]) -> str:
    """Why this process must not run trials for a driver with the identity ``expected``; empty where it may."""
    found = identity()
    if found == expected:
        return ""
    what = f"{socket.gethostname()} imports another tta_bench ({tta_bench.__file__}, version {found['version']})"
    return f"{what}; install the driver's ({expected['version']}) on every node"


@dataclass(frozen=True)
class Requirements:
    """What a run needs on every machine.

    Attributes:
        code: the driver's identity.
        materials: models and data.
        data: for each model and shift, the digest of the images' fingerprint.
        sources: for each model whose trials prepare on source images, the digest of their fingerprint.
        weights: for each model, the SHA-256 of its weights.
        files: files that hyperparameters name, with their SHA-256.
        streams: one stream for each model and shift, for the image cache.
    """

    code: Mapping[str, str]
    materials: Materials
    data: Mapping[tuple[str, Shift], str]
    sources: Mapping[str, str]
    weights: Mapping[str, str]
    files: Mapping[str, str]
    streams: Mapping[tuple[str, Shift], StreamSpec]


def requirements(materials: Materials, trials: Sequence[Trial]) -> Requirements:
    """What ``trials`` need, as it is on this machine."""
    streams = {(t.model, shift): t.stream for t in trials for shift in t.stream.shifts}
    data = {place: materials.contents[place] for place in streams}
    sources = {t.model: t.asked["source"] for t in trials if t.asked.get("source") is not None}
    weights = {t.model: t.asked["model"]["weights_sha256"] for t in trials}
    rows = {(t.label, t.model): t for t in trials}
    named = {path for t in rows.values() for path in materials.config(t).files().values()}
    files = {path: file_sha256(path) for path in sorted(named)}
    return Requirements(identity(), materials, data, sources, weights, files, streams)


def lacking(needed: Requirements) -> list[str]:
    """What this machine lacks, a sentence each; empty where trials may run here."""
    if wrong := other_code(needed.code):
        return [wrong]
    return [*_data(needed), *_weights(needed), *_files(needed)]


def _data(needed: Requirements) -> Iterator[str]:
    for model in dict.fromkeys(model for model, _ in needed.data):
        try:
            dataset = needed.materials.reopen[model]()
            asked = {shift: expected for (m, shift), expected in needed.data.items() if m == model}
            wrong = [s.id for s, e in asked.items() if dataset.missing(s) or _content(needed, model, s, dataset) != e]
            if model in needed.sources and _source_content(dataset.source) != needed.sources[model]:
                wrong.append("source images")
        except (UsageError, OSError, ValueError) as error:
            yield f"data: {str(error).splitlines()[0]}"
            return
        if wrong:
            yield f"data of {dataset.title} differ from the driver's: {', '.join(wrong[:3])}" + (
                " …" if wrong[3:] else ""
            )
            return


def _content(needed: Requirements, model: str, shift: Shift, dataset: Dataset) -> str:
    rows = used_images(dataset, shift, needed.streams[model, shift])
    return content_of(dataset, shift, rows, Digests(), needed.materials.data_code)


def _source_content(source: CleanImages | None) -> str | None:
    return None if source is None else digest(source.fingerprint(source.all_rows(), Digests()))


def _weights(needed: Requirements) -> Iterator[str]:
    for model, expected in needed.weights.items():
        try:
            found = state_sha256(needed.materials.models[model].load().net)
        except (UsageError, OSError) as error:
            yield f"weights of {model}: {str(error).splitlines()[0]}"
            continue
        if found != expected:
            yield f"weights of {model} differ from the driver's"


def _files(needed: Requirements) -> Iterator[str]:
    for path, expected in needed.files.items():
        try:
            if file_sha256(path) != expected:
                yield f"{path} differs from the driver's"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def prepare(needed: Requirements, cache: ImageCache) -> list[str]:
    """Check this machine and make its image cache; what it lacks, a sentence each."""
    if wrong := lacking(needed):
        return wrong
    entries = [needed.materials.cache_entry(model, stream, shift) for (model, shift), stream in needed.streams.items()]
    unique = list({entry.key: entry for entry in entries}.values())
    try:
        missing = cache.to_build(unique)
        if missing and (problem := no_room(cache, missing)):
            return [problem.message]
        cache.build(missing, os.cpu_count() or 1)
    except UsageError as error:
        return [str(error).splitlines()[0]]
    return []


def no_room(cache: ImageCache, missing: Sequence[CacheEntry]) -> Problem | None:
    """A problem where the image cache does not fit."""
    if not missing:
        return None
    needed, free = cache.space(missing)
    if needed <= free:
        return None
    what = f"the image cache needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
    hint = "choose another disk with --cache DIR, or --cache off to decode images whenever they are used"
    return Problem(what, where=str(cache.root), hint=hint)
