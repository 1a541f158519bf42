"""Streams: what protocols make of shifts, and what their hash depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from tta_bench.errors import UsageError
from tta_bench.protocols import Part, Protocol, ProtocolConfig, Source, Streams, assembled
from tta_bench.protocols.continual import Continual
from tta_bench.protocols.mixed import Mixed
from tta_bench.protocols.reset import Reset
from tta_bench.registry import installed
from tta_bench.streams import CLEAN, Segment, Shift, Stream, StreamSpec, derived_seed, shift_of, subset
from tta_bench.testing import stream as stream_of

SHIFTS = (CLEAN, Shift("contrast", 5), Shift("fog", 3))
SPEC = StreamSpec('{"kind":"continual"}', SHIFTS, subset=None, data_seed=0, batch_size=5, seed=0)
LABELS = {CLEAN: np.arange(23) % 4, Shift("contrast", 5): np.arange(23) % 4, Shift("fog", 3): np.arange(23) % 4}


def made(**changes: Any) -> Stream:
    """The whole stream of ``SPEC`` with ``changes``; ``protocol`` gives keys of the suite."""
    return _streams().build("a model", _spec(**changes))


def pieces(**changes: Any) -> list[tuple[StreamSpec, Stream]]:
    return list(_streams().specs("a model", _spec(**changes)))


def _streams() -> Streams:
    return Streams(installed(), lambda _, shift: LABELS[shift])


def _spec(**changes: Any) -> StreamSpec:
    if "protocol" in changes:
        changes["protocol"] = ProtocolConfig(**changes["protocol"]).canonical()
    return dataclasses.replace(SPEC, **changes)


def whole(cls: type[Protocol], **values: Any) -> Stream:
    source = Source(SHIFTS, tuple(LABELS[s] for s in SHIFTS), 5, 0)
    return assembled(cls(cls.Config(kind=cls.name, **values)), source)


def test_continual_visits_every_image_of_every_shift_once_and_never_resets() -> None:
    stream = made()
    for number, segment in enumerate(stream.segments):
        batches = [stream.batch(i) for i in range(segment.first, segment.last)]
        assert segment.name == SHIFTS[number].id
        assert [len(b.image) for b in batches] == [5, 5, 5, 5, 3], "the last batch is short, none crosses the end"
        assert sorted(np.concatenate([b.image for b in batches])) == list(range(23))
        assert {int(s) for b in batches for s in b.shift} == {number}
    assert not stream.reset_before.any()
    assert stream.adapt.all()


def test_reset_is_run_in_a_piece_for_each_shift_with_the_same_order_as_continual() -> None:
    continual = made()
    found = pieces(protocol={"kind": "reset"})
    assert [(spec.piece, spec.shifts, spec.length) for spec, _ in found] == [
        (i, (s,), 23) for i, s in enumerate(SHIFTS)
    ]
    for number, (spec, alone) in enumerate(found):
        assert alone.shifts == (SHIFTS[number],)
        assert alone.segments == (Segment(SHIFTS[number].id, 0, 0, 5),)
        assert np.array_equal(alone.image, continual.image[continual.shift == number])
        assert not alone.reset_before.any()
        assert _streams().build("a model", spec).sha256 == alone.sha256


def test_one_reset_stream_of_several_shifts_resets_between_them_only() -> None:
    assert np.flatnonzero(whole(Reset).reset_before).tolist() == [5, 10]
    assert not whole(Continual).reset_before.any()


def test_mixed_is_one_segment_whose_batches_mix_shifts() -> None:
    stream = whole(Mixed)
    assert stream.segments == (Segment("mixed", 0, 0, 14),)
    assert stream.bounds.tolist() == [*range(0, 69, 5), 69], "cut across shifts, the last batch is short"
    order = np.random.default_rng(derived_seed("order", 0, "mixed", 0)).permutation(69)
    assert np.array_equal(stream.shift, order // 23)
    assert np.array_equal(stream.image, order % 23)
    assert {len(set(stream.batch(i).shift)) for i in range(13)} > {1}
    assert not stream.reset_before.any()
    assert (stream.visit == 0).all()


def test_adapt_images_freezes_each_segment_after_so_many_images_and_keeps_their_order() -> None:
    stream = whole(Reset, adapt_images=10)
    assert stream.adapt.tolist() == [True, True, False, False, False] * 3
    assert np.array_equal(stream.image, whole(Reset).image)
    assert made(graded_after=15).graded_after == 15


class Twice(Protocol):
    """Every shift twice; its images' visits are as a test wants them."""

    visits: np.ndarray | None = None

    def parts(self, source: Source) -> Any:
        for visit in (0, 1):
            for number, shift in enumerate(source.shifts[1:], 1):
                yield dataclasses.replace(source.shuffled(shift.id, visit, [number]), visits=self.visits)


