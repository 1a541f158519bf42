"""MGG, the meta gradient generator, as an optimizer (arXiv 2412.16901, section 3.3).

θ ← θ − lr·Δ, where the gradient memory layer (``mgg_memory.py``) makes each coordinate's Δ in (−1, 1) from its gradient
history. Every parameter given is adapted; nothing about its shape matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from tta_bench import adapter
from tta_bench.methods import mgg_checkpoint, mgg_memory
from tta_bench.methods.mgg_memory import HIDDEN, Memory
from tta_bench.methods.transfer import to_device

_ROWS = 2 + HIDDEN * HIDDEN + HIDDEN  # of the state: M, V, W, b


class MGG(torch.optim.Optimizer):
    """A learned optimizer.

    One step is a handful of operations on all coordinates at once, without a graph and without waiting for the device.
    A step whose result is not finite is not taken: parameters and state stay, and ``refused`` says so.

    Args:
        params: as for any optimizer; all of one dtype, on one device. A parameter without a gradient is left alone.
        lr: α, the largest change of a coordinate in one step.
        checkpoint: φ as a file (see :func:`mgg_checkpoint.read`), or as tensors by name.

    Raises:
        ValueError: no usable checkpoint, or parameters of several dtypes or devices.
    """

    class Config(adapter.Config):
        """Attributes: lr: α; checkpoint: made by ``tta-bench pretrain mgg SUITE``, or the published mgg_ckpt.pth."""

        lr: float = Field(1e-3, gt=0)
        checkpoint: adapter.FilePath | None = Field(None, validate_default=True)

        @field_validator("checkpoint", mode="wrap")
        @classmethod
        def _readable(cls, value: Any, check: Callable[[Any], Any]) -> Any:
            return readable(value, check)

    needs = adapter.Needs(checkpoint=True)
    compiled_parts = ("_computed",)

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, checkpoint: str | Mapping[str, Tensor] | None = None):
        if checkpoint is None:
            raise ValueError(f"mgg needs a checkpoint: {mgg_checkpoint.HOW_TO_GET_ONE}")
        super().__init__(params, {"lr": lr})
        self._parameters = [p for group in self.param_groups for p in group["params"]]
        first = self._parameters[0]
        if any((p.dtype, p.device) != (first.dtype, first.device) for p in self._parameters):
            raise ValueError("mgg needs parameters of one dtype on one device")
        phi = mgg_checkpoint.read(checkpoint) if isinstance(checkpoint, str) else checkpoint
        self.provenance = mgg_checkpoint.provenance(checkpoint) if isinstance(checkpoint, str) else {}
        self._phi = {name: phi[name].to(first.device, first.dtype) for name in mgg_memory.SHAPES}
        self._sizes = [p.numel() for p in self._parameters]
        n = sum(self._sizes)
        memory = mgg_memory.initial_memory(self._phi, n)
        buffer = torch.cat([first.new_zeros(2, n), memory.weight.reshape(-1, n), memory.bias])
        self.state[first] = {"step": torch.zeros((), device=first.device), "memory": buffer}
        self.refused = torch.zeros((), device=first.device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, while the optimizer is built.

        Raises:
            RuntimeError: it is built; its state has one size.
        """
        if hasattr(self, "_phi"):
            raise RuntimeError("mgg cannot take further parameters once it is built")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [p.grad is not None for p in self._parameters]
        if any(given):
            self._update(given)
        return loss

    def _update(self, given: list[bool]) -> None:
        chosen = list(itertools.compress(self._parameters, given))
        where = self._coordinates(given)
        state = self.state[self._parameters[0]]
        now = state["memory"] if where is None else state["memory"][:, where]
        gradient = torch.cat([p.grad.flatten() for p in chosen])
        new, delta, finite = self._computed(now, gradient, state["step"] + 1, *self._phi.values())
        self.refused = (~finite).to(self.refused.dtype)
        if where is None:
            state["memory"].copy_(new)
        else:
            state["memory"][:, where] = new
        state["step"].add_(finite)
        self._apply(given, delta)

    @staticmethod  # it is then compiled once for all optimizers of a process
    def _computed(now: Tensor, gradient: Tensor, count: Tensor, *phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state after step ``count`` (0-dim) from that before it (rows, n), Δ (n,), and whether all is finite.

        Where it is not, the state is as before and Δ is zero. φ is in the order of :data:`mgg_memory.SHAPES`.
        """
        m, v, u = mgg_memory.moments(now[0], now[1], gradient, count)
        memory = Memory(now[2:-HIDDEN].view(HIDDEN, HIDDEN, -1), now[-HIDDEN:])
        delta, after = mgg_memory.update(dict(zip(mgg_memory.SHAPES, phi, strict=True)), u, memory)
        finite = v.isfinite().all() & delta.isfinite().all()
        new = torch.cat([m[None], v[None], after.weight.flatten(0, 1), after.bias])
        return torch.where(finite, new, now), delta.masked_fill(~finite, 0), finite

    def _coordinates(self, given: list[bool]) -> Tensor | None:
        """Indices of the coordinates that have a gradient; None where all have one."""
        if all(given):
            return None
        starts = itertools.accumulate(self._sizes, initial=0)
        parts = [torch.arange(a, a + s) for a, s, has in zip(starts, self._sizes, given, strict=False) if has]
        return to_device(torch.cat(parts), self._parameters[0].device)

    def _apply(self, given: list[bool], delta: Tensor) -> None:
        parts = iter(delta.split(list(itertools.compress(self._sizes, given))))
        has = iter(given)
        for group in self.param_groups:
            chosen = [p for p in group["params"] if next(has)]
            changes = [next(parts).view_as(p) for p in chosen]
            if chosen:
                torch._foreach_add_(chosen, changes, alpha=-group["lr"])

    def stats(self) -> dict[str, Tensor]:
        """refused: 1 where the last step was not taken because it was not finite."""
        return {"refused": self.refused}


def readable(value: Any, check: Callable[[Any], Any]) -> Any:
    """Refuse a missing or foreign checkpoint with the way to get one."""
    if value is None:
        raise ValueError(f"mgg needs a checkpoint: {mgg_checkpoint.HOW_TO_GET_ONE}")
    try:
        path: str = check(value)
    except ValidationError as error:
        raise ValueError(
            f"{error.errors()[0]['msg'].removeprefix('Value error, ')}; {mgg_checkpoint.HOW_TO_GET_ONE}"
        ) from error
    mgg_checkpoint.read(path)
    return path
