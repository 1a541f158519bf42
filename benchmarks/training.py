"""What the training scripts share: tensors from images, optimizer, schedule, and the file that is written."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from tta_bench.networks.from_timm import ModelSpec

METADATA_KEY = "source_model"


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, 32, 32, 3) to float32 (N, 3, 32, 32) in [0, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(255).contiguous()


def make_optimizer(net: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD (Nesterov, momentum 0.9) for "sgd", else AdamW; norms and biases get no weight decay."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


def lr_factor(step: int, steps: int) -> float:
    """Share of the highest learning rate at ``step``: a linear rise, then half a cosine."""
    rise = max(1, steps // 20)
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def write_weights(net: nn.Module, spec: ModelSpec, path: pathlib.Path) -> None:
    """Write the state of ``net`` in float16 (integers stay), with the spec as JSON metadata; all or nothing."""
    state = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in net.state_dict().items()}
    about = {"architecture": spec.architecture, "options": dict(spec.options), "stem": spec.stem,
             "mean": spec.mean, "std": spec.std}  # fmt: skip
    # One key only: the file format does not promise an order of metadata keys, and the bytes are to repeat.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(safetensors.torch.save(state, {METADATA_KEY: json.dumps(about, sort_keys=True)}))
    partial.replace(path)
