"""Parts to a stream: probes are put in, batches are cut, flags are set. It is the same for all protocols."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tta_bench.protocols.base import Batches, Part, Protocol, Source, refusal
from tta_bench.protocols.checks import check_parts, check_source
from tta_bench.protocols.config import LONGEST, MEASURE, AdaptRule, ProtocolConfig, ResetEvery
from tta_bench.registry import PROTOCOLS, attributed
from tta_bench.streams import Segment, Stream

_PROBE = "probe"


@dataclass(frozen=True)
class _Placed:
    """A part of the stream with its batches; ``role`` as a segment has it."""

    part: Part
    role: str
    batches: Batches


def assembled(protocol: Protocol, source: Source, graded_after: int | None = None) -> Stream:
    """The whole stream of a protocol.

    Args:
        protocol: with single values only in its Config.
        source: what it is made from, the probe's shift among the others.
        graded_after: as in :class:`tta_bench.streams.StreamSpec`.

    Raises:
        UsageError: the protocol's rule cannot be followed, gives no image, or gives what is no part of these shifts.
    """
    check_source(source)
    config = protocol.config
    if config.window and source.batch_size > 1:
        raise refusal("window", f"needs batches of 1, not of {source.batch_size}", "write batch_size: 1")
    placed = list(_cut(config, source, _parts(protocol, source)))
    parts, batches = [p.part for p in placed], [p.batches for p in placed]
    firsts = np.cumsum([0, *(len(b.starts) for b in batches)])
    offsets = np.cumsum([0, *(len(part.image) for part in parts)])
    starts = [b.starts + offset for b, offset in zip(batches, offsets[:-1], strict=True)]
    graded = np.concatenate([b.graded for b in batches])
    stream = Stream(
        shifts=parts[0].compounds or source.shifts,
        shift=np.concatenate([part.shift for part in parts]).astype(np.int16, copy=False),
        image=np.concatenate([part.image for part in parts]).astype(np.int32, copy=False),
        bounds=np.concatenate([*starts, offsets[-1:]]).astype(np.int64, copy=False),
        reset_before=np.concatenate([b.reset_before for b in batches]),
        adapt=np.concatenate([b.adapt for b in batches]),
        segments=tuple(
            Segment(p.part.name, p.part.visit, int(first), int(last), p.role)
            for p, (first, last) in zip(placed, itertools.pairwise(firsts), strict=True)
        ),
        graded_after=graded_after,
        visits=_visits(parts),
        grades=None if graded.all() else graded,
    )
    stream = _windowed(stream, config.window) if config.window else stream
    return replace(stream, reset_before=_resets(protocol.reset, stream))


def _visits(parts: Sequence[Part]) -> np.ndarray | None:
    if all(part.visits is None for part in parts):
        return None
    visits = [np.full(len(p.image), p.visit) if p.visits is None else p.visits for p in parts]
    return np.concatenate(visits).astype(np.int16, copy=False)


# -- parts and probes --------------------------------------------------------------------------------------------------


def _parts(protocol: Protocol, source: Source) -> Iterator[tuple[Part, str]]:
    """Parts and their roles, each part followed by its probe; ``shift`` in positions of the whole source."""
    config, kind = protocol.config, protocol.config.kind
    order, probe = _shift_order(config, source)
    own = replace(
        source,
        shifts=tuple(source.shifts[number] for number in order),
        labels=[source.labels[number] for number in order],
        probe=None if probe is None else source.labels[probe],
    )
    with attributed(PROTOCOLS, kind, type(protocol), "make its stream"):
        parts = list(_bounded(protocol.parts(own)))
    check_parts(protocol, parts, own)
    for visit, part in enumerate(parts):
        yield part if part.compounds else replace(part, shift=np.array(order)[part.shift]), "stream"
        if probe is not None:
            shown = protocol.probe(
                replace(source, shifts=(source.shifts[probe],), labels=[source.labels[probe]]), visit
            )
            yield replace(shown, shift=np.full(len(shown.image), probe)), _PROBE


def _bounded(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts, up to as many images as a stream may have.

    Raises:
        UsageError: there are more.
    """
    images = 0
    for part in parts:
        images += len(part.image) if isinstance(part, Part) else 0  # what else it may be is refused later
        if images > LONGEST:
            raise refusal(
                "kind", f"the stream has more than {LONGEST:,} images", "use fewer images, or repeat them less"
            )
        yield part


def _shift_order(config: ProtocolConfig, source: Source) -> tuple[list[int], int | None]:
    """Positions of the shifts that the protocol itself gets, and of the probe's."""
    ids = [shift.id for shift in source.shifts]
    probe = None
    if config.probe is not None:
        if config.probe.shift not in ids:
            raise refusal(
                "probe.shift", f"there is no shift {config.probe.shift!r}", f"the shifts are: {', '.join(ids)}"
            )
        probe = ids.index(config.probe.shift)
    order = [number for number in range(len(ids)) if number != probe]
    if not order:
        raise refusal("probe.shift", f"{ids[0]} is the only shift", "add corruptions to the suite")
    if config.shift_order == "seed":
        order = [order[k] for k in source.rng("shift_order").permutation(len(order))]
    return order, probe


