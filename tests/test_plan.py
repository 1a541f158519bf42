"""Plans: what is in a trial's key, what is not, and choosing among trials."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tta_bench import suite
from tta_bench.errors import UsageError
from tta_bench.suite import plan
from tta_bench.suite.select import Filter

Plans = Callable[..., plan.Plan]


@pytest.fixture
def make(suite_file: Callable[..., pathlib.Path]) -> Plans:
    def call(*replacements: tuple[str, str], sets: tuple[str, ...] = (), limit: int | None = None) -> plan.Plan:
        return plan.make(suite.load(str(suite_file(*replacements)), sets=sets), limit)

    return call


def keys(made: plan.Plan, label: str = "tent") -> list[str]:
    return [t.key for t in made.trials if t.label == label]


def test_planning_twice_gives_the_same_keys(make: Plans) -> None:
    assert keys(make()) == keys(make())
    assert len(set(keys(make()))) == 2


@pytest.mark.parametrize(
    "change",
    ["seeds=[1]", "batch_size=20", "precision=float64", "data.seed=3", "data.max_images=50", "protocol.kind=continual",
     "methods=[{name: tent, config: {lr: 0.1}}]", "methods=[{name: tent, config: {optimizer: adam}}]",
     "methods=[{name: tent, config: {optimizer_options: {momentum: 0.5}}}]"],
)  # fmt: skip
def test_whatever_changes_a_number_changes_the_key(make: Plans, change: str) -> None:
    assert not set(keys(make(sets=(change,)))) & set(keys(make()))


def test_what_changes_no_number_changes_no_key(make: Plans) -> None:
    before = keys(make())
    assert keys(make(("[source, tent]", "[norm, tent]"))) == before, "other methods"
    assert keys(make(("[clean, contrast]", "[clean, contrast, fog]")))[:2] == before, "other corruptions"
    assert keys(make(("name: small", "name: other"))) == before, "the suite's name"
    assert keys(make(("[source, tent]", "[{name: tent, label: x}]")), "x") == before, "the row's name"
    assert keys(make(("[source, tent]", "[{name: tent, config: {lr: 2.5e-4}}]"))) == before, "a default written out"


def test_adapt_images_may_be_more_than_a_shift_has_where_a_segment_mixes_shifts(make: Plans) -> None:
    more = "protocol={kind: %s, adapt_images: %d}"
    made = make(sets=(more % ("mixed", 160),))
    assert {t.stream.graded_after for t in made.trials} == {160}
    with pytest.raises(UsageError, match="adapt_images 200 leaves none of 200 images of segment mixed to grade"):
        make(sets=(more % ("mixed", 200),))
    with pytest.raises(UsageError, match="adapt_images 80 leaves none of 80 images of segment mixed to grade"):
        make(sets=(more % ("mixed", 80),), limit=40)
    for kind in ("reset", "continual"):
        assert make(sets=(more % (kind, 80),)).trials
        with pytest.raises(UsageError, match="adapt_images 120 leaves none of 100 images of segment clean to grade"):
            make(sets=(more % (kind, 120),))


def test_per_model_and_grid_win_over_config_and_preset(make: Plans) -> None:
    methods = "[{name: tent, config: {lr: 0.1}, per_model: {resnet_bn: {lr: 0.2}}}, " \
              "{name: tent, label: g, grid: {lr: [0.3, 0.4], steps: [1, 2]}}]"  # fmt: skip
    made = make(("[source, tent]", methods), ("stem: cifar", "stem: cifar\n    preset: cifar10"))
    found = {t.label: (t.config["lr"], t.config["optimizer"], t.preset) for t in made.trials}
    assert found["tent"] == (0.2, "adam", "cifar10")
    assert found["g[lr=0.3,steps=2]"] == (0.3, "adam", "cifar10")
    assert len(found) == 5


def test_source_images_are_in_the_key_only_where_the_hyperparameters_ask_for_them(make: Plans) -> None:
    shared = "checkpoint: 'package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors'"
    methods = (
        f"[{{name: mgg, config: {{{shared}}}}}, {{name: mgg, label: e, config: {{objective: entropy, {shared}}}}}]"
    )
    asked = {t.label: "source" in t.asked for t in make(("[source, tent]", methods)).trials}
    assert asked == {"mgg": True, "e": False}


def test_limit_takes_the_place_of_max_images(make: Plans) -> None:
    assert make(limit=30).trials[0].stream.length == 30
    assert make().trials[0].stream.length == 100
    assert make(limit=5000).trials[0].stream.length == 1000


def test_only_selects_united_conjunctions(make: Plans) -> None:
    trials = make(("severities: [5]", "severities: [3, 5]"), ("[source, tent]", "[source, norm, tent]")).trials

    def chosen(*only: str) -> list[tuple[str, str]]:
        return [(t.label, t.stream.shifts[0].id) for t in Filter(only).select(trials)]

    assert chosen("method=source|norm,corruption=contrast,severity=3") == [
        ("source", "contrast-3"),
        ("norm", "contrast-3"),
    ]
    assert chosen("method=tent,severity=5") == [("tent", "clean"), ("tent", "contrast-5")], "clean has no severity"
    assert len(chosen("method=source", "method=tent,severity=5")) == 5
    assert len(chosen()) == 9


@pytest.mark.parametrize(
    ("only", "message"),
    [("method=tnet", "no trial has method 'tnet'"), ("sverity=5", "unknown field 'sverity'"),
     ("severity=2", "no trial has severity '2'"), ("method", "is not field=value"),
     ("method=tent,severity=5,method=source", "'method' is given twice")],
)  # fmt: skip
def test_bad_selections_are_refused(make: Plans, only: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Filter([only]).select(make().trials)


LABELS = {
    "two grids": "[{name: tent, grid: {lr: [0.1]}}, {name: tent, label: 'tent[lr=0.1]'}]",
    "one value twice": "[{name: tent, grid: {lr: [0.1, 0.10]}}]",
    "number and text": "[{name: tent, grid: {lr: [1, '1']}}]",
    "two ways to write é": '[{name: tent, label: "\\u00e9"}, {name: source, label: "e\\u0301"}]',
}


@pytest.mark.parametrize("methods", LABELS.values(), ids=LABELS)
def test_labels_that_clash_once_grids_are_expanded_are_refused(make: Plans, methods: str) -> None:
    with pytest.raises(UsageError, match="two rows have the label"):
        make(("[source, tent]", methods))


def test_a_label_with_a_grids_values_can_be_too_long(make: Plans) -> None:
    with pytest.raises(UsageError, match="is longer than 300 characters"):
        make(("[source, tent]", "[{name: mgg, grid: {checkpoint: [" + "x" * 400 + "]}}]"))


@pytest.mark.parametrize(
    ("change", "count"),
    [("methods=[{name: tent, grid: {lr: %s, momentum: %s, steps: %s}}]" % ((list(range(1000)),) * 3), "1,000,000,000"),
     (f"seeds={list(range(5001))}", "10,002"), (f"batch_size={list(range(1, 5002))}", "10,002"),
     (f"protocol.adapt_images={list(range(40, 400_000, 40))}", "19,998")],
    ids=["grid", "seeds", "batch_size", "protocol"],
)  # fmt: skip
def test_more_trials_than_10_000_are_counted_not_made(make: Plans, change: str, count: str) -> None:
    with pytest.raises(UsageError, match=r"at least [0-9,]+ trials, more than 10,000") as caught:
        make(sets=(change,))
    assert count in caught.value.problems[0].message
    assert "--yes" in caught.value.problems[0].hint


def test_the_number_of_trials_is_limited_where_shifts_make_it(suite_file: Callable[..., pathlib.Path]) -> None:
    loaded = suite.load(str(suite_file()))
    assert len(plan.make(loaded, most=4).trials) == 4
    assert len(plan.make(loaded, most=None).trials) == 4
    with pytest.raises(UsageError, match="the suite has more than 3 trials"):
        plan.make(loaded, most=3)


def test_no_absolute_path_is_in_a_key(suite_file: Callable[..., pathlib.Path], digit_folder: pathlib.Path) -> None:
    folder = f"{{kind: folder, root: {digit_folder}, preprocess: none, strengths: cifar}}"
    made = plan.make(suite.load(str(suite_file(("{kind: digits, max_images: 100}", folder)))))
    for trial in made.trials:
        assert str(digit_folder) not in str(trial.asked)
