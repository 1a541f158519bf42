"""Precision by name: the dtype of weights and images. Graded scores are float32 in every precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch

PRECISIONS: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
