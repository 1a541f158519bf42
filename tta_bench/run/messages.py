"""Messages between a supervisor and its child; none names a shift, a label or an image file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_bench.models import Network
from tta_bench.precision import Mode
from tta_bench.registry import Registry
from tta_bench.run.faults import FaultKind
from tta_bench.run.ring import RingSize

# -- to the child ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChildSetup:
    """What all trials of a child share.

    Attributes:
        method: registered name.
        network: of the source model.
        weights_sha256: of the source model.
        mode: how the networks compute.
        registry: for looking up the method.
        threads: CPU threads of torch.
        folder: the working directory, for relative paths.
        compiled: where compiled code is kept between processes.
    """

    method: str
    network: Network
    weights_sha256: str
    mode: Mode
    registry: Registry
    threads: int
    folder: str
    compiled: str


@dataclass(frozen=True)
class TrialRequest:
    """One trial.

    Attributes:
        config: hyperparameters.
        ring: size of the shared memory, which is sent next.
        side: height and width of the images, pixels.
        batch_size: nominal, or that of a window.
        smallest_batch: of the stream; of a window's, the smallest that adapts.
        predicts: whether the method is given batches that it must not adapt on.
        prepare_seed: for set-up and ``prepare``.
        method_seed: for the stream.
        source_images: number of clean unlabelled images; None if the suite names none.
        prepare_key: trials with equal keys share the result of ``prepare``.
        log: file for the method's output.
        calibrates: whether a plain forward pass is timed after each step.
        mask: the classes that the source model keeps, or None for all.
        trace: file for the trace of a profile, after which the trial ends; None for an ordinary trial.
    """

    config: Mapping[str, Any]
    ring: RingSize
    side: int
    batch_size: int
    smallest_batch: int
    predicts: bool
    prepare_seed: int
    method_seed: int
    source_images: int | None
    prepare_key: str
    log: str
    calibrates: bool
    mask: tuple[int, ...] | None = None
    trace: str | None = None


@dataclass(frozen=True)
class Batch:
    """A batch whose pixels are in shared memory.

    Attributes:
        slot: its slot.
        images: number of images; 0 for a batch that is skipped and not predicted either.
        reset: whether the method is reset before the batch.
        adapt: whether the method may adapt on it, or only predict.
    """

    slot: int
    images: int
    reset: bool = False
    adapt: bool = False


@dataclass(frozen=True)
class BlockEnd:
    """Follows the last batch of a block: a segment, or a part of a long one."""


@dataclass(frozen=True)
class TrialEnd:
    """Follows the last block."""


# -- from the child ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelLoaded:
    """The source model is loaded. Attributes: classes: number of classes; environment: host, device, versions."""

    classes: int
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class SourceImagesRequest:
    """``prepare`` needs source images. Attributes: first, images: a range in the order drawn with the trial's seed."""

    first: int
    images: int


@dataclass(frozen=True)
class MethodReady:
    """The method is ready for the stream. Attributes: outputs: "logits" or "probabilities"; facts: about the trial."""

    outputs: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """The scores of the oldest pending batch are in its slot."""


@dataclass(frozen=True)
class BlockMeasurements:
    """Meter readings of a block.

    Attributes:
        images_forwarded, images_backwarded, updates: counts; ``images_backwarded`` is None if it cannot be measured.
        peak_memory_mib: of the device; None on the CPU.
        adapted: (batches,) bool, whether the method adapted on the batch.
        step_ms: (batches,) float64, duration of the method's call.
        data_ms: (batches,) float64, time spent waiting for images.
        cold: (batches,) bool, whether code was compiled, or its CUDA graph not yet recorded.
        stats: name to (batches,) float64, the method's statistics; NaN for batches it did not adapt on.
    """

    images_forwarded: int
    images_backwarded: int | None
    updates: int
    peak_memory_mib: float | None
    adapted: np.ndarray
    step_ms: np.ndarray
    data_ms: np.ndarray
    cold: np.ndarray
    stats: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TrialSkipped:
    """The method cannot run on this model or stream. Attributes: reason; changes: see :class:`TrialDone`."""

    reason: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialFailed:
    """The trial raised an exception. Attributes: kind: of fault; reason; traceback; changes: see :class:`TrialDone`."""

    kind: FaultKind
    reason: str
    traceback: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialProfiled:
    """The trace of a profile is written, and the trial over. Attributes: see :class:`TrialDone`."""

    facts: Mapping[str, Any]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialDone:
    """The trial is complete.

    Attributes:
        changes: global state of the process that the method has changed.
        facts: about the trial, known at its end.
    """

    facts: Mapping[str, Any]
    changes: tuple[str, ...] = ()
