"""One trial: what it records."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trials import Counting, Plain, Runner

from tta_bench.adapter import Needs
from tta_bench.data.cache import Images
from tta_bench.models import MissingPart
from tta_bench.run.meters import Stopwatch
from tta_bench.run.runner import _fill


def test_adapt_images_adapts_on_the_first_and_grades_the_rest_apart(run: Runner) -> None:
    protocol = "batch_size: 20\nprotocol: {kind: reset, adapt_images: [40, 60, all]}"
    rows, costs, results = [], [], []
    for trial in (1, 3, 5):  # contrast, for each number
        results.append(run(Counting, ("batch_size: 40", protocol), trial=trial))
        rows += results[-1].shifts
        costs += results[-1].segments
    counts = [result.batches["stat_count"].tolist() for result in results]
    np.testing.assert_array_equal(counts, [[1, 2, *[np.nan] * 3], [1, 2, 3, np.nan, np.nan], [1, 2, 3, 4, 5]])
    assert [row["stat_count"] for row in costs] == [1.5, 2, 3], "over the batches that were adapted on"
    wrong = ~results[0].images["correct"]
    assert {row["error_pct"] for row in rows} == {wrong.mean() * 100}
    assert {row["error_after_pct"] for row in rows} == {wrong[60:].mean() * 100}, (
        "the same images whatever was adapted on"
    )
    [plain] = run(Counting).shifts
    assert (plain["error_after_pct"], plain["images_adapted"], plain["error_skipped_pct"]) == (None, None, None)
    adapted = [(row["images_adapted"], row["images_skipped"]) for row in rows]
    assert adapted == [(40, 60), (60, 40), (None, None)]
    assert [row["error_adapted_pct"] for row in rows[:2]] == [wrong[:40].mean() * 100, wrong[:60].mean() * 100]
    assert [row["error_skipped_pct"] for row in rows[:2]] == [wrong[40:].mean() * 100, wrong[60:].mean() * 100]


def test_what_is_graded_after_stands_after_the_first_images_of_the_segment_whatever_its_shift(run: Runner) -> None:
    protocol = "batch_size: 50\nprotocol: {kind: mixed, adapt_images: [50, all]}"
    some, whole = (run(Plain, ("batch_size: 40", protocol), trial=trial) for trial in (0, 1))
    rest = np.arange(200) >= 50
    for number, (row, other) in enumerate(zip(some.shifts, whole.shifts, strict=True)):
        wrong = ~some.images["correct"][rest & (some.images["shift"] == number)]
        assert row["images_skipped"] == len(wrong)
        assert row["images_adapted"] == 100 - len(wrong) != 50
        assert row["error_after_pct"] == pytest.approx(wrong.mean() * 100)
        assert row["error_skipped_pct"] == pytest.approx(row["error_after_pct"])
        assert other["error_after_pct"] == row["error_after_pct"], "the same images whatever was adapted on"
        assert other["error_skipped_pct"] is None


class Sized(Plain):
    """Says how many images it gets, and what it is told."""

    def step(self, x: Tensor) -> Tensor:
        self.got = {"got": float(len(x)), "told": float(self.context.batch_size)}
        return super().step(x)

    def stats(self) -> dict[str, float]:
        return self.got


def test_under_a_window_a_method_adapts_on_whole_windows_and_each_image_is_graded_once(run: Runner) -> None:
    result = run(Sized, ("batch_size: 40", "batch_size: 1\nprotocol: {kind: reset, window: 40}"), trial=1)
    assert (result.status, result.reason) == ("ok", "")
    adapted = result.batches["adapted"]
    assert np.flatnonzero(adapted).tolist() == [19, 59, 99], "the window goes on from 100 clean images"
    assert result.batches["stat_got"][adapted].tolist() == result.batches["stat_told"][adapted].tolist() == [40] * 3
    assert result.images["graded"].sum() == 100
    assert [(row["shift"], row["images"]) for row in result.shifts] == [("contrast-5", 100)]


def test_a_row_says_what_was_measured(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    store: dict[str, Any] = {}
    monkeypatch.setattr(Stopwatch, "read_ms", lambda self: np.array([100.0, 50.0, 20.0]))
    result = run(Plain, bench=store)
    assert (result.status, result.reason) == ("ok", "")
    [segment], [row] = result.segments, result.shifts
    assert (row["shift"], row["segment"], row["role"]) == ("contrast-5", "contrast-5", "stream")
    assert (segment["images"], segment["batches"], segment["images_forwarded"], segment["updates"]) == (100, 3, 100, 0)
    images, labels = result.images, store["bench"].materials.datasets["resnet_bn"].labels
    stream = store["bench"].streams.build(store["trial"].model, store["trial"].stream)
    assert np.array_equal(images["image"], stream.image), "in stream order"
    assert np.array_equal(images["correct"], images["predicted"] == labels[stream.image])
    assert row["correct"] == images["correct"].sum()
    assert row["error_pct"] == pytest.approx(100 - row["correct"])
    assert row["confidence_mean"] == pytest.approx(images["confidence"].mean(), abs=1e-6)
    assert result.batches["images"].tolist() == [40, 40, 20]
    assert (segment["warmup_ms"], segment["step_ms_median"], segment["images_per_s"]) == (150.0, 20.0, 1000.0)
    assert segment["peak_memory_mib"] is None
    assert segment["most_predicted_pct"] == np.bincount(images["predicted"]).max()
    errors = [~images["correct"][labels[stream.image] == c] for c in np.unique(labels[stream.image])]
    assert row["class_mean_error_pct"] == pytest.approx(100 * np.mean([wrong.mean() for wrong in errors]))
    assert result.environment["threads"] == 1


def test_scores_are_the_models_own(run: Runner) -> None:
    store: dict[str, Any] = {}
    result = run(Plain, trial=0, bench=store)  # clean: under contrast all images look alike to it
    bench, trial = store["bench"], store["trial"]
    model = bench.materials.models[trial.model].load()
    images = bench.cache.images(bench.materials.cache_entry(trial.model, trial.stream, trial.stream.shifts[0]))
    stream = bench.streams.build(trial.model, trial.stream)
    x = torch.from_numpy(images.take(stream.image)).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        assert np.array_equal(model(x).argmax(1).numpy(), result.images["predicted"])


def test_probabilities_are_not_softmaxed_again(run: Runner) -> None:
    class Probabilities(Plain):
        outputs = "probabilities"

        def step(self, x: Tensor) -> Tensor:
            return self.model(x).softmax(1)  # type: ignore[no-any-return]

    class Predicted(Plain):
        outputs = "probabilities"

    assert np.array_equal(run(Predicted).images["confidence"], run(Probabilities).images["confidence"])
    assert np.allclose(run(Probabilities).images["confidence"], run(Plain).images["confidence"], atol=1e-6)


def test_precision_reaches_the_method(run: Runner) -> None:
    class Checks(Plain):
        def step(self, x: Tensor) -> Tensor:
            assert x.dtype == self.model(x).dtype == torch.float64
            return self.predict(x)

    assert run(Checks, ("seeds: [0]", "seeds: [0]\nprecision: float64")).status == "ok"


@pytest.mark.parametrize(("min_batch", "last"), [(20, "step"), (21, "predict")])
def test_batches_below_min_batch_are_predicted(run: Runner, min_batch: int, last: str) -> None:
    class Counts(Plain):
        needs = Needs(min_batch=min_batch)

        def step(self, x: Tensor) -> Tensor:
            print("step", len(x))
            return self.model(x)  # type: ignore[no-any-return]

        def predict(self, x: Tensor) -> Tensor:
            print("predict", len(x))
            return super().predict(x)

    assert run(Counts).log.splitlines() == ["step 40", "step 40", f"{last} 20"]


def test_a_continual_stream_is_one_trial_of_many_segments(run: Runner) -> None:
    class Watches(Plain):
        def reset(self) -> None:
            print("reset")
            super().reset()

    result = run(Watches, ("batch_size: 40", "batch_size: 40\nprotocol: {kind: continual}"), trial=0)
    assert [row["segment"] for row in result.segments] == ["clean", "contrast-5"]
    assert result.log == "reset\n", "after prepare(), never again"


class Cyclic(Plain):
    """Holds itself; says how many such methods are in memory, and how many objects a collection passes over."""

    def setup(self) -> None:
        super().setup()
        self.itself = self
        CYCLIC.add(self)
        self.there = {"methods": float(len(CYCLIC)), "passed": float(gc.get_freeze_count())}

    def stats(self) -> dict[str, float]:
        return self.there


CYCLIC = weakref.WeakSet[Cyclic]()


def test_a_trial_finds_nothing_that_the_last_one_left_in_memory(run: Runner) -> None:
    store: dict[str, Any] = {}
    first, second = (run(Cyclic, trial=trial, bench=store) for trial in (1, 0))
    assert (first.reason, second.reason) == ("", "")
    assert first.environment["pid"] == second.environment["pid"]
    assert set(second.batches["stat_methods"]) == {1}
    assert second.batches["stat_passed"][0] > first.batches["stat_passed"][0]


class Unfit(Counting):
    """Finds in its second batch that the network lacks a part."""

    def step(self, x: Tensor) -> Tensor:
        if self.count == 1:
            raise MissingPart("the model has no second head")
        return super().step(x)


@pytest.mark.parametrize("size", [40, 50], ids=["of three batches", "of two"])
def test_a_trial_that_is_skipped_in_its_stream_leaves_the_next_one_alone(run: Runner, size: int) -> None:
    store: dict[str, Any] = {}
    batches = ("batch_size: 40", f"batch_size: {size}")
    results = [run(Unfit, batches, trial=trial, bench=store) for trial in (0, 1, 0)]
    assert [(r.status, r.reason) for r in results] == [("skipped", "the model has no second head")] * 3


class Overwriting(Plain):
    """Returns its scores in one tensor of the CPU, which it fills anew in each step."""

    def setup(self) -> None:
        super().setup()
        self.scores = torch.empty(self.context.batch_size, self.context.num_classes)

    def step(self, x: Tensor) -> Tensor:
        return self.scores[: len(x)].copy_(super().step(x))


def test_scores_count_as_they_were_returned(run: Runner) -> None:
    plain, overwriting = run(Plain, trial=0), run(Overwriting, trial=0)
    assert overwriting.reason == ""
    assert np.array_equal(overwriting.images["confidence"], plain.images["confidence"])


def test_global_draws_do_not_depend_on_what_ran_before(run: Runner) -> None:
    class Noisy(Plain):
        def step(self, x: Tensor) -> Tensor:
            return self.predict(x) + torch.rand(10) + torch.rand(10, generator=self.context.generator)

    first = run(Noisy)
    torch.rand(7)
    assert np.array_equal(first.images["confidence"], run(Noisy).images["confidence"])


def test_a_batch_that_mixes_shifts_has_each_images_own_pixels() -> None:
    """Image i under shift s is grey 10·s + i; shift 1 holds only some images."""

    def held(shift: int, rows: list[int]) -> Images:
        pixels = np.stack([np.full((2, 2, 3), 10 * shift + row, dtype=np.uint8) for row in rows])
        return Images(np.array(rows), pixels)

    images: list[Any] = [held(0, [0, 1, 2, 3]), held(1, [1, 3, 7]), held(2, [0, 1, 2, 3])]
    slot = np.zeros((6, 2, 2, 3), dtype=np.uint8)
    _fill(slot[:5], images, np.array([2, 0, 1, 2, 1]), np.array([3, 1, 7, 0, 1]))
    assert slot[:, 0, 0, 0].tolist() == [23, 1, 17, 20, 11, 0]
    _fill(slot[:2], images, np.array([1, 1]), np.array([7, 3]))
    assert slot[:, 1, 1, 2].tolist() == [17, 13, 17, 20, 11, 0]


def test_images_that_a_stream_repeats_are_counted_once_as_distinct(run: Runner) -> None:
    result = run(Plain, ("batch_size: 40", "batch_size: 40\nprotocol: {kind: label_shift, samples: 90}"))
    [row] = result.shifts
    distinct = np.unique(result.images["image"])
    assert (row["images"], row["distinct_images"]) == (90, len(distinct))
    assert len(distinct) < 90
    assert run(Plain).shifts[0]["distinct_images"] is None, "no image repeats"
