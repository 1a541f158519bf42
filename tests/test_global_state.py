"""What counts as a change of a class that a method must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo  # as timm does: it replaces functions of torch

from tta_bench.adapter import Adapter
from tta_bench.methods import optimizers
from tta_bench.methods.tent import Tent
from tta_bench.run.global_state import FunctionSnapshot, MethodState


@pytest.fixture
def inheriting(monkeypatch: pytest.MonkeyPatch) -> type[torch.optim.SGD]:
    """A class of a watched module, with torch's own step, of which no optimizer has been made."""
    cls = type("Inheriting", (torch.optim.SGD,), {"__module__": optimizers.__name__})
    monkeypatch.setattr(optimizers, "Inheriting", cls, raising=False)
    return cls


def test_torchs_wrapping_of_an_inherited_step_is_no_change(inheriting: type[torch.optim.SGD]) -> None:
    functions = FunctionSnapshot()
    inheriting([torch.zeros(1, requires_grad=True)], lr=0.1)
    inheriting.step = torch.optim.Optimizer.profile_hook_step(torch.optim.SGD.step)  # type: ignore[method-assign]
    inheriting.step.hooked = True  # type: ignore[attr-defined]  # as torch does it where no SGD was made before
    assert functions.changes() == []


def test_another_step_in_the_place_of_an_inherited_one_is_a_change(inheriting: type[torch.optim.SGD]) -> None:
    functions = FunctionSnapshot()

    def step(self: Any, closure: Any = None) -> None: ...

    inheriting.step = step  # type: ignore[assignment,method-assign]
    assert functions.changes() == ["tta_bench.methods.optimizers.Inheriting.step"]


def test_a_class_that_type_makes_belongs_to_the_module_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    of_tent, of_nobody = (MethodState(type("Made", (base,), {})) for base in (Tent, Adapter))
    monkeypatch.setattr("tta_bench.methods.tent.SEEN", 3, raising=False)
    monkeypatch.setattr("tta_bench.adapter.SEEN", 3, raising=False)
    assert of_tent.changes() == ["tta_bench.methods.tent.SEEN"]
    assert of_nobody.changes() == []
