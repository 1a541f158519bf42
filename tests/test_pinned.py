"""The numbers of a small suite are those that are stored in the repository, and move with ``NUMERICS_VERSION`` alone.

Where the processor, torch, numpy, scipy, pillow, scikit-learn and timm are those that made the stored numbers, every
result column and the prediction and confidence of every image are compared bit for bit. Elsewhere the order of sums
differs, and learned or restarting methods (MGG, SAR) amplify it. Measured on one machine, with torch's unvectorised
kernels, oneDNN or MKL held to SSE4, all three, or two threads in place of one: none of 4,600 predictions differs, no
selected image, update or recovery either; confidences differ by at most 1.2e-7 in the median, 3.6e-7 for 90 % of the
images, 6e-4 for 99 %, and 0.035 in the worst case (MGG); a row's mean confidence by at most 7e-4. Other versions of the
libraries were not measured, so the bounds leave room: 99 % of all predictions equal and two images a row; half of all
confidences within 1e-5 and 90 % within 1e-4; 0.01 for a row's mean confidence, 7.5 points for its ECE, 0.1 nats for its mean negative log-likelihood; in a row, four
images more or fewer that a method selects. All else (status, reason, counts, updates, recoveries, the images and their order) is equal.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pinned import reference
from pinned.reference import Reference, differences


@pytest.fixture(scope="module")
def stored() -> Reference:
    return reference.stored()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference.make(list(reference.RUNS), tmp_path_factory.mktemp("found"))


def test_the_numbers_are_the_stored_ones(stored: Reference, found: Reference) -> None:
    differing = differences(stored, found)
    assert not differing, "\n".join([*differing[:5], f"{len(differing) - 1} differences; {differing[-1]}"])


@pytest.mark.faults
def test_a_second_run_gives_the_same_bits(found: Reference, tmp_path: pathlib.Path) -> None:
    again = reference.make(["adapt_images"], tmp_path)
    assert differences(found.part("adapt_images"), again.part("adapt_images")) == []


def test_every_method_adapts(stored: Reference) -> None:
    for model in ("resnet_bn", "vit_ln", "resnet_gn"):
        rows = stored.rows.query("run == 'continual' and model == @model and shift == 'fog-5' and status == 'ok'")
        confidence = dict(zip(rows["label"], stored.images["confidence"][rows.index], strict=True))
        assert len(confidence) == 8 + (model == "resnet_bn")
        for label in set(confidence) - {"source"}:
            assert np.abs(confidence[label] - confidence["source"]).max() > 0.1, (model, label)


# -- what the comparison notices ---------------------------------------------------------------------------------------


def row_of(reference: Reference, label: str = "tent") -> int:
    """The place of a row of the continual run."""
    wanted = "run == 'continual' and label == @label and model == 'vit_ln' and shift == 'fog-5'"
    return int(reference.rows.query(wanted).index[0])


def one_error(changed: Reference, images: int = 1) -> None:
    row = row_of(changed)
    correct = int(changed.rows.loc[row, "correct"]) + images
    changed.rows.loc[row, ["correct", "error_pct"]] = [str(correct), str(100 - 2.5 * correct)]


def one_prediction(changed: Reference) -> None:
    changed.images["predicted"][row_of(changed), 7] ^= 1


def one_confidence(changed: Reference) -> None:
    where = (row_of(changed), 7)
    changed.images["confidence"][where] = np.nextafter(changed.images["confidence"][where], np.float32(0))


def one_reason(changed: Reference) -> None:
    changed.rows.loc[row_of(changed, "failing"), "reason"] = "ValueError: another"


def many_confidences(changed: Reference) -> None:
    changed.images["confidence"][:] += np.float32(2e-5)


ROW = "run continual, protocol continual, label tent, model vit_ln, shift fog-5, seed 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [(one_error, f"{ROW}: correct stored '"), (one_prediction, f"{ROW}: predicted of image "),
     (one_confidence, f"{ROW}: confidence of image "), (one_reason, "reason stored 'ValueError: the second batch is refused'")],
)  # fmt: skip
def test_a_change_on_the_same_machine_is_noticed(
    stored: Reference, change: Callable[[Reference], None], message: str
) -> None:
    changed = copy.deepcopy(stored)
    change(changed)
    differing = differences(stored, changed)
    assert message in differing[0]
    assert differing[-1].startswith(
        "compared bit for bit; if the change is meant, raise tta_bench.NUMERICS_VERSION and"
    )
    assert differences(stored, copy.deepcopy(stored)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [(one_error, ""), (one_prediction, ""), (one_confidence, ""), (one_reason, "reason stored"),
     (lambda changed: one_error(changed, 3), f"{ROW}: correct stored '"), (many_confidences, "quantile 0.5 of the conf")],
)  # fmt: skip
def test_elsewhere_only_a_large_change_is_noticed(
    stored: Reference, change: Callable[[Reference], None], message: str
) -> None:
    changed = replace(copy.deepcopy(stored), made_with={**stored.made_with, "torch": "another"})
    change(changed)
    differing = differences(stored, changed)
    assert bool(differing) is bool(message)
    assert not message or message in differing[0]


def test_another_version_asks_for_new_numbers(stored: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tta_bench.NUMERICS_VERSION", 1000)
    [message] = differences(stored, replace(stored, made_with=reference.made_with()))
    assert message.endswith("this is 1000: store the numbers anew, python tests/pinned/store.py")
