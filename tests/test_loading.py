"""Batches fetched early are the same batches, in order, and an error in fetching reaches the caller."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import clock

from tta_bench.run.loading import loaded

CPU = torch.device("cpu")


@pytest.mark.parametrize("ahead", [False, True])
def test_every_batch_arrives_once_and_in_order_with_the_time_waited_for_it(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tta_bench.run.loading.time", clock(0.5, 0, 0.25, 0, 0.125))
    found = list(loaded(range(5), lambda n: torch.full((2,), n), CPU, ahead))
    assert [batch for batch, _, _ in found] == [0, 1, 2, 3, 4]
    assert [x[0].item() for _, x, _ in found] == [0, 1, 2, 3, 4]
    assert [waited for _, _, waited in found] == [500, 0, 250, 0, 125]


def test_the_next_batch_is_fetched_while_this_one_is_worked_on() -> None:
    fetched = [threading.Event() for _ in range(3)]

    def fetch(n: int) -> torch.Tensor:
        fetched[n].set()
        return torch.zeros(1)

    batches = loaded(range(3), fetch, CPU, ahead=True)
    next(batches)
    assert fetched[1].wait(10)
    assert not fetched[2].is_set(), "one batch ahead, not all: they would fill the device"
    batches.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_reaches_the_caller_at_its_batch(ahead: bool) -> None:
    def fetch(n: int) -> torch.Tensor:
        if n == 2:
            raise OSError("gone")
        return torch.zeros(1)

    batches = loaded(range(4), fetch, CPU, ahead)
    assert [next(batches)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(batches)
