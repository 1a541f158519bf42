"""Small random networks that test files share; no test itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from tta_bench.adapter import Adapter, context_for
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network

NORM = (0.5, 0.5, 0.5)
RESNET = {"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}
SPECS = {
    "batch": ModelSpec(name="batch", architecture="resnet18", options=RESNET, stem="cifar"),
    "group": ModelSpec(name="group", architecture="resnet18", options={**RESNET, "channels": [32, 32, 64, 64],
                                                                 "norm_layer": "groupnorm"}, stem="cifar"),
    "layer": ModelSpec(name="layer", architecture="vit_tiny_patch16_224", options={
        "num_classes": 10, "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
}  # fmt: skip


def small_model(kind: str, seed: int = 0) -> SourceModel:
    """A random network with one kind of normalisation: "batch", "group" or "layer"."""
    torch.manual_seed(seed)
    net = build_network(SPECS[kind])
    with torch.no_grad():  # spread the predictions, so that entropies and gradients differ between images
        classifier: Any = net.get_classifier()  # type: ignore[operator]
        classifier.weight.normal_(std=0.5)
    return SourceModel(net.requires_grad_(False), NORM, NORM).eval()


def ready(cls: type[Adapter], model: SourceModel, batch_size: int = 8, seed: int = 0, **config: Any) -> Adapter:
    """An adapter after setup, as the runner makes it."""
    adapter = cls(model, cls.Config(**config), context_for(model, batch_size, 32, torch.device("cpu"), seed))
    adapter.setup()
    adapter.remember()
    return adapter


def batches(count: int, size: int = 8, seed: int = 1) -> list[torch.Tensor]:
    """Random images in [0, 1]: ``count`` tensors (size, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, 3, 32, 32, generator=generator) for _ in range(count)]


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, names in order: what weights are known by."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].numpy()
        digest.update(f"{name}\0{state[name].dtype}\0{array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()
