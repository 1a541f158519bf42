"""Replay: run a method over given tensors, batch by batch, to compare it with another implementation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import tta_bench.torchvision_repair  # noqa: F401  (the importer may import timm next)
from tta_bench.adapter import Adapter, context_for
from tta_bench.models import SourceModel
from tta_bench.registry import Registry


def replay(
    method: str | type[Adapter],
    hyperparameters: Mapping[str, Any],
    model: torch.nn.Module,
    test_batches: Sequence[torch.Tensor],
    source_batches: Sequence[torch.Tensor],
    reset_after: int | None = None,
    variant: str = "official",
    *,
    seed: int = 0,
    after_step: Callable[[Adapter], None] | None = None,
) -> tuple[np.ndarray, Adapter]:
    """Feed given batches to a method, in order, and return its scores.

    Args:
        method: a registered name, or an Adapter class.
        hyperparameters: fields of the method's Config; unknown fields are an error.
        model: a timm classifier in the precision and on the device to use; it is copied, not modified.
        test_batches: each (B, 3, H, W), passed to the network unchanged: mean and standard deviation are 0 and 1.
        source_batches: each (B, 3, H, W), for ``prepare``; one pass, in order.
        reset_after: call ``reset()`` once, before this test batch (counted from 0).
        variant: the method's variant; "official" for methods without variants.
        seed: of ``context.generator``.
        after_step: called with the adapter after each batch.

    Returns:
        The scores, (batches, B, C) float array, and the adapter after the last batch.

    Raises:
        ValueError: the method has no such variant, or its hyperparameters are refused.
    """
    cls: type[Adapter] = Registry().load(method) if isinstance(method, str) else method
    values = dict(hyperparameters)
    if "variant" in cls.Config.model_fields:
        values["variant"] = variant
    elif variant != "official":
        raise ValueError(f"{cls.__name__} has no variant {variant!r}, only 'official'")
    net = copy.deepcopy(model).eval().requires_grad_(False)
    parameter = next(net.parameters())
    wrapped = SourceModel(net, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).to(parameter.device, parameter.dtype).eval()
    first = test_batches[0]
    context = context_for(wrapped, len(first), first.shape[-1], parameter.device, seed)
    adapter = prepared(cls(wrapped, cls.Config.model_validate(values), context), iter(source_batches))
    scores = []
    for number, x in enumerate(test_batches):
        if number == reset_after:
            adapter.reset()
        scores.append(adapter.step(x.to(parameter.device, parameter.dtype, copy=True)).detach().cpu().numpy())
        if after_step is not None:
            after_step(adapter)
    return np.stack(scores), adapter


def prepared(
    adapter: Adapter, source: Iterator[torch.Tensor], after_setup: Callable[[Adapter], None] | None = None
) -> Adapter:
    """Run ``setup`` and ``prepare`` as the runner does, and reseed the generator."""
    adapter.setup()
    if after_setup is not None:
        after_setup(adapter)
    adapter.remember()
    if adapter.source_request() is not None:
        like = adapter.model.mean
        returned = adapter.prepare(x.to(like.device, like.dtype) for x in source)
        adapter.reset()
        adapter.prepared = returned
    generator = adapter.context.generator
    generator.manual_seed(generator.initial_seed())
    return adapter
