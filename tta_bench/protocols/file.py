"""File: a stream that somebody else published or recorded, batch by batch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tta_bench.protocols.base import Batches, Part, Protocol, Source, loaded, refusal
from tta_bench.protocols.config import Conflict, ProtocolConfig
from tta_bench.streams import Shift

_PER_IMAGE = ("visit", "graded")
_PER_BATCH = ("reset_before", "adapt", "segment")


class File(Protocol):
    """A recorded stream: its segments, batches and flags. The batch size and the seed change nothing."""

    name = "file"
    by_severity: ClassVar[bool] = False

    class Config(ProtocolConfig):
        """Takes no other key.

        Attributes:
            stream: an ``.npz`` of ``shift`` (N,), ids or positions among the suite's shifts; ``image`` (N,), positions in
                data order; ``bounds`` (batches + 1,), where batches start; and optionally for each batch
                ``reset_before`` (default false), ``adapt`` (true) and ``segment`` (0 at first, then the same or one more;
                one segment), for each image ``visit`` (its segment's) and ``graded`` (true).

        Example:
            {kind: file, stream: recorded.npz}
        """

        stream: str

        def conflicts(self) -> Iterator[Conflict]:
            for key in sorted(self.model_fields_set - {"kind", "stream"}):
                yield key, "is fixed by the recorded stream", "leave it out"

    def parts(self, source: Source) -> Iterator[Part]:
        arrays = _read(self.config.stream, source.shifts)
        bounds, segment = arrays["bounds"], arrays["segment"]
        edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
        names = Counter[str]()
        for first, last in itertools.pairwise(edges):
            batches, images = slice(first, last), slice(int(bounds[first]), int(bounds[last]))
            shift = arrays["shift"][images]
            name = source.shifts[shift[0]].id if len(set(shift.tolist())) == 1 else "stream"
            yield Part(
                name,
                names[name],
                shift,
                arrays["image"][images],
                visits=arrays["visit"][images] if "visit" in arrays else None,
                batches=Batches(bounds[first:last] - bounds[first], arrays["reset_before"][batches],
                                arrays["adapt"][batches], arrays["graded"][images]),
            )  # fmt: skip
            names[name] += 1


def _read(path: str, shifts: tuple[Shift, ...]) -> dict[str, np.ndarray]:
    """The arrays, checked, with their defaults; ``shift`` as positions.

    Raises:
        UsageError: there is no such file, or it is no stream of these shifts.
    """
    given = loaded("stream", path)
    wrong = _wrong(given) if isinstance(given, Mapping) else "must be an .npz"
    if wrong:
        raise refusal(
            "stream", f"{path} {wrong}", "shift, image, bounds; optional: " + ", ".join(_PER_BATCH + _PER_IMAGE)
        )
    arrays = {name: np.asarray(array) for name, array in given.items()}
    batches, images = len(arrays["bounds"]) - 1, len(arrays["image"])
    return {
        "segment": np.zeros(batches, dtype=np.int64),
        "reset_before": np.zeros(batches, dtype=bool),
        "adapt": np.ones(batches, dtype=bool),
        "graded": np.ones(images, dtype=bool),
        **arrays,
        "shift": _positions(path, arrays["shift"], shifts),
    }


def _wrong(given: Mapping[str, Any]) -> str:
    """What is wrong with the arrays; empty where nothing is."""
    required = ("shift", "image", "bounds")
    if bad := [*(n for n in required if n not in given), *sorted(set(given) - {*required, *_PER_IMAGE, *_PER_BATCH})]:
        return f"lacks {bad[0]}" if bad[0] in required else f"has an unknown array {bad[0]}"
    for name, array in given.items():
        kinds = {"shift": "iuU", "reset_before": "b", "adapt": "b", "graded": "b"}.get(name, "iu")
        if array.ndim != 1 or array.dtype.kind not in kinds:
            return f"has a wrong {name}: {array.dtype} {array.shape}"
    bounds, images = given["bounds"], len(given["image"])
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != images or (np.diff(bounds.astype(np.int64)) < 1).any():
        return f"has bounds that do not rise from 0 to its {images} images"
    lengths = dict.fromkeys(("shift", *_PER_IMAGE), images) | dict.fromkeys(_PER_BATCH, len(bounds) - 1)
    if bad := [name for name in lengths if name in given and len(given[name]) != lengths[name]]:
        return f"has {len(given[bad[0]])} values of {bad[0]} in place of {lengths[bad[0]]}"
    segment = np.asarray(given.get("segment", [0])).astype(np.int64)
    if segment[0] != 0 or not np.isin(np.diff(segment), (0, 1)).all():
        return "has segments that do not start at 0 and rise by one"
    return ""


def _positions(path: str, shift: np.ndarray, shifts: tuple[Shift, ...]) -> np.ndarray:
    """(N,) positions of shifts that a file gives as such, or as ids."""
    ids = [each.id for each in shifts]
    if shift.dtype.kind == "U":
        if unknown := sorted(set(shift.tolist()) - set(ids)):
            raise refusal(
                "stream", f"{path} has an unknown shift {unknown[0]!r}", f"the suite's shifts: {', '.join(ids)}"
            )
        return np.array([ids.index(id) for id in shift.tolist()], dtype=np.int64)
    if shift.min(initial=0) < 0 or shift.max(initial=0) >= len(ids):
        raise refusal(
            "stream", f"{path} has shifts beyond 0 to {len(ids) - 1}", f"the suite's shifts: {', '.join(ids)}"
        )
    return shift.astype(np.int64)
