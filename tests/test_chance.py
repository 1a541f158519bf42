"""``skipped: chance``: batches that arrive while a method is busy are shown to no network, and count as random answers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Outcome
from torch import Tensor
from trials import Plain, Runner

from tta_bench import load_results, suite
from tta_bench.errors import UsageError
from tta_bench.report.evidence import gather
from tta_bench.report.images import ImageErrors
from tta_bench.run import metrics
from tta_bench.suite import plan

RULE = "adapt: {eta: 1.0, cost_ratio: 2, skipped: chance}"


def protocol(text: str) -> tuple[str, str]:
    return ("batch_size: 40", f"protocol: {{{text}}}\nbatch_size: 20")


class Witness(Plain):
    """Writes down what it is asked to do; forgets its count when it is reset."""

    def setup(self) -> None:
        self.steps = 0

    def step(self, x: Tensor) -> Tensor:
        self.steps += 1
        print("step", len(x), self.steps)
        return super().predict(x)

    def predict(self, x: Tensor) -> Tensor:
        print("predict", len(x))
        return super().predict(x)


def test_a_skipped_batch_is_shown_to_no_network_and_is_wrong_with_probability_one_minus_one_over_c(run: Runner) -> None:
    result = run(Witness, protocol(f"kind: continual, {RULE}"), trial=0)
    assert (result.status, result.reason) == ("ok", "")
    assert result.log.splitlines() == [f"step 20 {number}" for number in range(1, 7)], "nothing was predicted"
    for segment in result.segments:
        assert (segment["images"], segment["batches"], segment["images_forwarded"]) == (100, 5, 60)
    images, skipped = result.images, np.repeat(~result.batches["adapted"], 20)
    assert result.batches["adapted"].tolist() == [True, False, True, False, True] * 2
    assert set(images["predicted"][skipped]) == {-10}
    assert (images["predicted"][~skipped] >= 0).all()
    assert images["graded"].all()
    assert not images["correct"][skipped].any()
    assert np.allclose(images["confidence"][skipped], 0.1)
    for row in result.shifts:
        assert (row["images"], row["images_adapted"], row["images_skipped"]) == (100, 60, 40)
        assert row["error_skipped_pct"] == pytest.approx(90)
        wrong = 60 - row["correct"]
        assert row["error_adapted_pct"] == pytest.approx(100 * wrong / 60)
        assert row["error_pct"] == pytest.approx(wrong + 40 * 0.9)


def test_the_time_of_a_batch_is_that_of_batches_the_method_was_given(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = np.array([50.0, 0.01, 20.0, 0.01, 20.0])
    monkeypatch.setattr("tta_bench.run.meters.Stopwatch.read_ms", lambda self: times)
    [segment] = run(Witness, protocol(f"kind: reset, {RULE}")).segments
    assert (segment["warmup_ms"], segment["step_ms_median"], segment["images_per_s"]) == (50.0, 20.0, 1000.0)


def test_a_reset_before_a_skipped_batch_is_done(run: Runner) -> None:
    result = run(Witness, protocol(f"kind: continual, reset: batch, {RULE}"), trial=0)
    assert result.log.splitlines() == ["step 20 1"] * 6
    rule = RULE.replace("2", "3")  # batches 0 and 3 of each segment adapt, and each reset comes before a skipped batch
    result = run(Witness, protocol(f"kind: continual, reset: {{every: 1}}, {rule}"), trial=0)
    assert result.log.splitlines() == ["step 20 1"] * 4


def test_probes_are_predicted(run: Runner) -> None:
    result = run(Witness, protocol(f"kind: continual, probe: {{shift: clean, images: 20}}, {RULE}"), trial=0)
    assert [line.split()[0] for line in result.log.splitlines()] == ["step"] * 3 + ["predict"]
    assert [row["role"] for row in result.segments] == ["stream", "probe"]
    assert (result.images["predicted"][-20:] >= 0).all()


# -- keys, settings, tables --------------------------------------------------------------------------------------------


def test_the_stream_is_the_same_and_key_and_setting_say_the_rest(
    suite_file: Callable[..., pathlib.Path],
) -> None:
    def planned(rule: str) -> plan.Trial:
        return plan.make(suite.load(str(suite_file(protocol(f"kind: continual, {rule}"))))).trials[0]

    chance, predict, default = (
        planned(RULE.replace(", skipped: chance", further))
        for further in (", skipped: chance", ", skipped: predict", "")
    )
    assert chance.asked["stream"] == predict.asked["stream"]
    assert chance.asked["skipped"] == "chance"
    assert chance.setting.told == "adapt eta 1, cost_ratio 2, skipped chance"
    assert (predict.key, predict.setting) == (default.key, default.setting)
    assert len({chance.key, predict.key}) == len({chance.setting.id, predict.setting.id}) == 2


def test_both_can_be_listed(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(protocol(f"kind: continual, {RULE.replace('chance', '[predict, chance]')}"))
    trials = [trial for trial in plan.make(suite.load(str(file))).trials if trial.label == "source"]
    assert [trial.counts_at_chance for trial in trials] == [False, True]


@pytest.mark.parametrize(("rule", "message"), [("{every: 2, skipped: chance}", "skipped needs eta"),
                                               ("{eta: 1, cost_ratio: 2, skipped: random}", "'predict' or 'chance'")])  # fmt: skip
def test_a_wrong_word_or_rule_is_refused(suite_file: Callable[..., pathlib.Path], rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        suite.load(str(suite_file(protocol(f"kind: continual, adapt: {rule}"))))


def test_tables_curves_intervals_and_verification_count_it_alike(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path]
) -> None:
    file = suite_file(protocol(f"kind: continual, {RULE}"), ("[source, tent]", "[source]"))
    outcome = run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "out")
    assert outcome.code == 0, outcome.err
    shifts, batches = load_results("out"), load_results("out", table="batches")
    of_shift = shifts.set_index("shift")["error_pct"]
    assert f"error {of_shift.mean():.1f} %" in outcome.err
    assert batches.groupby("segment")["running_error_pct"].last().to_dict() == pytest.approx(of_shift.to_dict())
    assert batches.loc[~batches["adapted"].astype(bool), "error_pct"].tolist() == pytest.approx([90.0] * 4)
    evidence = gather([pathlib.Path("out")])
    places = set(zip(shifts["key"], shifts["setting"], strict=True))
    matrix = ImageErrors(evidence, places).matrix([("source", "resnet_bn", name) for name in of_shift.index])
    assert matrix is not None
    assert (100 * matrix.mean(0)).tolist() == pytest.approx(of_shift.tolist())
    outcome = run_cli("report", "out", "--verify", "--format", "md")
    assert "1 trials recomputed, all numbers follow from their predictions" in outcome.err
    assert "skipped chance" in pathlib.Path("out/report/errors.md").read_text()
    assert "which count at chance" in pathlib.Path("out/report/errors.md").read_text()


def test_expected_verdicts_of_predictions_are_these_themselves() -> None:
    predicted, correct = np.array([3, 0, -4, 2]), np.array([True, False, False, True])
    assert metrics.expected(predicted, correct).tolist() == [1, 0, 0.25, 1]
    assert metrics.most_predicted_pct(np.array([-4, -4, 1, 1, 2])) == pytest.approx(200 / 3)
    assert metrics.most_predicted_pct(np.array([-4])) is None
