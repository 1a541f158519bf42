"""Protocols: their streams are the published ones bit for bit, and what cannot be followed is refused with a hint."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tta_bench import suite
from tta_bench.data.generated import Generated
from tta_bench.errors import UsageError
from tta_bench.protocols import ProtocolConfig
from tta_bench.protocols.markov import _Chain
from tta_bench.protocols.published.chunks import by_class
from tta_bench.registry import PROTOCOLS, installed
from tta_bench.schedule import preflight
from tta_bench.streams import CLEAN, COMPOUND, Shift, Stream
from tta_bench.suite import plan
from tta_bench.suite.loader import configured
from tta_bench.testing import stream

SuiteFile = Callable[..., pathlib.Path]

# -- given streams -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(shared: pathlib.Path) -> pathlib.Path:
    """The folder of reference streams, most of them made by running the published code."""
    return shared / "golden" / "streams"


def made(given: pathlib.Path, case: Mapping[str, Any]) -> Stream:
    labels = np.load(given / f"labels_{case['labels']}.npz")
    of_shifts = {name: labels[name] for name in case["label_shifts"]}
    return stream(filled(case["protocol"], given), of_shifts, case["batch_size"], case["seed"])


def filled(value: Any, given: pathlib.Path) -> Any:
    """A protocol with its arrays in place of ``@FILE``, and paths in place of ``./FILE``."""
    if isinstance(value, dict):
        return {key: filled(item, given) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("@"):
        return dict(np.load(given / value[1:]))
    return str(given / value[2:]) if isinstance(value, str) and value.startswith("./") else value


def differences(given: pathlib.Path, case: Mapping[str, Any]) -> list[str]:
    """What differs of a case's stream from the stored one."""
    found, stored = made(given, case), np.load(given / f"{case['name']}.npz")
    names = ("image", "visit", "bounds", "reset_before", "adapt", "graded")
    unequal = [n for n in names if not np.array_equal(getattr(found, n), stored[n])]
    unequal += [f"{n}'s type" for n in names if getattr(found, n).dtype != stored[n].dtype]
    ids = [shift.id for shift in found.shifts]
    if [ids[k] for k in found.shift] != [case["shifts"][k] for k in stored["shift"]]:
        unequal.append("shift")
    if [[s.name, s.visit, s.first, s.last] for s in found.segments] != case["segments"]:
        unequal.append("segments")
    return unequal


def test_every_given_stream_is_equal_bit_for_bit(given: pathlib.Path) -> None:
    cases = json.loads((given / "manifest.json").read_text())["cases"]
    assert len(cases) >= 284
    assert {case["name"]: unequal for case in cases if (unequal := differences(given, case))} == {}


def test_every_protocol_that_must_be_refused_is(given: pathlib.Path) -> None:
    cases = json.loads((given / "manifest.json").read_text())["refused"]
    assert len(cases) >= 101
    accepted = []
    for case in cases:
        try:
            made(given, case)
            accepted.append(case["name"])
        except UsageError as error:
            [problem] = error.problems
            assert problem.message, case["name"]
    assert accepted == []


# -- each kind on a small example, by hand -----------------------------------------------------------------------------

TWO = {"contrast-5": np.array([1, 0, 1, 0]), "fog-5": np.array([0, 0, 1, 1])}
EVEN = {"contrast-5": np.arange(120) % 3, "fog-5": np.arange(120) % 3}
LADDER = {f"{name}-{s}": np.arange(6) % 2 for name in ("fog", "snow") for s in (1, 2)}


def made_of(protocol: dict[str, Any], labels: Mapping[str, np.ndarray] = TWO, batch: int = 2, seed: int = 0) -> Stream:
    return stream(protocol, labels, batch, seed)


def labels_in_order(found: Stream, labels: Mapping[str, np.ndarray]) -> list[int]:
    return [int(labels[found.shifts[s].id][i]) for s, i in zip(found.shift, found.image, strict=True)]


def pairs(found: Stream) -> list[tuple[str, int]]:
    return [(found.shifts[s].id, int(i)) for s, i in zip(found.shift, found.image, strict=True)]


def names(found: Stream) -> list[tuple[str, int]]:
    return [(segment.name, segment.visit) for segment in found.segments]


