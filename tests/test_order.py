"""Longest first; among equals, a trial whose images the worker already holds."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable

import pytest
import torch

from tta_bench import suite
from tta_bench.schedule import estimates as estimation
from tta_bench.schedule.estimates import Estimates, measure
from tta_bench.schedule.queue import Queue
from tta_bench.suite import plan
from tta_bench.suite.plan import Plan


@pytest.fixture
def made(suite_file: Callable[..., pathlib.Path]) -> Plan:
    return plan.make(suite.load(str(suite_file(("seeds: [0]", "seeds: [0, 1]")))))


def test_without_finished_trials_backward_passes_count(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    taken = [queue.take() for _ in made.trials]
    assert [t.method for t in taken] == ["tent"] * 4 + ["source"] * 4
    assert [t.key for t in taken[:4]] == [t.key for t in made.trials if t.method == "tent"], "in plan order"
    assert len(queue) == 0


def test_durations_of_finished_trials_count_more(made: Plan) -> None:
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
    assert queue.take().method == "source"


def test_a_measured_pass_replaces_parameters_but_not_finished_trials(made: Plan) -> None:
    estimates = Estimates(made.materials)
    source, tent = (next(t for t in made.trials if t.method == name) for name in ("source", "tent"))
    estimates.learn_forward("resnet_bn", 0.01)
    assert estimates.seconds(source) == pytest.approx(100 * 0.01)
    assert estimates.seconds(tent) == pytest.approx(3 * 100 * 0.01)
    estimates.learn(tent, 7.0)
    assert estimates.seconds(tent) == pytest.approx(7.0)


def test_a_forecast_measures_a_model(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(estimation.time, "perf_counter", lambda: float(next(clock)))  # a pass takes a second
    model = made.materials.models["resnet_bn"].load()
    small, large = (measure(model, side, torch.device("cpu")) for side in (32, 64))
    assert small.weights == 4 * made.materials.parameters["resnet_bn"]
    assert small.seconds == 1 / estimation._TIMED_IMAGES
    assert large.activations == pytest.approx(4 * small.activations, rel=0.05), "they grow with the image"


def test_among_equals_the_images_at_hand_win(made: Plan) -> None:
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    first = queue.take()
    assert first.stream.shifts[0].id == "clean"
    second = queue.take(previous=first)
    assert (second.stream.shifts[0].id, second.seed) == ("clean", 1)
    queue.put(first)
    assert len(queue) == 7
    assert queue.take().key == first.key, "a returned trial comes first"


def test_images_at_hand_do_not_delay_a_longer_trial(made: Plan) -> None:
    source = next(t for t in made.trials if t.method == "source")
    queue = Queue(made.trials, Estimates(made.materials).seconds)
    assert queue.take(previous=source).method == "tent"


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