def test_visits_are_those_of_segments_unless_a_protocol_counts_them_itself() -> None:
    source = Source(SHIFTS, tuple(LABELS[s] for s in SHIFTS), 5, 0)
    plain = assembled(Twice(ProtocolConfig(kind="twice")), source)
    assert plain.visit.tolist() == [0] * 46 + [1] * 46
    assert plain.visits is None
    assert [(s.name, s.visit) for s in plain.segments] == [(n, v) for v in (0, 1) for n in ("contrast-5", "fog-3")]
    assert not np.array_equal(plain.image[:23], plain.image[46:69]), "each visit has its own order"
    counted = type("Counted", (Twice,), {"visits": np.arange(23)})(ProtocolConfig(kind="twice"))
    assert assembled(counted, source).visit.tolist() == list(range(23)) * 4
    assert assembled(counted, source).sha256 != plain.sha256


def test_a_protocol_without_images_is_refused() -> None:
    class Nothing(Protocol):
        def parts(self, source: Source) -> Any:
            yield Part("empty", 0, np.zeros(0, dtype=np.int16), np.zeros(0, dtype=np.int32))

    with pytest.raises(UsageError, match="without images"):
        assembled(Nothing(ProtocolConfig(kind="nothing")), Source(SHIFTS, tuple(LABELS.values()), 5, 0))


def part(**changes: Any) -> Part:
    """Two images of the first shift, and one of the second."""
    values = {"name": "p", "visit": 0, "shift": np.array([0, 0, 1]), "image": np.array([5, 22, 0])}
    return Part(**{**values, **changes})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part(image=np.array([5, 23, 0]))], r"wrong part 0 \('p'\): image 23 of shift 'clean', which has 23"),
        ([part(image=np.array([5, -1, 0]))], "image -1 of shift 'clean', which has 23"),
        ([part(shift=np.array([0, 0, 3]))], "shift must be from 0 to 2"),
        ([part(shift=np.array([0, -1, 1]))], "shift must be from 0 to 2"),
        ([part(shift=np.array([0, 0]))], "of unequal length: shift 2, image 3"),
        ([part(visits=np.array([0, 0]))], "of unequal length: shift 3, image 3, visits 2"),
        ([part(visits=np.array([0, 0, -1]))], "visits must be from 0 to 32767"),
        ([part(visits=np.array([0, 0, 40000]))], "visits must be from 0 to 32767"),
        ([part(image=np.array([0.5, 1, 2]))], "image must be a one-dimensional array of whole numbers"),
        ([part(image=[0, 1, 2])], "image must be a one-dimensional array of whole numbers"),
        ([part(shift=np.zeros((3, 1), dtype=int))], "shift must be a one-dimensional array of whole numbers"),
        ([part(visits=np.zeros(3))], "visits must be a one-dimensional array of whole numbers"),
        ([part(name=3)], "its name is no text"),
        ([part(), part()], r"says visit 0 of part 1 \('p'\), but 1 parts before it have its name"),
        ([part(visit=1)], "says visit 1 of part 0"),
        ([part(), (0, 1)], "yields tuple in place of part 1"),
        ([], "without images"),
    ],
)
def test_what_a_protocol_gives_is_checked(parts: list[Any], said: str) -> None:
    class Given(Protocol):
        def parts(self, source: Source) -> Any:
            yield from parts

    with pytest.raises(UsageError, match=f"protocol 'given'.*{said}"):
        assembled(Given(ProtocolConfig(kind="given")), Source(SHIFTS, tuple(LABELS.values()), 5, 0))


def test_resets_that_there_are_not_are_refused() -> None:
    odd = type("Odd", (Continual,), {"resets": "batch"})(Continual.Config(kind="odd"))
    with pytest.raises(UsageError, match="protocol 'odd' resets 'batch': it must be 'segment' or 'never'"):
        assembled(odd, Source(SHIFTS, tuple(LABELS.values()), 5, 0))


