"""MGG's gradient memory layer: 164 parameters φ that turn a coordinate's gradient history into its update.

A test-time-training layer (arXiv 2412.16901, section 3.3; the published code's ``TTTLinear`` with hidden size 8):
each coordinate of the adapted parameters has a memory W (8×8), b (8) of its own, which one gradient step in closed form
moves at every update; φ is shared by all. Coordinates are independent, so that any mix of layer widths works.

Everything here is batched over n coordinates, which stand last: u (2, n), W (8, 8, n), b (8, n).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

HIDDEN = 8
EPS = 1e-6  # inside both layer norms' square roots
_INIT_STD = 0.02

# name: (shape, how it is initialised): a uniform bound, "normal", or a constant
SHAPES: Mapping[str, tuple[tuple[int, ...], float | str]] = {
    "w_q": ((HIDDEN, 2), "linear"),
    "w_k": ((HIDDEN, 2), "linear"),
    "w_v": ((HIDDEN, 2), "linear"),
    "w_o": ((1, HIDDEN), "linear"),
    "lr_weight": ((2,), "normal"),  # a
    "lr_bias": ((1,), 0.0),  # c
    "token_scale": ((1,), 0.0),  # τ
    "ln_weight": ((HIDDEN,), 1.0),  # γ of the inner layer norm
    "ln_bias": ((HIDDEN,), 0.0),
    "post_weight": ((HIDDEN,), 1.0),
    "post_bias": ((HIDDEN,), 0.0),
    "memory_weight": ((HIDDEN, HIDDEN), "normal"),  # W⁰, for row vectors: s = kW
    "memory_bias": ((HIDDEN,), 0.0),
}


class Memory(NamedTuple):
    """What a step leaves: ``weight`` (8, 8, n) and ``bias`` (8, n)."""

    weight: Tensor
    bias: Tensor


def initial_parameters(generator: torch.Generator) -> dict[str, Tensor]:
    """φ before meta-training, float32: linear layers uniform in ±1/√inputs, a and W⁰ normal with deviation 0.02."""
    phi = {}
    for name, (shape, rule) in SHAPES.items():
        if rule == "linear":
            bound = shape[1] ** -0.5
            phi[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        elif rule == "normal":
            phi[name] = torch.randn(shape, generator=generator) * _INIT_STD
        else:
            phi[name] = torch.full(shape, float(rule))
    return phi


def initial_memory(phi: Mapping[str, Tensor], n: int) -> Memory:
    """The learned W⁰ and b⁰ for ``n`` coordinates, as views."""
    weight, bias = phi["memory_weight"], phi["memory_bias"]
    return Memory(weight.unsqueeze(-1).expand(HIDDEN, HIDDEN, n), bias.unsqueeze(-1).expand(HIDDEN, n))


def _standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x − mean)/√(biased variance + eps) over the 8 hidden values, and the root: (8, n), (1, n)."""
    variance, mean = torch.var_mean(x, 0, correction=0, keepdim=True)
    root = torch.sqrt(variance + EPS)
    return (x - mean) / root, root


def update(phi: Mapping[str, Tensor], u: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One step of the memory layer.

    Args:
        phi: the 164 parameters, by the names of ``SHAPES``.
        u: (2, n), each coordinate's moving and present gradient, both over its root mean square.
        memory: before the step.

    Returns:
        Δ (n,) in (−1, 1), and the memory after the step (``W⁺ = W − η kᵀδ``, ``b⁺ = b − ηδ``).
    """
    gamma, beta = phi["ln_weight"].unsqueeze(1), phi["ln_bias"].unsqueeze(1)
    q, k, v = phi["w_q"] @ u, phi["w_k"] @ u, phi["w_v"] @ u
    rate = (1 + phi["token_scale"]).clamp(min=0) * torch.sigmoid(phi["lr_weight"] @ u + phi["lr_bias"]) / HIDDEN

    x_hat, root = _standardised((k.unsqueeze(1) * memory.weight).sum(0) + memory.bias)
    h = (gamma * x_hat + beta - (v - k)) * gamma
    delta = (h - h.mean(0) - x_hat * (h * x_hat).mean(0)) / root  # gradient of ½‖LN(s) − (v − k)‖² at s
    step = rate * delta
    after = Memory(memory.weight - k.unsqueeze(1) * step.unsqueeze(0), memory.bias - step)

    y_hat, _ = _standardised((q.unsqueeze(1) * after.weight).sum(0) + after.bias)
    z_hat, _ = _standardised(q + gamma * y_hat + beta)
    out = phi["w_o"] @ (phi["post_weight"].unsqueeze(1) * z_hat + phi["post_bias"].unsqueeze(1))
    return torch.tanh(out.squeeze(0)), after


def moments(m: Tensor, v: Tensor, g: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The moving moments with gradient ``g`` (n,), and the layer's input u (2, n).

    Args:
        m, v: first and second moment, (n,).
        g: gradient, (n,).
        steps: updates so far, this one included (0-dim); the bias correction's exponent is one more, as in the published
            code.
    """
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.square()
    exponent = steps.double() + 1
    first, second = (1 - 0.9**exponent).to(g.dtype), (1 - 0.99**exponent).to(g.dtype)
    scale = (v / second).sqrt() + 1e-8
    return m, v, torch.stack([m / first / scale, g / scale])