EVERY_IMAGE_ONCE = sorted((name, i) for name in EVEN for i in range(120))


@pytest.mark.parametrize("variant", [{}, {"variant": "md"}])
def test_delta_0_sorts_each_part_by_label(variant: dict[str, str]) -> None:
    assert labels_in_order(made_of({"kind": "reset", "delta": 0} | variant), TWO) == [0, 0, 1, 1] * 2
    assert labels_in_order(made_of({"kind": "mixed", "delta": 0} | variant), TWO) == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    "protocol",
    [
        {"kind": "continual"}, {"kind": "continual", "variant": "md"}, {"kind": "continual", "variant": "rotta"},
        {"kind": "continual", "variant": "ttab"}, {"kind": "reset", "variant": "note"}, {"kind": "mixed"},
        {"kind": "mixed", "variant": "md"}, {"kind": "recurring", "visits": 1},
    ],
)  # fmt: skip
def test_a_small_delta_correlates_labels_over_time_and_loses_no_image(protocol: dict[str, Any]) -> None:
    found = {delta: made_of({**protocol, "delta": delta}, EVEN, 4) for delta in (0.3, 1000.0)}
    changes = {delta: np.count_nonzero(np.diff(labels_in_order(s, EVEN))) for delta, s in found.items()}
    assert all(sorted(pairs(s)) == EVERY_IMAGE_ONCE for s in found.values())
    assert changes[0.3] < changes[1000.0]


def test_variant_md_repeats_its_order_and_draws_a_number_of_images() -> None:
    found = made_of({"kind": "continual", "variant": "md", "images": 7}, EVEN)
    assert np.array_equal(found.image[:7], found.image[7:])
    assert len(made_of({"kind": "mixed", "variant": "md", "images": 7}, EVEN).image) == 7


