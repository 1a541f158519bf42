"""Precision by name: how the model is cast. What is graded is float32, whatever the model computes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """Attributes: dtype: of weights and images."""

    dtype: torch.dtype


PRECISIONS: Mapping[str, Precision] = {"float32": Precision(torch.float32), "float64": Precision(torch.float64)}
