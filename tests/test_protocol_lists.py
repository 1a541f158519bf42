"""Several protocols in one suite: what each entry is run with, keys, refusals, and one real run with its report."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import pytest

from tta_bench import load_results, suite
from tta_bench.errors import Problem, UsageError
from tta_bench.report import content
from tta_bench.report.content import ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.setting import Setting, words
from tta_bench.suite import plan
from tta_bench.suite.select import Filter

SuiteFile = Callable[..., pathlib.Path]
Listed = Callable[..., pathlib.Path]


@pytest.fixture
def listed(suite_file: SuiteFile) -> Listed:
    """Write the small suite with some entries under ``protocol``, each on a line of its own from line 13 on."""

    def write(*entries: str, replacements: tuple[tuple[str, str], ...] = ()) -> pathlib.Path:
        lines = "".join(f"\n  - {entry}" for entry in entries)
        return suite_file(("batch_size: 40", f"protocol:{lines}\nbatch_size: 40"), *replacements)

    return write


def planned(file: pathlib.Path, *sets: str, limit: int | None = None) -> plan.Plan:
    return plan.make(suite.load(str(file), sets=sets), limit)


def problems(file: pathlib.Path, *sets: str) -> list[Problem]:
    with pytest.raises(UsageError) as caught:
        planned(file, *sets)
    return caught.value.problems


def of_source(trials: plan.Plan) -> list[plan.Trial]:
    return [trial for trial in trials.trials if trial.label == "source"]


# -- what an entry is run with -----------------------------------------------------------------------------------------


def test_an_entry_replaces_keys_of_the_suite_for_itself_alone(listed: Listed) -> None:
    own = "{kind: mixed, batch_size: [10, 20], corruptions: [fog, snow], severities: [1, 2], seeds: [3]}"
    made = planned(listed("{kind: continual}", own))
    assert [
        (t.setting.protocol, t.stream.batch_size, t.seed, [shift.id for shift in t.stream.shifts])
        for t in of_source(made)
    ] == [
        ("continual", 40, 0, ["clean", "contrast-5"]),
        ("mixed", 10, 3, ["fog-1", "snow-1"]),
        ("mixed", 10, 3, ["fog-2", "snow-2"]),
        ("mixed", 20, 3, ["fog-1", "snow-1"]),
        ("mixed", 20, 3, ["fog-2", "snow-2"]),
    ]
    assert made.axes == ("batch_size",)
    assert {entry.shift.id for entry in made.cache_entries()} == {
        "clean", "contrast-5", "fog-1", "snow-1", "fog-2", "snow-2",
    }  # fmt: skip


def test_trials_of_a_suite_with_one_protocol_keep_their_keys_when_more_are_listed(
    suite_file: SuiteFile, listed: Listed
) -> None:
    alone = [planned(suite_file(), f"protocol={{kind: {kind}}}") for kind in ("reset", "continual")]
    together = planned(listed("{kind: reset}", "{kind: gradual, corruptions: [contrast]}", "{kind: continual}"))
    keys = [trial.key for trial in together.trials if trial.setting.protocol != "gradual"]
    assert sorted(keys) == sorted(trial.key for made in alone for trial in made.trials)
    settings = {trial.setting.id for made in alone for trial in made.trials}
    assert settings == {t.setting.id for t in together.trials if t.setting.protocol != "gradual"}


def test_a_list_of_one_protocol_is_that_protocol(suite_file: SuiteFile, listed: Listed) -> None:
    one, listed_one = suite.load(str(suite_file())), suite.load(str(listed("{kind: reset}")))
    assert one.suite.model_dump(mode="json") == listed_one.suite.model_dump(mode="json")
    assert isinstance(one.suite.model_dump(mode="json")["protocol"], dict)


def test_the_resolved_suite_has_every_entry_with_what_it_replaces(listed: Listed) -> None:
    file = listed("{kind: reset}", "{kind: gradual, severities: [3, 1], seeds: [1, 2], batch_size: 20}")
    first, second = suite.load(str(file)).suite.model_dump(mode="json")["protocol"]
    assert not {"seeds", "batch_size", "severities", "corruptions"} & set(first)
    assert (second["kind"], second["severities"], second["seeds"]) == ("gradual", [3, 1], [1, 2])
    assert second["batch_size"] == [20]


def test_severities_of_gradual_are_its_walk_and_its_shifts_are_of_them(listed: Listed) -> None:
    made = of_source(
        planned(listed("{kind: gradual, corruptions: [contrast], severities: [2, 4, 2]}", "{kind: reset}"))
    )
    assert [shift.id for shift in made[0].stream.shifts] == ["contrast-2", "contrast-4"]
    assert made[0].stream.length == 300
    assert [shift.id for trial in made[1:] for shift in trial.stream.shifts] == ["clean", "contrast-5"]


def test_entries_that_overlap_share_their_trials(listed: Listed) -> None:
    made = of_source(planned(listed("{kind: reset}", "{kind: reset, severities: [3, 5]}")))
    assert [trial.stream.shifts[0].id for trial in made] == ["clean", "contrast-5", "contrast-3"]


@pytest.mark.parametrize(
    ("protocol", "rate"),
    [("{kind: reset, batch_size: 1}", 1e-3 / 64), ("{kind: reset, batch_size: 1, window: 16}", 1e-3 * 16 / 64),
     ("{kind: reset}", 1e-3 * 40 / 64)],
)  # fmt: skip
def test_a_published_rate_is_for_the_images_that_a_method_adapts_on(listed: Listed, protocol: str, rate: float) -> None:
    file = listed(protocol, replacements=(("    mean:", "    preset: imagenet_vit_b16\n    mean:"),))
    made = [trial for trial in planned(file, limit=20).trials if trial.label == "tent"]
    assert {trial.config["lr"] for trial in made} == {rate}
    assert {trial.asked["batch_size"] for trial in made} == {made[0].stream.batch_size}


# -- refusals ----------------------------------------------------------------------------------------------------------

RESET = "{kind: reset}"
WRONG = {
    "an override": ("{kind: continual, severities: [9]}", 36, "protocol.1.severities.0: Input should be less than"),
    "twice": ("{kind: continual, seeds: [1, 1]}", 30, "protocol.1.seeds: 1 is listed twice"),
    "a corruption": ("{kind: continual, corruptions: [fgo]}", 37, "unknown corruption 'fgo'"),
    "its own key": ("{kind: continual, delta: -1}", 30, "protocol.1.delta: Input should be greater than"),
    "a key": ("{kind: continual, severties: [1]}", 23, "unknown key 'severties' in protocol"),
    "the kind": ("{kind: continul}", 12, "unknown protocol 'continul'"),
    "no mapping": ("continual", 5, "protocol.1: must be a mapping"),
    "repeated": (RESET, 5, "repeats entry 0 of protocol"),
    "half a batch": (
        "{kind: continual, adapt_images: 41}",
        37,
        "adapt_images 41 is not a whole number of batches of 40",
    ),
    "too few": ("{kind: continual, adapt_images: 120}", 37, "adapt_images 120 leaves none of 100 images"),
    "the probe": ("{kind: continual, probe: {shift: fgo}}", 38, "unknown shift 'fgo'"),
    "a stream": ("{kind: continual, window: 8}", 31, "needs batches of 1, not of 40"),
    "the same cell": ("{kind: reset, adapt_images: [40, all]}", 5, "entry 0 of protocol has another stream of clean"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_refused_at_its_line_and_column(listed: Listed, case: str) -> None:
    entry, column, message = WRONG[case]
    file = listed(RESET, entry)
    [problem] = problems(file)
    assert problem.message.startswith(message)
    assert problem.where == f"{file}:14:{column}"


def test_a_misspelt_override_is_recognised(listed: Listed) -> None:
    [problem] = problems(listed(RESET, "{kind: continual, severties: [1]}"))
    assert problem.hint.startswith("did you mean 'severities'?")


def test_all_problems_of_an_entry_are_told_together(listed: Listed) -> None:
    file = listed("{kind: continual, delta: -1, seeds: [-1]}", "{kind: mixed, batch_size: 0}")
    assert len(problems(file)) == 3


def test_two_streams_never_share_a_cell_of_a_table(listed: Listed) -> None:
    [problem] = problems(listed("{kind: continual}", "{kind: continual, corruptions: [contrast, fog]}"))
    assert problem.message == "entry 0 of protocol has another stream of contrast-5 in the same setting"
    assert len(of_source(planned(listed("{kind: continual}", "{kind: continual, corruptions: [snow, fog]}")))) == 2


# -- --set and --only --------------------------------------------------------------------------------------------------


def test_set_changes_an_entry_by_its_index(listed: Listed) -> None:
    file = listed(RESET, "{kind: continual}")
    made = of_source(planned(file, "protocol.1.severities=[1]", "protocol.1.delta=0.5", "seeds=[7]"))
    assert [(t.setting.protocol_text, t.stream.shifts[-1].id, t.seed) for t in made] == [
        ("reset", "clean", 7), ("reset", "contrast-5", 7), ("continual, delta 0.5", "contrast-1", 7),
    ]  # fmt: skip
    whole = of_source(planned(file, "protocol=[{kind: mixed}, {kind: continual}]"))
    assert [trial.setting.protocol for trial in whole] == ["mixed", "continual"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [("protocol.kind=mixed", "'protocol' is not a mapping"), ("protocol.2.kind=mixed", "'protocol' is not a mapping"),
     ("protocol.1.severities=[9]", "protocol.1.severities.0: Input should be less"),
     ("protocol.1=3", "'protocol' is not a mapping")],
)  # fmt: skip
def test_a_wrong_set_pair_is_named(listed: Listed, pair: str, message: str) -> None:
    [problem] = problems(listed(RESET, "{kind: continual}"), pair)
    assert problem.where == f"--set {pair}"
    assert problem.message.startswith(message)
    assert "severities" in pair or "protocol.0 to protocol.1" in problem.hint


RULES = (
    "{kind: reset}", "{kind: continual, adapt: {every: [2, 3]}}", "{kind: continual, adapt: {first: 40, classes: 5}}",
    "{kind: continual, adapt: {eta: 1.0, cost_ratio: 3.2}}", "{kind: continual, reset: {every: 2}, probe: {shift: fog-5}}",
    "{kind: reset, batch_size: 1, window: 20}", "{kind: recurring, visits: 2}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("only", "chosen"),
    [("protocol=recurring", ["recurring, visits 2"]), ("adapt=every 2", ["continual, adapt every 2"]),
     ("adapt=every 2|every 3", ["continual, adapt every 2", "continual, adapt every 3"]),
     ("adapt=first 40, classes 5", ["continual, adapt first 40, classes 5"]),
     ("adapt=first 40,classes 5,protocol=continual", ["continual, adapt first 40, classes 5"]),
     ("adapt=eta 1, cost_ratio 3.2, method=source", ["continual, adapt eta 1, cost_ratio 3.2"]),
     ("reset=every 2", ["continual, probe fog-5, reset every 2"]), ("window=20", ["reset, window 20"]),
     ("visits=2", ["recurring, visits 2"]), ("protocol=reset|recurring,batch_size=40", ["reset", "recurring, visits 2"])],
)  # fmt: skip
def test_only_selects_protocols_and_their_rules(listed: Listed, only: str, chosen: list[str]) -> None:
    selected = Filter([only]).select(planned(listed(*RULES)).trials)
    assert list(dict.fromkeys(trial.setting.protocol_text for trial in selected)) == chosen


@pytest.mark.parametrize(
    ("only", "message"),
    [("protocol=gradul", "no trial has protocol 'gradul'"), ("adapt=every 4", "no trial has adapt 'every 4'"),
     ("window", "'window' is not field=value"), ("rounds=2", "unknown field 'rounds'")],
)  # fmt: skip
def test_a_wrong_selection_is_refused(listed: Listed, only: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Filter([only]).select(planned(listed(*RULES)).trials)


# -- captions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("adapt", {"every": 2}, "every 2"), ("adapt", {"classes": 5, "first": 512}, "first 512, classes 5"),
     ("adapt", {"classes": 5, "first": None}, "first all, classes 5"),
     ("adapt", {"cost_ratio": 3.2, "eta": 1.0}, "eta 1, cost_ratio 3.2"),
     ("adapt", {"cost_ratio": [3.0, 2.5], "eta": 0.5}, "eta 0.5, cost_ratio [3.0, 2.5]"),
     ("adapt", {"cost_ratio": "measure", "eta": 1}, "eta 1, cost_ratio measure"),
     ("probe", {"shift": "clean"}, "clean"),
     ("probe", {"adapt": True, "images": 100, "shift": "clean"}, "clean, adapt true, images 100"),
     ("reset", {"every": 1000}, "every 1000"), ("reset", "batch", "batch"), ("window", 64, "64"),
     ("adapt_images", None, "all"), ("delta", 0.1, "0.1"), ("severities", [1, 2], "[1, 2]")],
)  # fmt: skip
def test_a_rule_reads_as_words(name: str, value: object, text: str) -> None:
    assert words(name, value) == text
    setting = Setting.of({"dataset": "D", "protocol": "reset", "parameters": {name: value}, "severities": []})
    assert setting.told == setting.columns()["protocol_parameters"] == f"{name} {text}"
    assert setting.protocol_text == f"reset, {name} {text}"


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_run_of_two_protocols_has_tables_for_each_and_keeps_finished_trials(
    listed: Listed, run_cli: Callable[..., object], tmp_path: pathlib.Path
) -> None:
    local = ("--executor", "local", "--cpus-per-trial", 1, "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert run_cli("run", listed("{kind: reset}"), *local).code == 0  # type: ignore[attr-defined]
    gradual = "{kind: gradual, severities: [1, 3, 1], corruptions: [contrast], batch_size: 20, adapt: {every: 2}}"
    file = listed("{kind: reset}", gradual)
    outlook = run_cli("run", file, *local, "--dry-run")
    assert "6 trials of 2 methods × 1 models × 2 protocols: 4 finished, 2 to run" in outlook.err  # type: ignore[attr-defined]
    assert "2 shifts to build" in outlook.err  # type: ignore[attr-defined]
    ran = run_cli("run", file, *local)
    assert ran.code == 0  # type: ignore[attr-defined]
    assert "tent · resnet_bn · 2 shifts, gradual · adapt every 2" in ran.err  # type: ignore[attr-defined]
    sessions = json.loads((tmp_path / "out" / "run.json").read_text())["sessions"]
    assert [entry["kind"] for entry in sessions[-1]["suite"]["protocol"]] == ["reset", "gradual"]

    shifts = load_results(tmp_path / "out")
    assert shifts.groupby("protocol")["images"].sum().to_dict() == {"reset": 400, "gradual": 600}
    report = content.make(gather([tmp_path / "out"]), ReportOptions())
    assert {table.setting.protocol for table in report.tables} == {"reset", "gradual"}
    for table in report.tables:
        assert {row.label for row in table.rows} == {"source", "tent"}
        own = shifts[(shifts["protocol"] == table.setting.protocol) & (shifts["corruption"] != "clean")]
        assert {c for row in table.rows for c in row.cells} <= set(own["corruption"]) | {"clean"}
    outcome = run_cli("report", "out", "--format", "md,html")
    assert outcome.code == 0  # type: ignore[attr-defined]
    assert "adapt every 2" in (tmp_path / "out" / "report" / "errors.md").read_text()
    status = run_cli("status", "out")
    assert status.code == 0  # type: ignore[attr-defined]
    assert "gradual" in status.out  # type: ignore[attr-defined]


# -- shipped suites ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_protocols", "protocols_cifar10_c"])
def test_every_protocol_of_a_shipped_list_can_be_followed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    for variable in ("CIFAR10", "CIFAR10_MODELS"):
        monkeypatch.setenv(variable, os.fspath(tmp_path))
    models = suite.load("digits_protocols").suite.model_dump(mode="json", exclude_none=True)["models"]
    sets = ["data={kind: digits, strengths: cifar}", f"models={json.dumps(models)}", "methods=[source]"]
    made = plan.make(suite.load(name, sets=sets), limit=1000)
    kinds = {trial.setting.protocol for trial in made.trials}
    assert kinds >= {"reset", "continual", "gradual", "mixed", "label_shift", "recurring"}
    if name == "protocols_cifar10_c":
        assert kinds >= {"in_out", "random_runs", "markov"}
        variants = {trial.parameters["variant"] for trial in made.trials}
        assert variants >= {"md", "sar", "note", "rotta", "tribe", "ttab", "petta", "dpcore", "unitta"}