@pytest.mark.parametrize(
    ("labels", "batch_size", "said"),
    [
        ({}, 2, "there is no shift"),
        ({"clean": np.arange(4), "fog-5": np.arange(0)}, 2, "shift 'fog-5' has no images"),
        ({"clean": np.arange(4), "fog-5": []}, 2, "shift 'fog-5' has no images"),
        ({"clean": np.arange(4) / 3}, 2, "the labels of shift 'clean' must be a row of whole numbers"),
        ({"clean": np.zeros((4, 2), dtype=int)}, 2, "the labels of shift 'clean' must be a row of whole numbers"),
        ({"clean": np.arange(4)}, 0, "the batch size must be a whole number from 1 on, it is 0"),
        ({"clean": np.arange(4)}, 2.5, "the batch size must be a whole number from 1 on, it is 2.5"),
    ],
)
@pytest.mark.parametrize("kind", ["mixed", "continual", "reset"])
def test_what_no_stream_can_be_made_of_is_refused(kind: str, labels: Any, batch_size: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stream_of({"kind": kind}, labels, batch_size, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"batch_size": 6}, {"subset": 10}, {"protocol": {"kind": "mixed"}}, {"given": SHIFTS[:2]},
        {"protocol": {"kind": "continual", "adapt_images": 5}}, {"graded_after": 5},
    ],
)  # fmt: skip
def test_the_hash_changes_with_everything_in_the_stream(change: dict[str, Any]) -> None:
    assert made(**change).sha256 != made().sha256
    assert made().sha256 == made().sha256


def test_only_graded_images_that_are_not_all_are_in_the_hash() -> None:
    stream = made()
    context = dataclasses.replace(stream, grades=np.arange(69) > 3)
    assert context.sha256 != stream.sha256
    assert stream.graded.all()
    assert context.graded.tolist() == [False] * 4 + [True] * 65


def test_hashes_are_those_of_earlier_versions() -> None:
    """Else every finished trial would run again."""
    assert made().sha256 == "050882bf60942132c89d99cdfee28c8ef280aca3a545908a8eedf6dcf90a690f"
    [(_, first), *_] = pieces(protocol={"kind": "reset", "adapt_images": 10}, graded_after=15, subset=20, seed=3)
    assert first.sha256 == "90b2c370504a79a8a56730ddc15138ae0fcbf4cd2ab9e3ea156db3f15159e104"


def test_subsets_are_nested_and_drawn_by_the_data_seed_alone() -> None:
    small, large = subset(1000, 50, 0), subset(1000, 200, 0)
    assert set(small) <= set(large)
    assert set(small) != set(subset(1000, 50, 1))
    used = [set(made(subset=10, seed=seed).image) for seed in (0, 1)]
    assert used[0] == used[1] == set(subset(23, 10, 0)), "seeds share the subset"


def test_the_order_of_each_shift_is_drawn_from_the_seed_and_the_shift() -> None:
    orders = {}
    for seed in (0, 1):
        stream = made(seed=seed)
        for number, shift in enumerate(SHIFTS):
            order = stream.image[stream.shift == number]
            rng = np.random.default_rng(derived_seed("order", seed, shift.id, 0))
            assert np.array_equal(order, rng.permutation(np.arange(23, dtype=np.int32)))
            orders[seed, shift] = tuple(order)
    assert len(set(orders.values())) == 6, "no two are alike"


def test_a_derived_seed_is_the_head_of_the_digest_of_its_axes() -> None:
    text = b'["order",3,"fog-5",0]'
    assert derived_seed("order", 3, "fog-5", 0) == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2


def test_shifts_have_ids() -> None:
    pair = Shift.compound(Shift("gaussian_noise", 2.25), Shift("fog", 1.5))
    assert pair.id == "gaussian_noise-2.25+fog-1.5"
    assert (Shift("contrast", 5).id, CLEAN.id, Shift("sketch", None, "variant").id) == ("contrast-5", "clean", "sketch")
    assert [shift_of(name).id for name in ("clean", "motion-blur-3", "sketch")] == ["clean", "motion-blur-3", "sketch"]
    assert shift_of("motion-blur-3") == Shift("motion-blur", 3)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"kind": "continuall"}, "unknown protocol 'continuall'"),
        ({"kind": "mixed", "variannt": 1}, "unknown key 'variannt' in protocol 'mixed'"),
        ({"kind": "mixed", "adapt_images": 0}, "give a number of images, or all"),
        ({"kind": "mixed", "adapt_images": [5, 5]}, "5 is listed twice"),
        ({"kind": "mixed", "adapt_images": [5, "all"]}, "give single values, not lists: adapt_images"),
        ({}, "missing key 'kind'"),
    ],
)
def test_wrong_protocols_are_refused(protocol: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stream_of(protocol, {"clean": np.arange(4)}, 2, 0)


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