def test_variant_sar_is_the_order_of_torchs_loader() -> None:
    """RandomState(2021)'s third and fourth words seed ``torch.randperm(4)``."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(2021)
    for number in (0, 1):
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
        found = made_of({"kind": "reset", "variant": "sar"}, seed=2021)
        assert found.image[found.shift == number].tolist() == order


def test_images_of_a_class_keep_their_order_and_later_classes_are_left_out() -> None:
    found = by_class(np.array([2, 0, 5, 2, 0, 2]), 4)
    assert [rows.tolist() for rows in found] == [[1, 4], [], [0, 3, 5], []]


def test_variant_note_drops_a_short_batch_and_rotta_a_last_single_image() -> None:
    assert len(made_of({"kind": "reset", "variant": "note"}, batch=3).image) == 6
    assert len(made_of({"kind": "continual", "variant": "rotta", "delta": 1}, batch=7).image) == 7
    assert names(made_of({"kind": "continual", "variant": "rotta", "delta": 1}, batch=3)) == [("stream", 0)]


def test_variant_tribe_thins_classes_out() -> None:
    protocol = {"kind": "continual", "variant": "tribe", "delta": 1, "imbalance_factor": 4}
    assert np.bincount(labels_in_order(made_of(protocol, EVEN), EVEN)).tolist() == [80, 40, 20]


def test_a_stored_order_holds_for_every_shift(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "order.npy", np.array([2, 0, 3]))
    found = made_of({"kind": "continual", "order": str(tmp_path / "order.npy")})
    assert pairs(found) == [(name, i) for name in TWO for i in (2, 0, 3)]


def test_gradual_goes_up_and_down_for_each_corruption() -> None:
    found = made_of({"kind": "gradual", "severities": [1, 2, 1]}, LADDER)
    assert names(found) == [(f"{c}-{s}", v) for c in ("fog", "snow") for s, v in ((1, 0), (2, 0), (1, 1))]
    assert not found.reset_before.any()
    assert found.image[:6].tolist() != found.image[12:18].tolist(), "each visit has its own order"


def test_recurring_comes_back_to_each_shift() -> None:
    assert names(made_of({"kind": "recurring", "visits": 2})) == [(n, v) for v in (0, 1) for n in TWO]
    petta = made_of({"kind": "recurring", "visits": 2, "variant": "petta", "delta": 1}, batch=3)
    assert names(petta) == [("stream", 0)]
    assert petta.visit.tolist() == [0] * 8 + [1] * 7, "of 16 images the last single one is dropped"


def test_in_and_out_takes_a_part_of_both_sides() -> None:
    found = made_of({"kind": "in_out", "source": "fog-5", "ratio": 0.5})
    assert sorted(found.shift.tolist()) == [0, 0, 1, 1]
    by_shift = [set(found.image[found.shift == number]) for number in (0, 1)]
    assert by_shift[0] == by_shift[1], "equal sizes give the same images"
    assert len(made_of({"kind": "in_out", "source": "fog-5", "ratio": 1}).image) == 8


def test_an_infinite_imbalance_gives_each_class_a_block_of_its_own() -> None:
    found = made_of({"kind": "label_shift", "imbalance_ratio": float("inf"), "samples": 7})
    first, second = np.array(labels_in_order(found, TWO)).reshape(2, 6)
    assert sorted([first[:3].tolist(), first[3:].tolist()]) == [[0] * 3, [1] * 3], "the seventh is not drawn"
    assert first.tolist() == second.tolist(), "the same sequence for each shift"
    assert np.flatnonzero(found.reset_before).tolist() == [3]


def test_a_stored_order_of_classes_rules_the_blocks_of_variant_sar(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "orders.npz", ratio_500000=np.array([1, 0]))
    protocol = {"kind": "label_shift", "variant": "sar", "samples": 8, "class_order": str(tmp_path / "orders.npz")}
    assert labels_in_order(made_of(protocol), TWO) == [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4


@pytest.mark.parametrize("own", [{"slots": 4}, {"variant": "dpcore", "distribution": "multinomial"}])
def test_random_runs_show_every_image_once_in_runs_of_one_shift(own: dict[str, Any]) -> None:
    found = made_of({"kind": "random_runs", **own}, EVEN, 7)
    assert sorted(pairs(found)) == EVERY_IMAGE_ONCE
    shown = [name for name, _ in names(found)]
    assert all(a != b for a, b in itertools.pairwise(shown))
    assert max(shown.count(name) for name in EVEN) >= 2
    assert [v for n, v in names(found) if n == "fog-5"] == list(range(shown.count("fog-5")))


def test_a_chain_keeps_its_imbalance_where_its_correlation_allows_it() -> None:
    """0.1 · 3 <= 1/2: shares 3/4 and 1/4, which stay at 0.9 and 0.7, so that 3/4 · 0.1 leave as 1/4 · 0.3 come back."""
    chain = _Chain.of(2, 0.9, 3)
    assert chain.consistent
    assert np.allclose(chain.shares, [0.75, 0.25])
    assert np.allclose(chain.transitions, [[0.9, 0.1], [0.3, 0.7]])
    assert not _Chain.of(2, 0.8, 3).consistent


def test_markov_visits_each_pair_of_shift_and_class_as_often_as_its_share() -> None:
    chains = {
        f"{which}_{what}": 0.4 if what == "correlation" else 2
        for which in ("domain", "class")
        for what in ("correlation", "imbalance")
    }
    found = made_of({"kind": "markov", **chains, "state_samples": 8}, batch=1)
    visits = np.zeros((2, 2), dtype=int)
    np.add.at(visits, (found.shift, labels_in_order(found, TWO)), 1)
    assert visits.tolist() == [[8, 4], [4, 2]]
    assert names(found) == [("stream", 0)]


def test_ccc_walks_along_the_path_whose_mean_accuracy_is_nearest() -> None:
    """Rows of [[10, 20], [30, 40]] at 25: from (1, 0) to the right, as (10 + 30)/2 is no nearer than (40 + 20 + 30)/3."""
    noises = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
              "snow", "frost", "fog", "contrast", "elastic", "pixelate")  # fmt: skip
    accuracy = {f"{a}+{b}": np.array([[10, 20], [30, 40]]) for a in noises for b in noises}
    found = made_of(
        {"kind": "ccc", "baseline": 25, "speed": 3, "images": 17, "accuracy": accuracy}, {"clean": np.arange(5)}, 4
    )
    ids = [found.shifts[s].id for s in found.shift]
    first, second = ids[3].split("+")
    assert ids[:9] == [first] * 3 + [f"{first}+{second}"] * 3 + [second] * 3
    assert ids[9] == second, "the next pair begins with the second of the last"
    assert found.visit.tolist() == [0] * 9 + [1] * 8
    assert len(found.image) == 17
    assert len(set(found.image[:3].tolist())) == 3


def test_a_recorded_stream_is_shown_as_it_is(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "s.npz", shift=["fog-5", "fog-5", "contrast-5"], image=[3, 3, 0], bounds=[0, 1, 3],
             adapt=[False, True], reset_before=[True, True], graded=[True, False, True], segment=[0, 1])  # fmt: skip
    found = made_of({"kind": "file", "stream": str(tmp_path / "s.npz")}, batch=64)
    assert pairs(found) == [("fog-5", 3), ("fog-5", 3), ("contrast-5", 0)]
    assert names(found) == [("fog-5", 0), ("stream", 0)]
    assert found.bounds.tolist() == [0, 1, 3]
    assert found.adapt.tolist() == [False, True]
    assert found.reset_before.tolist() == [False, True], "a trial starts reset"
    assert found.graded.tolist() == [True, False, True]


# -- what every kind has -----------------------------------------------------------------------------------------------


def test_a_window_holds_the_latest_images_and_grades_the_newest() -> None:
    found = made_of({"kind": "continual", "window": 3}, batch=1)
    order = made_of({"kind": "continual"}, batch=1).image.tolist()
    buffers = [[0], [0, 1], [0, 1, 2], [3, 1, 2], [3, 4, 2], [3, 4, 5], [6, 4, 5], [6, 7, 5]]
    assert [found.batch(t).image.tolist() for t in range(8)] == [[order[i] for i in b] for b in buffers]
    assert found.adapt.tolist() == [False, False, True, False, False, True, False, False]
    newest = [b.index(t) for t, b in enumerate(buffers)]
    assert [np.flatnonzero(found.graded[a:b]).tolist() for a, b in itertools.pairwise(found.bounds)] == [
        [n] for n in newest
    ]


@pytest.mark.parametrize(
    ("adapt", "flags"),
    [
        ({"every": 3}, [1, 0, 0, 1]),
        ({"first": 5}, [1, 1, 1, 0]),
        ({"first": "all"}, [1, 1, 1, 1]),
        ({"eta": 1.0, "cost_ratio": 2.1}, [1, 0, 0, 1]),
        ({"eta": 0.5, "cost_ratio": 4}, [1, 0, 1, 0]),
        ({"eta": 0, "cost_ratio": 9}, [1, 1, 1, 1]),
    ],
)
def test_rules_of_adaptation_start_anew_in_each_part(adapt: dict[str, Any], flags: list[int]) -> None:
    labels = {name: np.arange(8) for name in TWO}
    assert made_of({"kind": "continual", "adapt": adapt}, labels).adapt.tolist() == [bool(f) for f in flags * 2]


def test_cost_ratios_are_used_one_after_another_through_the_whole_stream() -> None:
    labels = {name: np.arange(8) for name in TWO}
    found = made_of({"kind": "continual", "adapt": {"eta": 1, "cost_ratio": [3, 1, 2]}}, labels)
    assert found.adapt.tolist() == [True, False, False, True, True, False, True, False]


def test_adapting_on_the_first_images_of_some_classes_moves_them_to_the_front() -> None:
    found = made_of({"kind": "continual", "adapt": {"first": 7, "classes": 1}}, EVEN, 4)
    front = [labels_in_order(found, EVEN)[start : start + 7] for start in (0, 120)]
    assert len({label for part in front for label in part}) == 1
    assert np.flatnonzero(found.adapt).tolist() == [0, 1, 31, 32], "of 120 images, 7 and 113 in batches of 4"
    assert sorted(pairs(found)) == EVERY_IMAGE_ONCE


@pytest.mark.parametrize(
    ("reset", "flags"),
    [
        ({"reset": "never"}, [0, 0, 0, 0]),
        ({"reset": "segment"}, [0, 0, 1, 0]),
        ({"reset": "batch"}, [0, 1, 1, 1]),
        ({"episodic": True}, [0, 1, 1, 1]),
        ({"reset": {"every": 3}}, [0, 0, 0, 1]),
        ({"reset": {"every": 1}, "adapt": {"every": 2}}, [0, 1, 0, 1]),
    ],
)
@pytest.mark.parametrize("kind", ["reset", "continual"])
def test_when_a_method_starts_anew(kind: str, reset: dict[str, Any], flags: list[int]) -> None:
    assert made_of({"kind": kind, **reset}).reset_before.tolist() == [bool(f) for f in flags]


def test_a_probe_follows_each_part_and_is_only_predicted() -> None:
    found = made_of({"kind": "reset", "probe": {"shift": "clean", "images": 1}}, {**TWO, "clean": np.arange(3)})
    assert names(found) == [("contrast-5", 0), ("clean", 0), ("fog-5", 0), ("clean", 1)]
    assert [s.role for s in found.segments] == ["stream", "probe"] * 2
    assert found.adapt.tolist() == [True, True, False] * 2
    assert np.flatnonzero(found.reset_before).tolist() == [3], "not before probes"


def test_the_seed_draws_the_order_of_shifts() -> None:
    labels = {f"fog-{s}": np.arange(2) for s in range(1, 6)}
    orders = {
        tuple(n for n, _ in names(made_of({"kind": "continual", "shift_order": "seed"}, labels, seed=s)))
        for s in range(4)
    }
    assert len(orders) > 1
    assert all(sorted(order) == sorted(labels) for order in orders)


OPTIONS: list[dict[str, Any]] = [
    {"kind": "continual", "adapt": {"first": "all", "classes": 2}, "reset": {"every": 2}, "probe": {"shift": "fog-5"}},
    {"kind": "continual", "adapt": {"eta": 0.5, "cost_ratio": [1, 2.5]}, "delta": 0.1, "shift_order": "seed"},
    {"kind": "label_shift", "imbalance_ratio": float("inf"), "samples": 4},
    {"kind": "reset", "variant": "md", "images": 3, "episodic": True},
    {"kind": "random_runs", "variant": "dpcore", "distribution": "multinomial"},
]


@pytest.mark.parametrize("protocol", OPTIONS)
def test_a_streams_spec_makes_the_same_stream_again(protocol: dict[str, Any]) -> None:
    config = configured(PROTOCOLS, protocol, installed())
    assert isinstance(config, ProtocolConfig)
    again = type(config).model_validate_json(config.canonical())
    assert again.canonical() == config.canonical()
    assert made_of(json.loads(config.canonical())).sha256 == made_of(protocol).sha256


@pytest.mark.parametrize(
    ("protocol", "name", "values"),
    [
        ({"kind": "continual", "delta": [0, 0.1]}, "delta", [0.0, 0.1]),
        ({"kind": "continual", "adapt": {"every": [1, 5]}}, "adapt", [{"every": 1}, {"every": 5}]),
        ({"kind": "continual", "adapt": {"first": [4, "all"]}}, "adapt_images", [4, None]),
        ({"kind": "label_shift", "imbalance_ratio": [1, 1000]}, "imbalance_ratio", [1.0, 1000.0]),
    ],
)
def test_a_list_makes_a_protocol_for_each_value(protocol: dict[str, Any], name: str, values: list[Any]) -> None:
    config: Any = configured(PROTOCOLS, protocol, installed())
    assert [single.values()[name] for single in config.singles()] == values


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "said", "hint"),
    [
        ({"kind": "practical"}, "unknown protocol 'practical'", "{kind: continual, variant: rotta"),
        ({"kind": "PTTA"}, "unknown protocol", "{kind: continual, variant: rotta"),
        ({"kind": "dirichlet"}, "unknown protocol", "delta"),
        ({"kind": "non-iid"}, "unknown protocol", "delta"),
        ({"kind": "correlated"}, "unknown protocol", "delta"),
        ({"kind": "mix_shifts"}, "unknown protocol", "kind mixed"),
        ({"kind": "online imbalance"}, "unknown protocol", "label_shift"),
        ({"kind": "cdc"}, "unknown protocol", "random_runs"),
        ({"kind": "lifelong"}, "unknown protocol", "kind recurring"),
        ({"kind": "mixed", "variant": "petta"}, "mixed has no variant 'petta'", "{kind: recurring, variant: petta"),
        ({"kind": "ccc", "variant": "md", "baseline": 0, "speed": 1, "accuracy": {}}, "ccc has no variant 'md'", "mariodoebler/test-time-adaptation"),
        ({"kind": "continual", "variant": "rotta"}, "rotta needs delta", "delta: 0.1"),
        ({"kind": "continual", "variant": "ttab", "delta": 0}, "no order sorted by label", "positive"),
        ({"kind": "reset", "variant": "sar", "delta": 1}, "variant sar has none", "leave one of them out"),
        ({"kind": "reset", "images": 2}, "only variant md has it", "max_images"),
        ({"kind": "reset", "variant": "note", "delta": 1}, "2 chunks of 10 images or more cannot be made of 4", "own order"),
        ({"kind": "gradual"}, "there is no shift contrast-1", "severities"),
        ({"kind": "in_out"}, "there is no shift 'clean'", "contrast-5, fog-5"),
        ({"kind": "label_shift", "samples": 1}, "1 samples are fewer than the 2 classes", "give 2 or more"),
        ({"kind": "reset", "window": 2}, "needs batches of 1, not of 2", "batch_size: 1"),
        ({"kind": "reset", "probe": {"shift": "snow-5"}}, "there is no shift 'snow-5'", "contrast-5, fog-5"),
        ({"kind": "reset", "adapt": {"first": 2, "every": 2}}, "gives two rules, first and every", "one of first"),
        ({"kind": "reset", "adapt": {"eta": 1}}, "eta needs cost_ratio", "cost_ratio: …"),
        ({"kind": "reset", "adapt": {"eta": 1, "cost_ratio": "measure"}}, "only a run can measure it", "give a number"),
        ({"kind": "reset", "adapt": {"first": 2, "classes": 3}}, "3 classes of only 2", "give fewer"),
        ({"kind": "reset", "episodic": True, "reset": "never"}, "conflicts with reset", "reset: batch"),
        ({"kind": "file", "stream": "x.npz", "window": 2}, "is fixed by the recorded stream", "leave it out"),
        ({"kind": "file", "stream": "nowhere.npz"}, "no such file: nowhere.npz", "relative paths start at"),
        ({"kind": "ccc", "baseline": 0, "speed": 1, "accuracy": {}}, "clean images alone", "corruptions: [clean]"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_with_a_hint(protocol: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        made_of(protocol)
    [problem] = raised.value.problems
    assert said in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize("protocol", [{"kind": "reset", "variant": "md"}, {"kind": "mixed", "variant": "sar"}])
def test_seeds_that_published_code_cannot_take_are_refused(protocol: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"seed 4294967296: published code takes seeds below 2\*\*32"):
        made_of(protocol, seed=2**32)
    assert len(made_of({"kind": "mixed"}, seed=2**32).image) == 8


# -- in a suite --------------------------------------------------------------------------------------------------------


def planned(file: pathlib.Path, protocol: str, *sets: str) -> plan.Plan:
    return plan.make(suite.load(str(file), sets=[f"protocol={protocol}", *sets]))


def test_a_refused_value_is_shown_at_its_place(suite_file: SuiteFile) -> None:
    file = suite_file(("seeds: [0]", "seeds: [0]\nprotocol:\n  kind: continual\n  variant: md\n  delta: 0.1"))
    with pytest.raises(UsageError) as raised:
        plan.make(suite.load(str(file), sets=["data.max_images=20"]))
    assert raised.value.problems[0].where.endswith("small.yaml:19:10")
    file = suite_file(("seeds: [0]", "seeds: [0]\nprotocol:\n  kind: continual\n  adapt: {first: 4, every: 2}"))
    with pytest.raises(UsageError) as raised:
        suite.load(str(file))
    assert raised.value.problems[0].where.endswith("small.yaml:18:10")


def test_a_probe_need_not_be_among_the_suites_shifts(suite_file: SuiteFile) -> None:
    file = suite_file(("[clean, contrast]", "[contrast, fog]"), ("[source, tent]", "[source]"))
    trials = planned(file, "{kind: reset, probe: {shift: clean}}").trials
    assert [[shift.id for shift in t.stream.shifts] for t in trials] == [["contrast-5", "clean"], ["fog-5", "clean"]]
    [trial] = planned(file, "{kind: continual, probe: {shift: clean, images: 10}}").trials
    assert trial.stream.length == 220
    with pytest.raises(UsageError, match="unknown shift 'haze-5'"):
        planned(file, "{kind: continual, probe: {shift: haze-5}}")


@pytest.mark.parametrize(("reset", "trials"), [("segment", 2), ("batch", 1), ("{every: 2}", 1), ("never", 1)])
def test_only_resets_between_segments_make_trials_of_their_own(suite_file: SuiteFile, reset: str, trials: int) -> None:
    made = planned(suite_file(("[source, tent]", "[source]")), f"{{kind: continual, reset: {reset}}}")
    streams = [made.materials.streams().build(t.model, t.stream) for t in made.trials]
    assert [len(found.segments) for found in streams] == [2 // trials] * trials
    assert (
        sum(int(found.reset_before.sum()) for found in streams)
        == {"segment": 0, "batch": 5, "{every: 2}": 2, "never": 0}[reset]
    )


def test_gradual_is_one_stream_of_all_severities(suite_file: SuiteFile) -> None:
    file = suite_file(
        ("[clean, contrast]", "[contrast]"), ("severities: [5]", "severities: [1, 2]"), ("[source, tent]", "[source]")
    )
    [trial] = planned(file, "{kind: gradual, severities: [1, 2, 1]}").trials
    assert [shift.id for shift in trial.stream.shifts] == ["contrast-1", "contrast-2"]
    assert trial.stream.length == 300


@pytest.fixture
def ccc(tmp_path: pathlib.Path) -> str:
    """A short walk over noises and contrast."""
    noises = ("gaussian_noise", "shot_noise", "impulse_noise", "contrast")
    matrix = np.add.outer(np.linspace(50, -20, 21), np.linspace(50, -20, 21))
    np.savez(tmp_path / "a.npz", **{f"{a}+{b}": matrix for a in noises for b in noises if a != b})  # type: ignore[arg-type]
    return f"{{kind: ccc, baseline: 10, speed: 10, images: 5000, accuracy: {tmp_path}/a.npz}}"


def test_compounds_are_digested_at_once_and_never_cached(
    suite_file: SuiteFile, ccc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested, fingerprint = list[Shift](), Generated.fingerprint
    monkeypatch.setattr(
        Generated, "fingerprint", lambda self, shift, *rest: digested.append(shift) or fingerprint(self, shift, *rest)
    )
    made = planned(suite_file(("[clean, contrast]", "[clean]"), ("[source, tent]", "[source, tent, norm]")), ccc)
    assert digested == [CLEAN, COMPOUND]
    assert len(made.trials) == 3
    assert len(made.trials[0].stream.shifts) > 200
    assert made.trials[0].stream.length == 5000
    assert made.cache_entries() == []
    assert preflight.find_problems(preflight.requirements(made.materials, made.trials)) == []


@pytest.mark.parametrize("change", ["data.seed=1", "data.strengths=imagenet", "data.max_images=90"])
def test_a_compound_of_other_images_is_of_other_data(suite_file: SuiteFile, ccc: str, change: str) -> None:
    file = suite_file(("[clean, contrast]", "[clean]"), ("[source, tent]", "[source]"))
    one, other = (planned(file, ccc, *more).trials[0] for more in ([], [change]))
    assert one.asked["data"] != other.asked["data"]
    assert one.key != other.key


def test_ccc_is_refused_where_images_are_stored(
    suite_file: SuiteFile, ccc: str, tmp_path: pathlib.Path, digit_folder: pathlib.Path
) -> None:
    data = f"{{kind: imagenet_c, root: {tmp_path}, source: {digit_folder}}}"
    file = suite_file(("[clean, contrast]", "[clean]"), ("{kind: digits, max_images: 100}", data))
    with pytest.raises(UsageError, match="ImageNet-C has one published corruption at a time") as caught:
        planned(file, ccc.replace("speed: 10", "speed: 3"))
    assert "such as folder or digits" in caught.value.problems[0].hint
