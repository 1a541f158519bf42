"""Streams: what protocols make of shifts, and what their hash depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from tta_bench.streams import CLEAN, Segment, Shift, Stream, StreamSpec, build, derived_seed, specs, subset

SHIFTS = (CLEAN, Shift("contrast", 5), Shift("fog", 3))
SPEC = StreamSpec("continual", SHIFTS, images=23, subset=None, batch_size=5, seed=0, data_seed=0)
COMMON = {"images": 23, "subset": None, "batch_size": 5, "seed": 0, "data_seed": 0}


def test_continual_visits_every_image_of_every_shift_once_and_never_resets() -> None:
    stream = build(SPEC)
    for number, segment in enumerate(stream.segments):
        batches = [stream.batch(i) for i in range(segment.first, segment.last)]
        assert segment.name == SHIFTS[number].id
        assert [len(b.image) for b in batches] == [5, 5, 5, 5, 3], "the last batch is short, none crosses the end"
        assert sorted(np.concatenate([b.image for b in batches])) == list(range(23))
        assert {int(s) for b in batches for s in b.shift} == {number}
    assert not stream.reset_before.any()
    assert stream.adapt.all()


def test_reset_makes_a_stream_for_each_shift_with_the_same_order_as_continual() -> None:
    whole = build(SPEC)
    for number, spec in enumerate(specs("reset", SHIFTS, **COMMON)):
        alone = build(spec)
        assert alone.shifts == (SHIFTS[number],)
        assert np.array_equal(alone.image, whole.image[whole.shift == number])


def test_one_reset_stream_of_several_shifts_resets_between_them_only() -> None:
    stream = build(dataclasses.replace(SPEC, protocol="reset"))
    assert np.flatnonzero(stream.reset_before).tolist() == [5, 10]


def test_adapt_images_freezes_each_segment_after_so_many_images_and_keeps_their_order() -> None:
    whole = build(dataclasses.replace(SPEC, protocol="reset"))
    stream = build(dataclasses.replace(SPEC, protocol="reset", adapt_images=10, graded_after=15))
    assert stream.adapt.tolist() == [True, True, False, False, False] * 3
    assert np.array_equal(stream.image, whole.image)
    assert stream.graded_after == 15


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"batch_size": 6}, {"subset": 10}, {"protocol": "reset"}, {"shifts": SHIFTS[:2]},
        {"adapt_images": 5}, {"graded_after": 5},
    ],
)  # fmt: skip
def test_the_hash_changes_with_everything_in_the_stream(change: dict[str, object]) -> None:
    other = dataclasses.replace(SPEC, **change)
    assert build(other).sha256 != build(SPEC).sha256
    first = build(SPEC).sha256
    build.cache_clear()
    assert build(SPEC).sha256 == first


def test_subsets_are_nested_and_drawn_by_the_data_seed_alone() -> None:
    small, large = subset(1000, 50, 0), subset(1000, 200, 0)
    assert set(small) <= set(large)
    assert set(small) != set(subset(1000, 50, 1))
    used = [set(build(dataclasses.replace(SPEC, subset=10, seed=seed)).image) for seed in (0, 1)]
    assert used[0] == used[1], "seeds share the subset"


def test_the_order_of_each_shift_is_drawn_from_the_seed_and_the_shift() -> None:
    orders = {}
    for seed in (0, 1):
        stream = build(dataclasses.replace(SPEC, seed=seed))
        for number, shift in enumerate(SHIFTS):
            order = stream.image[stream.shift == number]
            rng = np.random.default_rng(derived_seed("order", seed, shift.id, 0))
            assert np.array_equal(order, rng.permutation(np.arange(23, dtype=np.int32)))
            orders[seed, shift] = tuple(order)
    assert len(set(orders.values())) == 6, "no two are alike"


def test_a_derived_seed_is_the_head_of_the_digest_of_its_axes() -> None:
    text = b'["order",3,"fog-5",0]'
    assert derived_seed("order", 3, "fog-5", 0) == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2


# -- visits and images that are only context ---------------------------------------------------------------------------


def mixed(**changes: Any) -> Stream:
    """Six images of two shifts in one segment, batches of two: fog, contrast, fog | contrast, contrast, fog."""
    shifts, flags = (Shift("fog", 5), Shift("contrast", 5)), np.ones(3, dtype=bool)
    made = Stream(shifts, np.array([0, 1, 0, 1, 1, 0], dtype=np.int16), np.arange(6, dtype=np.int32),
                  np.array([0, 2, 4, 6]), ~flags, flags, (Segment("mixed", 0, 0, 3),))  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_trivial_visits_and_grades_leave_the_hash_alone_however_they_are_stored() -> None:
    plain = mixed()
    assert plain.visit.tolist() == [0] * 6
    assert plain.visit.dtype == np.int16
    assert plain.graded.tolist() == [True] * 6
    told = mixed(visits=np.zeros(6, dtype=np.int16), grades=np.ones(6, dtype=bool))
    assert told.sha256 == plain.sha256 == "76575400089fa72f0c212065062f23fc6f567a4a14b67d1dbc607777cc96ff7a"
    later = (Segment("fog-5", 0, 0, 1), Segment("contrast-5", 0, 1, 2), Segment("fog-5", 1, 2, 3))
    assert mixed(segments=later).visit.tolist() == [0, 0, 0, 0, 1, 1]
    assert mixed(segments=later, visits=np.zeros(6, dtype=np.int16)).sha256 != mixed(segments=later).sha256


@pytest.mark.parametrize("name", ["visits", "grades"])
def test_visits_and_grades_are_in_the_hash(name: str) -> None:
    arrays = [np.eye(6, dtype=np.int16)[i] for i in range(6)]
    found = {mixed(**{name: array if name == "visits" else array == 0}).sha256 for array in arrays}
    assert len(found | {mixed().sha256}) == 7


def test_a_probe_is_in_the_hash() -> None:
    assert mixed(segments=(Segment("mixed", 0, 0, 3, "probe"),)).sha256 != mixed().sha256


def test_cells_are_by_segment_shift_and_visit_of_the_graded_images() -> None:
    assert mixed().cells == ((0, 0, 0), (0, 1, 0))
    visits, grades = np.array([0, 0, 1, 0, 0, 1], dtype=np.int16), np.array([1, 0, 1, 1, 1, 1], dtype=bool)
    assert mixed(visits=visits, grades=grades).cells == ((0, 0, 0), (0, 0, 1), (0, 1, 0))
    two = (Segment("a", 0, 0, 1), Segment("a", 1, 1, 3))
    assert mixed(segments=two).cells == ((0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1))
    assert mixed(segments=two).segment.tolist() == [0, 1, 1]
