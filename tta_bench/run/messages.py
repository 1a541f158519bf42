"""What a supervisor and its child say to each other; nothing in it names a shift, a label or an image's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_bench.models import Network
from tta_bench.registry import Registry
from tta_bench.run.faults import Kind
from tta_bench.run.ring import Size

# -- to the child ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """What all trials of a child share.

    Attributes:
        method: registered name.
        network: the source model's.
        weights_sha256: of its pristine weights.
        precision: a name of :data:`tta_bench.run.precision.PRECISIONS`.
        registry: where the method is found.
        threads: CPU threads of torch.
        folder: the working directory that relative paths mean.
    """

    method: str
    network: Network
    weights_sha256: str
    precision: str
    registry: Registry
    threads: int
    folder: str


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        config: hyperparameters.
        ring: size of the shared memory, which is offered next.
        side: height and width of the images, pixels.
        batch_size: nominal, or that of a window.
        smallest_batch: of the stream; of a window's, the smallest that adapts.
        prepare_seed: for set-up and ``prepare``.
        method_seed: after that.
        source_images: how many clean unlabelled images there are; None: the suite names none.
        prepared_as: trials for which it is equal share what ``prepare`` returned.
        log: the file that takes what is printed.
    """

    config: Mapping[str, Any]
    ring: Size
    side: int
    batch_size: int
    smallest_batch: int
    prepare_seed: int
    method_seed: int
    source_images: int | None
    prepared_as: str
    log: str


@dataclass(frozen=True)
class Batch:
    """Pixels that lie in a slot. Attributes: slot; images: how many; reset: before them; adapt: or only predict."""

    slot: int
    images: int
    reset: bool = False
    adapt: bool = False


@dataclass(frozen=True)
class SegmentEnd:
    """The segment's last batch has been sent."""


@dataclass(frozen=True)
class TrialEnd:
    """The last segment has been measured."""


# -- from the child ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """The source model is there. Attributes: classes: their number; environment: where the child runs."""

    classes: int
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class SourceWanted:
    """``prepare`` wants source images, in the order of the trial's seed. Attributes: first, images: which."""

    first: int
    images: int


@dataclass(frozen=True)
class SetUp:
    """The method is ready for the stream. Attributes: outputs: what its scores are; facts: about the trial."""

    outputs: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """The scores of the oldest batch that is on its way lie in its slot."""


@dataclass(frozen=True)
class Measured:
    """What the meters say of a segment.

    Attributes:
        images_forwarded, images_backwarded, updates: counts; the second None where it cannot be measured.
        peak_memory_mib: of the device; None on the CPU.
        adapted: (batches,) bool, whether the method adapted on each.
        step_ms: (batches,) float64, times of its calls.
        data_ms: (batches,) float64, times that it waited for images.
        stats: name to (batches,) float64, what it said of each batch; not a number where it did not adapt.
    """

    images_forwarded: int
    images_backwarded: int | None
    updates: int
    peak_memory_mib: float | None
    adapted: np.ndarray
    step_ms: np.ndarray
    data_ms: np.ndarray
    stats: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Skipped:
    """The method cannot run here. Attributes: reason; changes: see :class:`TrialOver`."""

    reason: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """An exception has ended the trial. Attributes: kind: whose fault; reason; traceback; changes."""

    kind: Kind
    reason: str
    traceback: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialOver:
    """All is measured. Attributes: changes: what the method has changed in the global state of its process."""

    changes: tuple[str, ...] = ()
