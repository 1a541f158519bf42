"""Optimizers equal their published formulas: on a closed-form problem, and under Tent on reference trajectories."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SHARED
from torch import Tensor

from tta_bench.methods.adamw import AdamW
from tta_bench.methods.tent import Tent
from tta_bench.registry import OPTIMIZERS, Registry
from tta_bench.testing import replay

FOLDER, MODELS = SHARED / "golden" / "optimizers", SHARED / "golden" / "typical"
OWN = ["adamw"]  # those of the reference trajectories that are registered


def manifest() -> Any:
    if not FOLDER.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    return json.loads((FOLDER / "manifest.json").read_text())


def trajectory(name: str, kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[np.ndarray, Any]:
    """(logits of Tent with the optimizer, the reference)."""
    import timm

    facts, models = manifest(), json.loads((MODELS / "manifest.json").read_text())["models"]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in models[kind].items()}
    net = timm.create_model(options.pop("model"), pretrained=False, **options)
    net.load_state_dict(safetensors.torch.load_file(MODELS / f"{kind}.safetensors"))
    values = facts["cases"][f"{name}.{kind}"]["hyperparameters"] | changes
    config = {"optimizer": name, "lr": values.pop("lr"), "optimizer_options": values}
    with np.load(MODELS / "inputs.npz") as inputs:
        test = [torch.from_numpy(batch).to(dtype) for batch in inputs["test"]]
    logits, _ = replay("tent", config, net.to(dtype), test, [], facts["reset_after"])
    return logits, np.load(FOLDER / f"{name}.{kind}.npz")["logits"]


@pytest.mark.parametrize("kind", ["vit_ln", "resnet_gn", "resnet_bn"])
@pytest.mark.parametrize("name", OWN)
def test_a_trajectory_is_reproduced_also_after_a_reset(name: str, kind: str) -> None:
    logits, expected = trajectory(name, kind)
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-8


def test_in_single_precision_a_trajectory_stays_near() -> None:
    logits, expected = trajectory("adamw", "vit_ln", torch.float32)
    assert np.abs(logits - expected).max() < 1e-2


@pytest.mark.parametrize(
    "change", [{"lr": 1.001e-3}, {"betas": (0.9, 0.9991)}, {"eps": 1e-7}, {"weight_decay": 0.0}], ids=lambda c: next(iter(c))
)  # fmt: skip
def test_the_comparison_notices_a_small_change(change: dict[str, Any]) -> None:
    logits, expected = trajectory("adamw", "vit_ln", **change)
    assert np.abs(logits - expected).max() > 1e-8


def gradient(theta: Tensor, step: int) -> Tensor:
    """Of the closed-form problem: f = Σ ½a(θ − cos k)² + 0.1·cos 3θ + 0.3·sin(1.7t + 2.3k)·θ, a = 10^((k − 6)/3)."""
    k = torch.arange(12, dtype=torch.float64)
    return 10 ** ((k - 6) / 3) * (theta - k.cos()) - 0.3 * (3 * theta).sin() + 0.3 * (1.7 * step + 2.3 * k).sin()


@pytest.mark.parametrize("name", OWN)
def test_a_closed_form_problem_is_solved_step_by_step(name: str) -> None:
    values = manifest()["toy"][name]["hyperparameters"]
    k = torch.arange(6, dtype=torch.float64)
    start = [1 + 0.1 * (k + 1).sin(), torch.zeros(4).double(), torch.tensor([0.5, -0.25]).double()]
    parameters = [torch.nn.Parameter(part) for part in start]
    cls = Registry().entry(name, OPTIMIZERS).load()
    optimizer = cls(parameters, **cls.Config(**values).model_dump())
    path = []
    for step in range(50):
        whole = gradient(torch.cat([p.detach() for p in parameters]), step)
        for parameter, part in zip(parameters, whole.split([6, 4, 2]), strict=True):
            parameter.grad = part
        optimizer.step()
        path.append(torch.cat([p.detach() for p in parameters]).numpy())
    assert np.abs(np.stack(path) - np.load(FOLDER / "toy.npz")[name]).max() < 1e-12


def test_adamws_decay_is_not_in_its_moments() -> None:
    """The first step is lr·sign(g) beside the decay, whatever the weight."""
    parameter = torch.nn.Parameter(torch.tensor([5.0, -2.0]).double())
    parameter.grad = torch.tensor([1.0, -3.0]).double()
    AdamW([parameter], **AdamW.Config(lr=0.1, weight_decay=0.5, eps=1e-30).model_dump()).step()
    assert torch.allclose(parameter.detach(), torch.tensor([5 * 0.95 - 0.1, -2 * 0.95 + 0.1]).double(), atol=1e-12)


def test_adamw_is_registered_with_its_publications_defaults() -> None:
    config: Any = Tent.Config(optimizer="adamw", lr=1e-3)
    assert config.optimizer_class() is AdamW
    assert config.optimizer_options == {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    with pytest.raises(ValueError, match="weight_decay"):
        Tent.Config(optimizer="adamw", optimizer_options={"weight_decay": -1})
    assert math.isclose(
        Tent.Config(optimizer="adamw", lr=1e-3).build([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"], 1e-3
    )  # type: ignore[attr-defined]
