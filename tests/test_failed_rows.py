"""Methods that misbehave or report invalid values give failed rows."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from trials import Plain, Runner

from tta_bench.adapter import Needs
from tta_bench.run import runner


@pytest.mark.parametrize(
    ("scores", "reason"),
    [(lambda z: z * float("nan"), "FloatingPointError: the scores of batch 0"), (lambda z: z[:, :3], "must return scores of shape"),
     (lambda z: z.argmax(1), "must return scores of shape"), (lambda z: None, "it returned NoneType"),
     (lambda z: 1 / 0, "ZeroDivisionError")],
)  # fmt: skip
def test_a_method_that_misbehaves_is_a_failed_row(run: Runner, scores: Callable[[Tensor], Any], reason: str) -> None:
    class Bad(Plain):
        def step(self, x: Tensor) -> Tensor:
            return scores(self.predict(x))  # type: ignore[no-any-return]

    result = run(Bad)
    assert result.status == "failed"
    assert reason in result.reason
    assert ("Traceback" in result.traceback) == (not reason.startswith("FloatingPoint")), "those are found in grading"
    assert result.segments == []


def test_a_method_that_fails_while_batches_are_sent_is_a_row_with_its_reason(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad(Plain):
        def step(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("early")

    def slow_fill(*arguments: Any) -> None:
        fill(*arguments)
        time.sleep(0.5)  # the method has failed before the second batch is sent

    fill = runner._fill
    monkeypatch.setattr(runner, "_fill", slow_fill)
    assert run(Bad).reason == "ZeroDivisionError: early"


@pytest.mark.parametrize("image", [0, 19])
def test_one_image_without_finite_scores_fails_the_trial_and_names_its_batch(run: Runner, image: int) -> None:
    class OneBad(Plain):
        def step(self, x: Tensor) -> Tensor:
            scores = self.predict(x)
            if len(x) == 20:  # the last batch
                scores[image, 3] = float("nan")
            return scores

    reason = "FloatingPointError: the scores of batch 2 (segment contrast-5) are not finite"
    assert (run(OneBad).status, run(OneBad).reason) == ("failed", reason)


INVALID = "the method reported invalid values: "


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"checkpoint_origin": lambda self: pathlib.Path("/a/b")}, INVALID + "checkpoint is PosixPath('/a/b'), no str"),
        ({"checkpoint_origin": lambda self: 3}, INVALID + "checkpoint is 3, no str"),
        ({"needs": Needs(min_batch=2.5)}, INVALID + "needs_min_batch is 2.5, no int"),  # type: ignore[arg-type]
        ({"reset_keeps": "count"}, "TypeError: reset_keeps must be a tuple of names, it is 'count'"),
        ({"reset_keeps": (1,)}, "TypeError: reset_keeps must be a tuple of names, it is (1,)"),
        ({"outputs": "scores"}, "outputs must be logits or probabilities, not 'scores'"),
    ],
)
def test_a_fact_of_another_type_is_a_failed_row(run: Runner, attributes: dict[str, Any], reason: str) -> None:
    result = run(type("Odd", (Plain,), attributes))
    assert (result.status, result.reason, result.facts["failure"]) == ("failed", reason, "method")


def test_a_row_of_another_type_is_a_failed_row(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tta_bench.run.child.peak_memory_mib", lambda device: "much")
    assert run(Plain).reason == INVALID + "segments[0].peak_memory_mib is 'much', no float"


def test_a_fact_no_table_could_take_is_shown_as_one_can(run: Runner) -> None:
    class Odd(Plain):
        def checkpoint_origin(self) -> str:
            return "\ud800 here\x00"

    assert run(Odd).facts["checkpoint"] == "\\ud800 here\\x00"
