"""What the harness finds of the optimizers on an adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trials import Plain, Runner

from tta_bench.adapter import Adapter, Needs
from tta_bench.methods.eta import Eta
from tta_bench.methods.sar import Sar
from tta_bench.methods.tent import Tent

SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"


@pytest.mark.parametrize(("cls", "own"), [(Tent, []), (Eta, ["kept"]), (Sar, ["kept", "recoveries"])])
def test_a_learned_optimizer_is_found_whatever_the_method(run: Runner, cls: type[Adapter], own: list[str]) -> None:
    class Learned(cls):  # type: ignore[misc,valid-type]
        class Config(cls.Config):  # type: ignore[misc,name-defined]
            optimizer: str = "mgg"
            optimizer_options: dict[str, Any] = {"checkpoint": SHIPPED}

    learned, plain = run(Learned), run(cls)
    assert learned.facts["checkpoint"].endswith("; made for another source model")
    assert (learned.facts["needs_checkpoint"], learned.facts["needs_norm_kinds"]) == (True, "batch,group,layer")
    assert [k for k in learned.batches if k.startswith("stat_")] == [f"stat_{name}" for name in [*own, "refused"]]
    assert learned.batches["stat_refused"].tolist() == [0, 0, 0]
    assert (plain.facts["checkpoint"], plain.facts["needs_checkpoint"]) == ("", False)
    assert "stat_refused" not in plain.batches


class Speaking(torch.optim.SGD):
    """Says how often it stepped, and needs batches of 30."""

    needs = Needs(min_batch=30)
    count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1

    def stats(self) -> dict[str, float]:
        return {"count": float(self.count)}


class Optimizing(Plain):
    """Steps every optimizer that a subclass's ``setup`` puts into ``optimizers``."""

    optimizers: Any

    def step(self, x: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.step()
        return self.predict(x)

    def speaking(self) -> Speaking:
        return Speaking([torch.nn.Parameter(torch.ones(1))], lr=1.0)


def test_optimizers_in_a_list_are_told_apart_and_their_needs_count(run: Runner) -> None:
    class Two(Optimizing):
        def setup(self) -> None:
            self.optimizers = [self.speaking(), self.speaking()]
            self.again = {"first": self.optimizers[0]}  # counts once

    found = run(Two)
    assert [k for k in found.batches if k.startswith("stat_")] == ["stat_optimizers_0_count", "stat_optimizers_1_count"]
    assert found.facts["needs_min_batch"] == 30
    np.testing.assert_array_equal(found.batches["stat_optimizers_1_count"], [1, 2, np.nan])  # 20 images are predicted


def test_a_statistic_that_method_and_optimizer_both_have_is_refused(run: Runner) -> None:
    class Clashing(Optimizing):
        def setup(self) -> None:
            self.optimizers = (self.speaking(),)

        def stats(self) -> dict[str, float]:
            return {"count": 0.0}

    assert run(Clashing).reason.startswith(
        "ValueError: Clashing.stats() and its optimizer Speaking both return 'count'"
    )
