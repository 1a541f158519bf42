"""CMF: continual momentum filtering on parameter space (Lee and Chang 2024, openreview BllUWdpIOA).

Objective, adapted parameters, augmentation and prior correction: those of ROID (see ``roid.py``). Instead of a blend with
the source weights θ⁰, a Kalman filter follows a hidden model h, of which the stepped weights θ are noisy observations:

    predict    h ← α·h + (1 − α)·θ⁰        v ← α²·v + q̂
    update     β = r/(v + r)               h ← β·h + (1 − β)·θ        v ← β·v
    ensemble   θ ← γ·θ + (1 − γ)·h

where q̂ = q·(number of adapted scalars)/38,400 (those of a ViT-B) and r = 1 − q̂. β is at least 0.89, and 1 from 0.9999 on,
which leaves the observation out; for a small network the default q does so (q̂ below 1e-4).

Discrepancies between paper and code (``cmf.py`` of mariodoebler/test-time-adaptation, which follows the authors' code),
besides ROID's: the code's reset does not clear v, so β continues where it was (``variant: official``; ``paper`` clears
it). The limits of β are literals there. Its setting TYPE has no effect, because predicted and updated h are one object.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Declared, Preset
from tta_bench.methods.ensemble import blend
from tta_bench.methods.roid import Roid, RoidConfig

_VIT_B_SCALARS = 38_400
_LOWEST, _HIGHEST = 0.89, 0.9999  # gains


class Cmf(Roid):
    """ROID with a Kalman filter in place of its weight ensembling."""

    class Config(RoidConfig):
        """Attributes:
        alpha: α, what the hidden model keeps of itself before an update; the rest is the source's.
        gamma: γ, share of the stepped weights after each step; the rest is the hidden model's.
        q: variance of the hidden model's change in a step, for a ViT-B.
        variant: what ``reset()`` clears; see the file's docstring.
        """

        alpha: float = Field(0.99, ge=0, le=1)
        gamma: float = Field(0.99, ge=0, le=1)
        q: float = Field(0.005, ge=0)
        variant: Literal["official", "paper"] = "official"

    presets = {
        name: Preset(preset.values, preset.citation.replace("roid", "cmf")) for name, preset in Roid.presets.items()
    }
    reset_keeps = ("hidden_variance",)

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """``variant: paper`` forgets everything."""
        keeps = cls.reset_keeps if config.variant == "official" else ()
        return dataclasses.replace(super().declared(config), reset_keeps=keeps)

    def setup(self) -> None:
        super().setup()
        self.hidden = [p.clone() for p in self.source]
        self.hidden_variance, self.gain = 0.0, 1.0

    def ensemble(self) -> None:
        """One step of the filter, and the ensemble with the hidden model."""
        alpha, gamma = self.config.alpha, self.config.gamma
        q = self.config.q * sum(p.numel() for p in self.parameters) / _VIT_B_SCALARS
        r = 1 - q
        blend(self.hidden, self.source, alpha)
        variance = alpha**2 * self.hidden_variance + q
        self.gain = _limited(r / (variance + r))
        self.hidden_variance = self.gain * variance
        blend(self.hidden, self.parameters, self.gain)
        blend(self.parameters, self.hidden, gamma)

    def stats(self) -> dict[str, float | Tensor]:
        """Those of ROID; gain: β; hidden_variance: v."""
        return {**super().stats(), "gain": self.gain, "hidden_variance": self.hidden_variance}


def _limited(gain: float) -> float:
    """The gain between its limits; NaN is the lowest."""
    if not gain > _LOWEST:
        return _LOWEST
    return gain if gain < _HIGHEST else 1.0
