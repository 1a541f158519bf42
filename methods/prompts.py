"""Prompts: tokens that enter a ViT after its class token, and the features of the network with each of several prompts.

The network must be built as timm's ViTs are: the tokens with their positions pass ``norm_pre``, the blocks, each of which
begins with ``norm1``, and ``norm``; a linear layer classifies the class token.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tta_bench.methods.alignment import following_norms, logits_and_features
from tta_bench.models import SourceModel

_NOTHING = (nn.Identity, type(None))


def unsuitable(model: SourceModel) -> str | None:
    """Why prompts cannot enter this network, or its features are not defined; None where they can and are."""
    net = model.net
    missing = [name for name in ("patch_embed", "norm_pre", "blocks", "norm") if not hasattr(net, name)]
    if missing or not hasattr(net.patch_embed, "patch_size"):
        lacking = missing[0] if missing else "patch_embed.patch_size"
        return f"the network has no {lacking}: prompts need a ViT as timm builds it"
    if (tokens := getattr(net, "num_prefix_tokens", 1)) != 1:
        return f"the network has {tokens} tokens before the patches, not the class token alone"
    if getattr(net, "global_pool", "token") != "token" or not isinstance(getattr(net, "fc_norm", None), _NOTHING):
        return "the network does not classify its class token as the final norm returns it"
    if getattr(net, "rope", None) is not None:
        return "the network's rotary position embeddings leave no place for prompts"
    norms = [getattr(block, "norm1", None) for block in model.stages()[1:]] + [net.norm]
    if not all(isinstance(n, nn.Module) and model.norm_kind(n) for n in norms) or following_norms(model) != norms:
        return "the network's blocks do not each begin with a norm layer, with one more at the end"
    return None


def xavier_bound(model: SourceModel) -> float:
    """v = √(6/(3·(patch area in pixels) + D)): prompts start uniformly in ±v."""
    size = model.net.patch_embed.patch_size  # type: ignore[union-attr]
    return math.sqrt(6 / (3 * math.prod(size) + width(model)))  # type: ignore[arg-type]


def width(model: SourceModel) -> int:
    """D, numbers in a token."""
    return int(model.net.cls_token.shape[-1])  # type: ignore[union-attr,index]


@contextlib.contextmanager
def inserted(model: SourceModel, prompts: Tensor) -> Iterator[None]:
    """Within it, the network has prompts (K, P, D): the first for the first K-th of a batch's images, and so on."""

    def insert(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        [tokens] = inputs
        own = prompts.repeat_interleave(len(tokens) // len(prompts), 0)
        return (torch.cat([tokens[:, :1], own, tokens[:, 1:]], 1),)

    hook = model.net.norm_pre.register_forward_pre_hook(insert)  # type: ignore[union-attr]
    try:
        yield
    finally:
        hook.remove()


def prompted_features(model: SourceModel, x: Tensor, prompts: Tensor, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each prompts in turn: logits (B, C) and features (B, depth·D) of ``x``, as ``alignment.py`` defines them.

    Args:
        model: one for which :func:`unsuitable` is None.
        x: images (B, 3, H, W) in [0, 1].
        prompts: (K, P, D).
        images: that pass the network at once, at most; ``x`` is never divided.
    """
    for some in prompts.split(max(1, images // len(x))):
        with inserted(model, some):
            logits, features = logits_and_features(model, x.repeat(len(some), 1, 1, 1))
        yield from zip(logits.split(len(x)), features.split(len(x)), strict=True)
