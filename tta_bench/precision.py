"""How a network computes: precision, compilation, algorithms. Graded scores are float32 in every mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        dtype: of images, adapted parameters, and of everything that a method computes from the network's outputs.
        matrices: of matrix products and convolutions, for which frozen weights are stored in it; None: ``dtype``.
        tf32: whether those of float32 may round their factors to TF32, 10 bits of mantissa.
    """

    dtype: torch.dtype
    matrices: torch.dtype | None = None
    tf32: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bfloat16": Precision(torch.float32, matrices=torch.bfloat16),
    "float64": Precision(torch.float64),
}


@dataclass(frozen=True)
class Mode:
    """How the network of a trial computes; the defaults are the mode of published numbers.

    Attributes:
        precision: a key of :data:`PRECISIONS`.
        compile: "on": passes through the network are compiled (:mod:`tta_bench.run.engine`).
        deterministic: whether convolutions, and attention in float32, use deterministic algorithms alone.
    """

    precision: str = "float32"
    compile: str = "off"
    deterministic: bool = True

    def asked(self) -> dict[str, Any]:
        """The mode in a trial's key: the precision, and what is not at its default."""
        changed = {name: value for name, value in vars(self).items() if value != getattr(Mode, name)}
        return {"precision": self.precision} | changed

    @property
    def is_default(self) -> bool:
        """Whether it is the mode of published numbers."""
        return self == Mode()

    @property
    def text(self) -> str:
        """The precision, and what is not at its default: ``bfloat16, compiled``."""
        compiled = "compiled" if self.compile == "on" else ""
        algorithms = "" if self.deterministic else "any convolution algorithm"
        return ", ".join(filter(None, [self.precision, compiled, algorithms]))
