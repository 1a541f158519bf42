"""The reference trajectories of ``golden/teachers`` and ``golden/outputs``: load a case, and replay it."""

from __future__ import annotations

import json
import pathlib
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

GOLDEN = SHARED / "golden"
Play = tuple[np.ndarray, Adapter, list[dict[str, Any]], Any, dict[str, Any]]


def reference(name: str) -> Any:
    """The arrays of ``<name>.npz``; skips the test where there are no trajectories."""
    return np.load(_folder(name) / f"{name}.npz")


def _folder(name: str) -> pathlib.Path:
    if not GOLDEN.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    [folder] = [GOLDEN / part for part in ("teachers", "outputs") if (GOLDEN / part / f"{name}.npz").is_file()]
    return folder


def play(
    case: str,
    dtype: torch.dtype = torch.float64,
    after_step: Callable[[Adapter], None] | None = None,
    method: type[Adapter] | None = None,
    **changes: Any,
) -> Play:
    """Replay a case, such as ``rotta.resnet_bn.small``, with another class, other hyperparameters or ``variant``.

    Returns:
        The scores (batches, B, C); the adapter after the last batch; for each batch the statistics and the adapter's
        numbers and tensors by attribute; the stored arrays; the case's manifest entry.
    """
    import timm

    arrays, folder = reference(case), _folder(case)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["cases"][case]
    variant = changes.pop("variant", entry.get("variant", "official"))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["models"][entry["kind"]].items()}
    net = timm.create_model(options.pop("model"), pretrained=False, **options)
    net.load_state_dict(safetensors.torch.load_file(folder / f"{entry['kind']}.safetensors"))
    with np.load(folder / "inputs.npz") as inputs:
        size = entry.get("batch_size")  # the first images of each stored batch
        test, source = ([torch.from_numpy(b[:size]).to(dtype) for b in inputs[part]] for part in ("test", "source"))
    records: list[dict[str, Any]] = []

    def record(adapter: Adapter) -> None:
        records.append(_values(adapter) | optimizers.stats(adapter))
        if after_step is not None:
            after_step(adapter)

    scores, adapter = replay(
        method or entry["method"], entry["hyperparameters"] | changes, net.to(dtype), test, source,
        entry.get("reset_after", manifest["config"].get("reset_after")), variant, seed=entry["seed"],
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
