"""Streams: what protocols make of shifts, and what their hash depends on."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from tta_bench.streams import CLEAN, Shift, StreamSpec, build, derived_seed, specs, subset

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
