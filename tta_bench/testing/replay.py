"""Replay: a method over given tensors, batch by batch, to prove it equal to other code."""

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
    """Feed given batches to a method, in order, and return what it returned.

    Args:
        method: a registered name, or an Adapter class.
        hyperparameters: fields of the method's Config; a field that it does not have is an error.
        model: a timm classifier in the precision and on the device to use; it is deep-copied, its weights stay.
        test_batches: each (B, 3, H, W), given to the network as they are: mean and standard deviation are 0 and 1.
        source_batches: each (B, 3, H, W), for ``prepare``; one pass, in order.
        reset_after: call ``reset()`` once, immediately before this test batch (counted from 0).
        variant: the method's variant; methods that have only one take "official" alone.
        seed: of ``context.generator``.
        after_step: called with the adapter after each batch, to look at it.

    Returns:
        The scores, (batches, B, C) float array, and the adapter as the last batch left it.

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


def prepared(adapter: Adapter, source: Iterator[torch.Tensor]) -> Adapter:
    """The adapter after ``setup`` and ``prepare``, as the runner brings it there: its generator is seeded anew."""
    adapter.setup()
    adapter.remember()
    if adapter.source_request() is not None:
        like = adapter.model.mean
        returned = adapter.prepare(x.to(like.device, like.dtype) for x in source)
        adapter.reset()
        adapter.prepared = returned
    generator = adapter.context.generator
    generator.manual_seed(generator.initial_seed())
    return adapter
