"""The reference trajectories of ``golden/teachers``: load a case, and replay it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SHARED

from tta_bench import optimizers
from tta_bench.adapter import Adapter
from tta_bench.models import SourceModel
from tta_bench.testing import replay

FOLDER = SHARED / "golden" / "teachers"
Play = tuple[np.ndarray, Adapter, list[dict[str, Any]], Any, dict[str, Any]]


def reference(name: str) -> Any:
    """The arrays of ``<name>.npz``; skips the test where there are no trajectories."""
    if not FOLDER.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    return np.load(FOLDER / f"{name}.npz")


def play(
    case: str, dtype: torch.dtype = torch.float64, after_step: Callable[[Adapter], None] | None = None, **changes: Any
) -> Play:
    """Replay a case, such as ``rotta.resnet_bn.small``, with other hyperparameters or ``variant``.

    Returns:
        The scores (batches, B, C); the adapter after the last batch; for each batch the statistics and the adapter's
        numbers and tensors by attribute; the stored arrays; the case's manifest entry.
    """
    import timm

    arrays = reference(case)
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    entry, variant = manifest["cases"][case], changes.pop("variant", "official")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["models"][entry["kind"]].items()}
    net = timm.create_model(options.pop("model"), pretrained=False, **options)
    net.load_state_dict(safetensors.torch.load_file(FOLDER / f"{entry['kind']}.safetensors"))
    with np.load(FOLDER / "inputs.npz") as inputs:
        test, source = ([torch.from_numpy(b).to(dtype) for b in inputs[part]] for part in ("test", "source"))
    records: list[dict[str, Any]] = []

    def record(adapter: Adapter) -> None:
        records.append(_values(adapter) | optimizers.stats(adapter))
        if after_step is not None:
            after_step(adapter)

    scores, adapter = replay(
        entry["method"], entry["hyperparameters"] | changes, net.to(dtype), test, source,
        manifest["config"]["reset_after"], variant, seed=entry["seed"],
        after_step=record,
    )  # fmt: skip
    return scores, adapter, records, arrays, entry


def _values(adapter: Adapter) -> dict[str, Any]:
    """Copies of the adapter's numbers and tensors, by attribute."""
    values = vars(adapter).items()
    tensors = {name: value.detach().clone() for name, value in values if isinstance(value, torch.Tensor)}
    return tensors | {name: value for name, value in values if isinstance(value, int | float)}


def next_draw(adapter: Adapter) -> np.ndarray:
    """What the generator gives next, (4,): equal to the stored one if no draw was left out, added or exchanged."""
    return torch.rand(4, generator=adapter.context.generator).numpy()


def affine(model: SourceModel) -> np.ndarray:
    """Every norm layer's weight, then bias, flat, in ``named_modules`` order."""
    layers = [module for module in model.modules() if model.norm_kind(module)]
    return torch.cat([p.detach().flatten() for layer in layers for p in (layer.weight, layer.bias)]).numpy()  # type: ignore[misc]
