"""Cases of the reference trajectories ``golden/teachers``; no test itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SHARED

import tta_bench.torchvision_repair  # noqa: F401
from tta_bench import optimizers
from tta_bench.adapter import Adapter
from tta_bench.testing import replay

FOLDER = SHARED / "golden" / "teachers"


def reference(name: str) -> Any:
    """The arrays of ``<name>.npz``; skips where the reference trajectories are absent."""
    if not FOLDER.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    return np.load(FOLDER / f"{name}.npz")


def play(
    case: str, dtype: torch.dtype = torch.float64, after_step: Callable[[Adapter], None] | None = None, **changes: Any
) -> tuple[np.ndarray, Adapter, list[dict[str, Any]], Any, dict[str, Any]]:
    """Replay a case, such as ``rotta.resnet_bn.small``, with ``changes`` to its hyperparameters.

    Returns:
        Scores (batches, B, C), the adapter, its statistics after each batch, the case's arrays and its manifest entry.
    """
    import timm

    arrays = reference(case)
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    entry = manifest["cases"][case]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["models"][entry["kind"]].items()}
    net = timm.create_model(options.pop("model"), pretrained=False, **options)
    net.load_state_dict(safetensors.torch.load_file(FOLDER / f"{entry['kind']}.safetensors"))
    with np.load(FOLDER / "inputs.npz") as inputs:
        test, source = ([torch.from_numpy(x).to(dtype) for x in inputs[part]] for part in ("test", "source"))
    stats: list[dict[str, Any]] = []

    def record(adapter: Adapter) -> None:
        stats.append({name: float(value) for name, value in optimizers.stats(adapter).items()})
        if after_step is not None:
            after_step(adapter)

    scores, adapter = replay(
        entry["method"], {**entry["hyperparameters"], **changes}, net.to(dtype), test, source,
        manifest["config"]["reset_after"], seed=entry["seed"], after_step=record,
    )  # fmt: skip
    return scores, adapter, stats, arrays, entry
