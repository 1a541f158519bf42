"""From the trace of a profile (:mod:`tta_bench.run.profiling`) to shares of a step, and the page that shows them.

Each instant of the traced steps counts once. For the host it goes to the innermost mark that is open then; for a GPU to
what the host was at when it launched the kernel or copy that runs then, or to nothing. So both columns add up to a step.
"""

from __future__ import annotations

import bisect
import gzip
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tta_bench.run.profiling import BACKWARD, DATA, FORWARD, METHOD, OPTIMIZER, STEP

HARNESS, WAIT, IDLE = "harness", "wait", "idle"
KINDS: Mapping[str, str] = {
    FORWARD: "forward passes",
    BACKWARD: "backward passes",
    OPTIMIZER: "optimizer",
    METHOD: "method, all else",
    DATA: "waiting for data",
    HARNESS: "harness",
    WAIT: "waiting for the GPU",
    IDLE: "idle",
}
_OF_HOST = "user_annotation"  # categories of a trace's events: a mark; another has a GPU's copies of the marks
_OF_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_LONGEST = 8  # operations that the page names
_NAME = 60  # characters of an operation's name


class _Span(NamedTuple):
    """From ``start`` to ``end``, microseconds."""

    start: float
    end: float
    name: str


class Operation(NamedTuple):
    """An operation of torch on the host or a kernel: ms a step, without what it called, and calls a step."""

    name: str
    ms: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a trial's steps goes.

    Attributes:
        steps: number of traced steps.
        host: ms a step for each of :data:`KINDS` that occurs; together the duration of a step.
        gpu: the same of a GPU, :data:`IDLE` included; None where the trace has nothing of a GPU.
        waits: how often a step the host waited for the GPU inside the method's call; ``.item()`` is such a wait.
        longest: operations, on a GPU kernels, that take the most time; the longest first.
    """

    steps: int
    host: Mapping[str, float]
    gpu: Mapping[str, float] | None
    waits: float
    longest: Sequence[Operation]


def read(trace: bytes) -> Profile:
    """The profile in a trace, gzipped JSON.

    Raises:
        ValueError: the trace holds no complete step.
    """
    events = [event for event in json.loads(gzip.decompress(trace))["traceEvents"] if event.get("ph") == "X"]
    steps, thread = _steps(events)
    count, window = len(steps), _Span(steps[0].start, steps[-1].end, HARNESS)
    own = [event for event in events if event["tid"] == thread]
    marks = [window, *(span for event in own if event["cat"] == _OF_HOST and (span := _mark(event)))]
    waits = [_span(event, WAIT) for event in own if event["cat"] in _LAUNCHES and "Synchronize" in event["name"]]
    host = _total(_innermost([*marks, *waits]), window, count)
    work = sorted((event for event in events if event["cat"] in _OF_GPU), key=lambda event: event["ts"])
    if not work:
        operations = [_span(event) for event in own if event["cat"] == "cpu_op"]
        return Profile(count, host, None, 0.0, _longest(operations, _innermost(operations), window, count))
    marked, kernels = [*_innermost(marks)], [*map(_span, work)]
    gpu = _total(_busy(work, _launchers(events, marked)), window, count)
    gpu[IDLE] = sum(host.values()) - sum(gpu.values())
    in_call = sum(_name_at(marked, wait.start) in (FORWARD, BACKWARD, OPTIMIZER, METHOD) for wait in waits)
    return Profile(count, host, gpu, in_call / count, _longest(kernels, kernels, window, count))


def _steps(events: Sequence[Mapping[str, Any]]) -> tuple[list[_Span], Any]:
    """The complete steps in order, and their thread. What follows the last batch is no step."""
    annotations = [event for event in events if event["cat"] == _OF_HOST]
    calls = [event for event in annotations if event["name"] == METHOD]
    spans = (_span(event) for event in annotations if event["name"].startswith(STEP))
    steps = [span for span in spans if any(span.start <= call["ts"] < span.end for call in calls)]
    if not steps:
        raise ValueError("the trace holds no complete step")
    return sorted(steps), calls[0]["tid"]


def _mark(event: Mapping[str, Any]) -> _Span | None:
    name = OPTIMIZER if event["name"].startswith(OPTIMIZER) else event["name"]
    return _span(event, name) if name in KINDS else None


def _span(event: Mapping[str, Any], name: str | None = None) -> _Span:
    return _Span(event["ts"], event["ts"] + event["dur"], name or event["name"])


def _innermost(spans: Iterable[_Span]) -> Iterator[_Span]:
    """The innermost of nested spans at each time: spans that follow each other."""
    opened, now = list[_Span](), -math.inf
    for span in [*sorted(spans, key=lambda span: (span.start, -span.end)), _Span(math.inf, math.inf, "")]:
        while opened and opened[-1].end <= span.start:
            done = opened.pop()
            yield _Span(now, done.end, done.name)
            now = done.end
        if opened:
            yield _Span(now, span.start, opened[-1].name)
            span = span._replace(end=min(span.end, opened[-1].end))  # clocks round
        opened.append(span)
        now = span.start


def _launchers(events: Sequence[Mapping[str, Any]], marked: Sequence[_Span]) -> dict[int, str]:
    """For each launch, by its correlation, what the host was at; any of its threads may have launched it."""
    launches = (event for event in events if event["cat"] in _LAUNCHES and "correlation" in event.get("args", {}))
    return {event["args"]["correlation"]: _name_at(marked, event["ts"]) for event in launches}


def _name_at(marked: Sequence[_Span], time: float) -> str:
    """The name of the span that holds ``time``; the harness's where none does."""
    at = bisect.bisect_right(marked, time, key=lambda span: span.start) - 1
    return marked[at].name if at >= 0 and time < marked[at].end else HARNESS