# -- batches and adaptation --------------------------------------------------------------------------------------------


def _cut(config: ProtocolConfig, source: Source, parts: Iterator[tuple[Part, str]]) -> Iterator[_Placed]:
    """Batches from each part's start, with their adaptation flags."""
    [rule], adapts = config.adapt, _adaptation(config)
    head_of = _head(rule, source) if rule and rule.classes else None
    for part, role in parts:
        head = None
        if head_of is not None and role != _PROBE:
            in_head = head_of(part)
            head, part = int(in_head.sum()), part[np.argsort(~in_head, kind="stable")]
        size, edge = len(part.image), head or 0
        starts = np.concatenate([np.arange(0, edge, source.batch_size), np.arange(edge, size, source.batch_size)])
        if role == _PROBE:
            adapt = np.full(len(starts), config.probe is not None and config.probe.adapt)
        else:
            adapt = adapts(starts) if head is None else starts < head
        never, all_graded = np.zeros(len(starts), dtype=bool), np.ones(size, dtype=bool)
        yield _Placed(part, role, part.batches or Batches(starts, never, adapt, all_graded))


def _head(rule: AdaptRule, source: Source) -> Callable[[Part], np.ndarray]:
    """A function from a part to a mask (n,) of its first images of a few classes, drawn by the seed (BoTTA, 2025, arXiv
    2504.10149).
    """
    if rule.classes is None or rule.classes > source.classes:
        raise refusal("adapt.classes", f"{rule.classes} classes of only {source.classes}", "give fewer")
    classes = source.rng("classes").permutation(source.classes)[: rule.classes]

    def head(part: Part) -> np.ndarray:
        labels = np.empty(len(part.image), dtype=np.int64)
        for number in np.unique(part.shift):
            here = part.shift == number
            labels[here] = source.labels[0 if part.compounds else number][part.image[here]]
        chosen = np.isin(labels, classes)
        return chosen if rule.first is None else chosen & (np.cumsum(chosen) <= rule.first)

    return head


def _adaptation(config: ProtocolConfig) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a part's batch starts (batches,) to adaptation flags; to be called part by part, in order."""
    [first], [rule] = config.adapt_images, config.adapt
    if rule is not None and rule.every is not None:
        every = rule.every
        return lambda starts: np.arange(len(starts)) % every == 0
    if rule is not None and rule.eta is not None:
        return _time_constrained(rule, rule.eta)
    return lambda starts: starts < (np.inf if first is None else first)


def _time_constrained(rule: AdaptRule, eta: float) -> Callable[[np.ndarray], np.ndarray]:
    """Batches that arrive while a method is still adapting are skipped (Alfarra et al. 2024, arXiv 2304.04795)."""
    if rule.cost_ratio == MEASURE:
        raise refusal("adapt.cost_ratio", "only a run can measure it", "give a number, or a list of numbers")
    ratios = itertools.chain(rule.cost_ratios, itertools.repeat(rule.cost_ratios[-1]))

    def adapts(starts: np.ndarray) -> np.ndarray:
        flags, wait = np.zeros(len(starts), dtype=bool), 0
        for batch in range(len(starts)):
            flags[batch] = wait == 0
            wait = max(0, int(np.ceil(next(ratios) * eta)) - 1) if wait == 0 else wait - 1
        return flags

    return adapts


def _windowed(stream: Stream, window: int) -> Stream:
    """Batch t holds the latest ``window`` images in the slots of a ring buffer, of which image t alone is graded.

    The buffer is never cleared, neither between segments nor at resets (mariodoebler/test-time-adaptation).
    """
    images, slots = np.arange(len(stream.image)), np.arange(window)
    shown = images[:, None] - (images[:, None] - slots) % window  # (N, window), below 0 before the buffer is full
    full = shown >= 0
    rows, graded = shown[full], (shown == images[:, None])[full]
    return replace(
        stream,
        shift=stream.shift[rows],
        image=stream.image[rows],
        bounds=np.concatenate([[0], np.cumsum(full.sum(axis=1))]),
        adapt=images % window == window - 1,
        visits=stream.visit[rows],
        grades=None if graded.all() else graded,
    )


# -- resets ------------------------------------------------------------------------------------------------------------


def _resets(reset: str | ResetEvery, stream: Stream) -> np.ndarray:
    """(batches,) bool; a stream's first batch never has the flag: a trial starts reset."""
    flags = stream.reset_before.copy()  # those of a recorded stream
    if reset == "batch":
        flags[:] = True
    elif isinstance(reset, ResetEvery):
        flags[1:] = stream.adapt[:-1] & (np.cumsum(stream.adapt)[:-1] % reset.every == 0)
    elif reset == "segment":
        flags[[segment.first for segment in stream.segments if segment.role != _PROBE]] = True
    flags[0] = False
    return flags
