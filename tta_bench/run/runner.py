"""Run one trial on one device. Knows nothing of Ray, of other trials, or of where results are kept."""

from __future__ import annotations

import copy
import os
import platform
import socket
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_bench import optimizers
from tta_bench.adapter import Adapter, SourceRequest, context_for
from tta_bench.data.base import digest
from tta_bench.data.cache import Direct, ImageCache, Images
from tta_bench.errors import UsageError
from tta_bench.models import SourceModel, state_sha256
from tta_bench.run import metrics
from tta_bench.run.faults import DataFault, kind_of, ruins_device
from tta_bench.run.loading import loaded, to_tensor
from tta_bench.run.meters import PassCounter, StepCounter, Stopwatch, peak_memory_mib, reset_peak_memory
from tta_bench.run.precision import PRECISIONS
from tta_bench.store import schema
from tta_bench.streams import Batch, Segment, derived_seed
from tta_bench.suite.plan import Materials, Trial

WARMUP_BATCHES = 2  # a trial's first batches: kernels are chosen and memory is claimed in them, so they are timed apart
_KEPT = 4  # pristine models, and prepared statistics, that a worker holds


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to.

    Attributes:
        key: the trial's key.
        status: "ok", "failed" or "skipped"; then ``reason`` says why, and ``traceback`` where.
        facts: scalars about the whole trial.
        segments: one dict for each segment: :class:`tta_bench.store.schema.Segment`.
        shifts: one dict for each segment, shift and visit: :class:`tta_bench.store.schema.Shift`.
        batches: per batch, arrays of equal length: :class:`tta_bench.store.schema.Batches`.
        images: per image in stream order, arrays of equal length: :class:`tta_bench.store.schema.Images`.
        environment: where it ran.
        log: what it printed.
    """

    key: str
    status: str
    reason: str = ""
    traceback: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    shifts: list[dict[str, Any]] = field(default_factory=list)
    batches: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""


class _Skip(Exception):
    """The method says that it cannot run here."""


class Workbench:
    """What a worker keeps between trials: pristine source models with their counters, mapped images, prepared statistics.

    Args:
        materials: what all trials share.
        cache: the image cache.
        device: where models live.
        threads: CPU threads for torch; the same number gives the same bits.
    """

    def __init__(self, materials: Materials, cache: ImageCache, device: torch.device, threads: int):
        self.materials, self.cache, self.device, self.threads = materials, cache, device, threads
        self.streams = materials.streams()
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._models: OrderedDict[tuple[str, str], tuple[SourceModel, PassCounter]] = OrderedDict()
        self._prepared: OrderedDict[str, tuple[dict[str, Tensor], dict[str, Any]]] = OrderedDict()

    def pristine(self, trial: Trial) -> tuple[SourceModel, PassCounter]:
        """The trial's source model, never adapted, and the counter that all its copies share.

        Raises:
            DataFault: this machine has other weights than the run was planned with, or none.
        """
        place = (trial.model, trial.precision)
        if place not in self._models:
            with _reading():
                model = self.materials.models[trial.model].load()
            if state_sha256(model.net) != trial.asked["model"]["weights_sha256"]:
                raise DataFault(f"the weights of {trial.model} are others than those that the run was planned with")
            model = model.to(self.device, PRECISIONS[trial.precision].dtype)
            _remember(self._models, place, (model, PassCounter(model)))
        return self._models[place]

    def images(self, trial: Trial) -> list[Images | Direct]:
        """The images of each shift of the trial's stream.

        Raises:
            DataFault: they cannot be read.
        """
        with _reading():
            entries = [self.materials.cache_entry(trial.model, trial.stream, s) for s in trial.stream.shifts]
            return [self.cache.images(entry) for entry in entries]

    def prepared(
        self, adapter: Adapter, trial: Trial, counter: PassCounter
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(what ``prepare`` returned, facts about it); reused for a method, config, model, source data and seed.

        Raises:
            TypeError: the method asks for source images without declaring it, so that they are not in the trial's key.
        """
        request = adapter.source_request()
        if request is None:
            return {}, {}
        if not adapter.needs.source_images:
            raise TypeError("source_request() asks for images, but the method's needs do not have source_images")
        asked = {k: trial.asked.get(k) for k in ("method", "model", "source", "batch_size", "seed", "precision")}
        place = digest([asked, vars(request)])
        if place not in self._prepared:
            _remember(self._prepared, place, self._prepare(adapter, trial, counter, request))
        return self._prepared[place]

    def _prepare(
        self, adapter: Adapter, trial: Trial, counter: PassCounter, request: SourceRequest
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        source = self.materials.datasets[trial.model].source
        if source is None:
            raise _Skip("the suite names no source images")
        count = min(request.images, len(source.ids))
        rng = np.random.default_rng(derived_seed("source", trial.seed))
        order = rng.permutation(len(source.ids))[:count]
        start = time.perf_counter()

        def batches() -> Iterator[Tensor]:
            for first in range(0, count, request.batch_size):
                with _reading():
                    pixels = np.stack([source.decode(int(i)) for i in order[first : first + request.batch_size]])
                yield to_tensor(pixels, self.device, PRECISIONS[trial.precision].dtype)

        returned = adapter.prepare(batches())
        forwarded, backwarded = counter.read()
        facts = {
            "source_images": count,
            "prepare_s": time.perf_counter() - start,
            "prepare_images_forwarded": forwarded,
            "prepare_images_backwarded": backwarded,
        }
        return returned, facts


@contextmanager
def _reading() -> Iterator[None]:
    """What cannot be read here is this machine's fault, not the method's."""
    try:
        yield
    except (UsageError, OSError) as error:
        raise DataFault(str(error)) from error


def _remember(store: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    store[key] = value
    if len(store) > _KEPT:
        store.popitem(last=False)


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Where a trial ran: none of it is in the key, all of it is in the row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": device.type,
        "device_name": name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def run_trial(trial: Trial, bench: Workbench) -> TrialResult:
    """Run a trial to its end.

    Never raises for what a method, its data or its device does: that is a ``failed`` result with the traceback.
    """
    where = environment(bench.device, bench.threads)
    start = time.perf_counter()
    try:
        outcome = _Run(trial, bench).result()
    except _Skip as skipped:
        outcome = {"status": "skipped", "reason": str(skipped)}
    except Exception as error:  # whatever a plugin raises: this is the one place that turns it into a row
        reason = str(error) if isinstance(error, DataFault) else f"{type(error).__name__}: {error}"
        about = {"failure": kind_of(error), "device_ruined": ruins_device(error)}
        outcome = {"status": "failed", "reason": reason, "traceback": traceback.format_exc(), "facts": about}
    facts = {**outcome.pop("facts", {}), "trial_s": time.perf_counter() - start}
    return TrialResult(trial.key, environment=where, facts=facts, **outcome)


class _Run:
    """One trial under way."""

    def __init__(self, trial: Trial, bench: Workbench):
        self.trial, self.bench = trial, bench
        self.stream = bench.streams.build(trial.model, trial.stream)
        self.dataset = bench.materials.datasets[trial.model]
        pristine, self.counter = bench.pristine(trial)
        # a method's own randomness is Context.generator; a stray global draw at least does not depend on what ran before
        seed = derived_seed("prepare", trial.seed)  # of no stream: what prepare() returned is reused by others
        torch.manual_seed(seed)
        self.counter.read()
        cls: type[Adapter] = bench.materials.registry.load(trial.method)
        model, config = copy.deepcopy(pristine), bench.materials.config(trial)
        model.weights_sha256 = trial.asked["model"]["weights_sha256"]
        context = context_for(model, trial.stream.batch_size, self.dataset.side, bench.device, seed)
        if reason := cls.skip(model, config, context):
            raise _Skip(reason)
        self.adapter = cls(model, config, context)
        self.steps = StepCounter()
        self.watch = Stopwatch(bench.device)

    def result(self) -> dict[str, Any]:
        """Set the method up, then run the stream segment by segment."""
        images = self.bench.images(self.trial)
        with self.steps.watching():
            facts = self._set_up()
            segments = [self._segment(position, images) for position in range(len(self.stream.segments))]
        return {
            "status": "ok",
            "facts": facts,
            "segments": [segment["row"] for segment in segments],
            "shifts": [row for segment in segments for row in segment["shifts"]],
            "batches": _joined([segment["batches"] for segment in segments]),
            "images": _joined([segment["images"] for segment in segments]),
        }

    def _set_up(self) -> dict[str, Any]:
        adapter = self.adapter
        adapter.setup()
        adapter.remember()
        prepared, facts = self.bench.prepared(adapter, self.trial, self.counter)
        adapter.reset()  # prepare() leaves nothing behind but what it returned, so that it may be reused
        adapter.prepared = {name: value.clone() for name, value in prepared.items()}
        self._seed(derived_seed("method", self.trial.seed, self.stream.sha256))
        self.steps.read()
        self.counter.read()
        self.needs = optimizers.needs(adapter)
        return {
            **facts,
            "adapted_parameters": sum(p.numel() for p in adapter.model.parameters() if p.requires_grad),
            "batch_statistics": _batch_statistics(adapter),
            "checkpoint": optimizers.checkpoint_origin(adapter),
            "reset_keeps": ",".join(adapter.reset_keeps),
            **self.needs.columns(),
        }

    def _seed(self, seed: int) -> None:
        self.adapter.context.generator.manual_seed(seed)
        torch.manual_seed(seed)

    # -- one segment -------------------------------------------------------------------------------------------------

    def _segment(self, position: int, images: list[Images | Direct]) -> dict[str, Any]:
        segment = self.stream.segments[position]
        reset_peak_memory(self.bench.device)
        graded, data_ms, stats = [], [], list[Mapping[str, float | Tensor] | None]()
        for batch, x, waited_ms in self._batches(segment, images):
            if batch.reset_before:
                self.adapter.reset()
            data_ms.append(waited_ms)
            adapts = batch.adapt and len(batch.image) >= self.needs.min_batch
            with self.watch.timing():
                scores = self.adapter.step(x) if adapts else self.adapter.predict(x)
            _check_shape(scores, len(x), self.adapter.context.num_classes)
            graded.append(metrics.grade(scores.detach(), self.adapter.outputs))
            stats.append(_copied(optimizers.stats(self.adapter)) if adapts else None)
        return self._measured(position, graded, np.array(data_ms), stats)

    def _batches(self, segment: Segment, images: list[Images | Direct]) -> Iterator[tuple[Batch, Tensor, float]]:
        """The segment's batches on the device, with the time spent waiting for each, ms."""

        def fetch(batch: Batch) -> Tensor:
            with _reading():
                pixels = _take(images, batch.shift, batch.image)
            return to_tensor(pixels, self.bench.device, PRECISIONS[self.trial.precision].dtype)

        # corruptions draw from the process's global state, which the method may use: those are never made in a thread
        ahead = self.bench.device.type == "cuda" and all(isinstance(i, Images) for i in images)
        batches = (self.stream.batch(number) for number in range(segment.first, segment.last))
        return loaded(batches, fetch, self.bench.device, ahead)

    def _labels(self, shift: np.ndarray, image: np.ndarray) -> np.ndarray:
        """The labels (N,) of images, given by their shift's number and their index."""
        labels = np.empty(len(image), dtype=np.int64)
        for number in np.unique(shift):
            of_shift = shift == number
            labels[of_shift] = self.dataset.labels_of(self.stream.shifts[number])[image[of_shift]]
        return labels

    def _measured(
        self,
        position: int,
        graded: list[metrics.Graded],
        data_ms: np.ndarray,
        stats: list[Mapping[str, float | Tensor] | None],
    ) -> dict[str, Any]:
        """Read the meters and the scores' verdicts, once, and only now look at the labels."""
        segment, stream = self.stream.segments[position], self.stream
        predicted, confidence, finite = metrics.to_host(graded)
        if not finite.all():
            bad = segment.first + int(np.argmin(finite))
            raise FloatingPointError(f"the scores of batch {bad} (segment {segment.name}) are not finite")
        where = slice(int(stream.bounds[segment.first]), int(stream.bounds[segment.last]))
        shift, image = stream.shift[where], stream.image[where]
        labels = self._labels(shift, image)
        sizes = np.diff(stream.bounds[segment.first : segment.last + 1])
        numbers, adapted = np.arange(segment.first, segment.last), np.array([s is not None for s in stats])
        verdicts = {"shift": shift, "visit": stream.visit[where], "image": image,
                    "batch": np.repeat(numbers, sizes).astype(np.int32), "graded": stream.graded[where],
                    "predicted": predicted, "correct": predicted == labels, "confidence": confidence}  # fmt: skip
        kept = {f"stat_{name}": _numbers(name, stats) for name in optimizers.stats(self.adapter)}
        places = np.full(len(sizes), position, dtype=np.int16)
        timed = {"step_ms": self.watch.read_ms(), "data_ms": data_ms}
        told: dict[str, np.ndarray] = {"batch": numbers, "segment": places, "images": sizes, "adapted": adapted}
        batches = told | timed | kept
        return {
            "row": self._cost(position, batches, predicted[verdicts["graded"]]),
            "shifts": self._graded(position, verdicts, labels, np.repeat(adapted, sizes)),
            "batches": batches,
            "images": verdicts,
        }

    def _cost(self, position: int, batches: Mapping[str, np.ndarray], predicted: np.ndarray) -> dict[str, Any]:
        """The segment's row: what the meters say since the last one; ``predicted``: of the graded images."""
        forwarded, backwarded = self.counter.read()
        row = schema.Segment(
            **self._place(position),
            images=len(predicted),
            batches=len(batches["batch"]),
            images_forwarded=forwarded,
            images_backwarded=backwarded,
            updates=self.steps.read(),
            most_predicted_pct=metrics.most_predicted_pct(predicted),
            **_timing(batches["step_ms"], batches["images"], batches["batch"]),
            data_ms_median=float(np.median(batches["data_ms"])),
            peak_memory_mib=peak_memory_mib(self.bench.device),
        )
        adapted = batches["adapted"]
        stats = {name: values for name, values in batches.items() if name.startswith(schema.STATISTIC)}
        means = {name: float(values[adapted].mean()) if adapted.any() else None for name, values in stats.items()}
        return {**vars(row), **means}

    def _graded(
        self, position: int, verdicts: Mapping[str, np.ndarray], labels: np.ndarray, adapted: np.ndarray
    ) -> list[dict[str, Any]]:
        """The rows of the segment's graded images, by shift and visit; ``adapted``: whether each was adapted on."""
        found, skips = list[dict[str, Any]](), adapted.any() and not adapted.all()
        for cell in (cell for cell in self.stream.cells if cell.segment == position):
            here = verdicts["graded"] & (verdicts["shift"] == cell.shift) & (verdicts["visit"] == cell.visit)
            correct, shift = verdicts["correct"][here], self.stream.shifts[cell.shift]
            row = schema.Shift(
                **{**self._place(position), "visit": cell.visit},
                shift=shift.id,
                corruption=shift.name,
                severity=int(shift.severity or 0),
                class_mean_error_pct=metrics.class_mean_error_pct(correct, labels[here]),
                **metrics.summary(correct, verdicts["confidence"][here]),
                **metrics.after(correct, self.stream.graded_after),
                **(metrics.apart(correct, adapted[here]) if skips else {}),
            )
            found.append(vars(row))
        return found

    def _place(self, position: int) -> dict[str, Any]:
        segment = self.stream.segments[position]
        return {"position": position, "segment": segment.name, "visit": segment.visit, "role": segment.role}


def _batch_statistics(adapter: Adapter) -> str:
    """Whether BatchNorm normalises with the batch's own statistics: "per-batch", "per-image" at batch 1, "" where not."""
    layers = [m for m in adapter.model.net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not any(layer.training or layer.running_mean is None for layer in layers):
        return ""
    return "per-image" if adapter.context.batch_size == 1 else "per-batch"


def _take(images: list[Images | Direct], shift: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The batch's pixels, (B, side, side, 3), also where it mixes shifts."""
    first = images[shift[0]]
    if (shift == shift[0]).all():
        return first.take(image)
    parts = {s: images[s].take(image[shift == s]) for s in np.unique(shift)}
    pixels = np.empty((len(image), *parts[shift[0]].shape[1:]), dtype=np.uint8)
    for s, part in parts.items():
        pixels[shift == s] = part
    return pixels


def _copied(stats: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Tensors as they are now; they are read at the end of the segment, and a method may go on writing to them."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in stats.items()}


def _numbers(name: str, stats: list[Mapping[str, float | Tensor] | None]) -> np.ndarray:
    """One statistic of each batch, float64, not a number where it was not adapted on; read from the device all at once."""
    numbers = np.full(len(stats), np.nan)
    values = [s[name] for s in stats if s is not None]
    if values and all(isinstance(value, Tensor) for value in values):
        read = torch.stack([torch.as_tensor(value) for value in values]).double().cpu().numpy()
    else:
        read = np.array([float(value) for value in values])
    numbers[[s is not None for s in stats]] = read
    return numbers


def _check_shape(scores: Any, batch: int, classes: int) -> None:
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (batch, classes):
        raise TypeError(f"step() must return scores of shape ({batch}, {classes}), it returned {shape}")


def _timing(step_ms: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    """Step times of a segment, the trial's warm-up batches apart; None where nothing is left to time."""
    warm = numbers < WARMUP_BATCHES
    timed, images = step_ms[~warm], sizes[~warm].sum()
    return {
        "step_ms_median": float(np.median(timed)) if len(timed) else None,
        "step_ms_p95": float(np.percentile(timed, 95)) if len(timed) else None,
        "images_per_s": float(images / timed.sum() * 1e3) if len(timed) else None,
        "warmup_ms": float(step_ms[warm].sum()) if warm.any() else None,
    }


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