def _busy(work: Iterable[Mapping[str, Any]], launchers: Mapping[int, str]) -> Iterator[_Span]:
    """What a GPU is busy with at each time; of kernels that overlap, the one that began first."""
    now = -math.inf
    for event in work:
        span = _span(event, launchers.get(event["args"].get("correlation"), HARNESS))
        yield span._replace(start=max(now, span.start), end=max(now, span.end))
        now = max(now, span.end)


def _total(spans: Iterable[_Span], window: _Span, steps: int) -> dict[str, float]:
    """Milliseconds a step by name, of the time inside the window."""
    total = defaultdict[str, float](float)
    for span in spans:
        total[span.name] += max(0.0, min(span.end, window.end) - max(span.start, window.start)) / 1e3 / steps
    return dict(total)


def _longest(operations: Iterable[_Span], counted: Iterable[_Span], window: _Span, steps: int) -> list[Operation]:
    """The operations inside the window whose ``counted`` time is longest."""
    calls = Counter(span.name for span in operations if window.start <= span.start < window.end)
    times = _total(counted, window, steps)
    longest = sorted(calls, key=times.__getitem__, reverse=True)[:_LONGEST]
    return [Operation(name, times[name], calls[name] / steps) for name in longest]


# -- the page ----------------------------------------------------------------------------------------------------------


def page(profile: Profile, title: str, about: Sequence[str]) -> str:
    """The summary of a profile, one page of Markdown.

    Args:
        profile: of a trial.
        title: of the trial.
        about: paragraphs on how it ran.
    """
    return "\n".join([f"# Profile: {title}", *(f"\n{text}" for text in about), "", *_shares(profile), "",
                      *_remarks(profile), "", *_operations(profile), ""])  # fmt: skip


def _shares(profile: Profile) -> Iterator[str]:
    columns = [profile.host] + ([profile.gpu] if profile.gpu is not None else [])
    heads = ["host: ms", "share", "GPU: ms", "share"][: 2 * len(columns)]
    yield _row(["a step", *heads])
    yield _row(["---", *("---:" for _ in heads)])
    for kind, name in KINDS.items():
        if any(kind in column for column in columns):
            yield _row([name, *itertools.chain.from_iterable(_share(column, kind) for column in columns)])
    yield _row(["together", *itertools.chain.from_iterable((f"{sum(c.values()):.2f}", "100 %") for c in columns)])


def _share(column: Mapping[str, float], kind: str) -> tuple[str, str]:
    if kind not in column:
        return "–", "–"
    return f"{column[kind]:.2f}", f"{100 * column[kind] / sum(column.values()):.1f} %"


def _remarks(profile: Profile) -> Iterator[str]:
    yield "The profiler stretches times, most those of many short operations: the shares count, not the milliseconds."
    if profile.gpu is not None:
        yield (
            f"Inside the method's call the host waited for the GPU {profile.waits:.1f} times a step. A GPU's time counts "
            "for what the host was at when it launched the work."
        )


def _operations(profile: Profile) -> Iterator[str]:
    yield _row(
        ["longest " + ("kernels and copies" if profile.gpu is not None else "operations"), "ms", "share", "calls"]
    )
    yield _row(["---", "---:", "---:", "---:"])
    step = sum(profile.host.values())
    for name, ms, calls in profile.longest:
        shown = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
        yield _row([f"`{shown}`", f"{ms:.2f}", f"{100 * ms / step:.1f} %", f"{calls:.1f}"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
