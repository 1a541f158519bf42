"""Longest first; among equals, what a worker already holds."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable

import pytest
import torch

from tta_bench import suite
from tta_bench.schedule import forecast
from tta_bench.schedule.forecast import measure
from tta_bench.schedule.queue import MOST_TOGETHER, Estimates, Queue
from tta_bench.suite import plan
from tta_bench.suite.plan import Plan


@pytest.fixture
def made(suite_file: Callable[..., pathlib.Path]) -> Plan:
    return plan.make(suite.load(str(suite_file(("seeds: [0]", "seeds: [0, 1]")))))


def test_without_experience_backward_passes_count(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    taken = [trial for _ in made.trials for trial in queue.take()]
    assert [t.method for t in taken] == ["tent"] * 4 + ["source"] * 4
    assert [t.key for t in taken[:4]] == [t.key for t in made.trials if t.method == "tent"], "in plan order"
    assert len(queue) == 0


def test_what_trials_took_counts_more(made: Plan) -> None:
    estimates = Estimates(made.materials)
    source = next(t for t in made.trials if t.method == "source")
    tent = next(t for t in made.trials if t.method == "tent")
    queue = Queue(made.trials, estimates.seconds)
    assert estimates.learn(source, 30.0)
    assert not estimates.learn(source, 30.0)
    assert estimates.seconds(source) == pytest.approx(30.0)
    assert estimates.seconds(tent) == pytest.approx(90.0), "three passes in place of one"
    assert estimates.learn(tent, 6.0)
    queue.refresh()
    assert queue.remaining() == pytest.approx(4 * 30.0 + 4 * 6.0)
    assert [t.method for t in queue.take()] == ["source"]


def test_a_measured_pass_stands_in_for_parameters_but_not_for_experience(made: Plan) -> None:
    estimates = Estimates(made.materials)
    source, tent = (next(t for t in made.trials if t.method == name) for name in ("source", "tent"))
    estimates.measured("resnet_bn", 0.01)
    assert estimates.seconds(source) == pytest.approx(100 * 0.01)
    assert estimates.seconds(tent) == pytest.approx(3 * 100 * 0.01)
    estimates.learn(tent, 7.0)
    assert estimates.seconds(tent) == pytest.approx(7.0)


def test_a_forecast_measures_a_model(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: float(next(clock)))  # a pass takes a second
    model = made.materials.models["resnet_bn"].load()
    small, large = (measure(model, side, torch.device("cpu")) for side in (32, 64))
    assert small.weights == 4 * made.materials.parameters["resnet_bn"]
    assert small.seconds == 1 / forecast._IMAGES
    assert large.activations == pytest.approx(4 * small.activations, rel=0.05), "they grow with the image"


def test_among_equals_the_images_at_hand_win(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    [first] = queue.take()
    assert first.stream.shifts[0].id == "clean"
    [second] = queue.take(held=first)
    assert (second.stream.shifts[0].id, second.seed) == ("clean", 1)
    queue.put(first, singly=False)
    assert [t.key for t in queue.take()] == [first.key], "a trial given back comes first"


def test_trials_taken_together_are_of_one_row_and_share_images_where_they_can(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    taken = queue.take(together=lambda _: 3)
    assert [(t.method, t.stream.shifts[0].id, t.seed) for t in taken] == [
        ("tent", "clean", 0), ("tent", "clean", 1), ("tent", "contrast-5", 0),
    ]  # fmt: skip
    assert len(queue) == 5
    assert [t.method for t in queue.take(together=lambda _: 3)] == ["tent"], "no more of its row are left"
    assert [len(queue.take(together=lambda _: 9)), len(queue)] == [4, 0]


def test_a_trial_given_back_singly_is_taken_with_no_other(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    first, second, third, last = queue.take(together=lambda _: 4)
    queue.put(last, singly=False)
    queue.put(third, singly=True)
    queue.put(second, singly=False)
    queue.put(first, singly=False)
    sizes = [[t.key for t in queue.take(together=lambda _: 4)] for _ in range(3)]
    assert sizes == [[first.key, second.key], [third.key], [last.key]]


def test_only_a_row_that_has_shown_to_be_short_is_given_together(made: Plan) -> None:
    estimates = Estimates(made.materials)
    source, tent = (next(t for t in made.trials if t.method == name) for name in ("source", "tent"))
    assert estimates.seconds(source) < 1
    assert estimates.together(source) == 1
    estimates.learn(source, 0.3)
    assert estimates.together(source) == 3
    assert estimates.together(tent) == 1, "nothing of its own row is known"
    for _ in range(50):
        estimates.learn(source, 1e-4)
    assert estimates.together(source) == MOST_TOGETHER
    estimates.learn(source, 100.0)
    assert estimates.together(source) == 1


def test_trials_that_adapt_on_few_images_say_nothing_of_those_that_adapt_on_all(
    suite_file: Callable[..., pathlib.Path],
) -> None:
    file = suite_file(("seeds: [0]", "seeds: [0]\nprotocol: {kind: reset, adapt_images: [40, all]}"))
    made = plan.make(suite.load(str(file)))
    estimates = Estimates(made.materials)
    few, every = (
        next(t for t in made.trials if t.method == "tent" and t.setting.values()["parameters"].get("adapt_images") == n)
        for n in (40, None)
    )
    assert estimates.learn(few, 0.01)
    assert estimates.learn(every, 9.0), "its first"
    assert (estimates.seconds(few), estimates.seconds(every)) == (pytest.approx(0.01), pytest.approx(9.0))
