"""CCC on the digits, from the suite to the report; and the processes that make its images."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIGITS_SUITE, run_locally
from plugins import Forks

from tta_bench import suite
from tta_bench.data import Dataset
from tta_bench.errors import UsageError
from tta_bench.report import content, evidence
from tta_bench.report.figures import online
from tta_bench.report.figures.section import Section, sections
from tta_bench.run import image_makers
from tta_bench.store import results
from tta_bench.streams import Batch, Shift
from tta_bench.suite import plan

IMAGES = 410
PAIR = (Shift.compound(Shift("gaussian_noise", 2.25), Shift("contrast", 1.5)), Shift.compound(Shift("elastic", 0.25)))


@pytest.fixture(scope="module")
def ccc_suite(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A suite with a made accuracy matrix: 70 per cent without corruption, 3 less for each quarter of a severity."""
    folder = tmp_path_factory.mktemp("ccc")
    noises = ("gaussian_noise", "shot_noise", "impulse_noise", "contrast")
    matrix = 70 - 3.0 * np.add.outer(np.arange(21), np.arange(21))
    np.savez(folder / "accuracy.npz", **{f"{a}+{b}": matrix for a in noises for b in noises if a != b})  # type: ignore[arg-type]
    protocol = f"{{kind: ccc, baseline: 15, speed: 20, images: {IMAGES}, accuracy: {folder}/accuracy.npz}}"
    text = DIGITS_SUITE.replace("[clean, contrast]", "[clean]").replace("[source, tent]", "[source, norm, tent]")
    (folder / "ccc.yaml").write_text(f"{text}protocol: {protocol}\n".replace("batch_size: 40", "batch_size: 10"))
    return folder / "ccc.yaml"


@pytest.fixture(scope="module")
def ccc_run(ccc_suite: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    return run_locally(ccc_suite, ccc_suite.parent / "run", cache)


def test_a_method_sees_the_compound_images_of_its_stream(ccc_suite: pathlib.Path, ccc_run: pathlib.Path) -> None:
    made = plan.make(suite.load(str(ccc_suite)))
    trial = made.trials[0]
    dataset, network = made.materials.datasets[trial.model], made.materials.models[trial.model].load().eval()
    arrays = results.read_arrays(ccc_run, trial.key, lambda name: name.startswith("images/"))
    shifts = [trial.stream.shifts[number] for number in arrays["images/shift"]]
    pixels = [dataset.read(s, np.array([i])) for s, i in zip(shifts, arrays["images/image"], strict=True)]
    with torch.no_grad():
        scores = network(torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).float() / 255)
    assert np.mean(scores.argmax(1).numpy() == arrays["images/predicted"]) > 0.99, "but for rounding in larger batches"
    assert len(set(shifts)) > 10
    assert len(np.unique(arrays["images/predicted"])) > 3


def test_rows_are_of_a_pair_of_severities_and_a_visit(ccc_run: pathlib.Path) -> None:
    shifts = results.load(ccc_run).shifts
    assert set(shifts["status"]) == {"ok"}
    assert set(shifts.groupby("label")["images"].sum()) == {IMAGES}
    assert shifts["images"].tolist()[0] == 20
    assert set(shifts["segment"]) == {"stream"}
    assert set(shifts["severity"]) == {0}
    assert shifts["shift"].str.fullmatch(r"[a-z_]+-[0-9.]+(\+[a-z_]+-[0-9.]+)?").all()
    assert not shifts.duplicated(["label", "shift", "visit"]).any()


def test_the_report_has_one_number_and_the_error_in_windows(ccc_run: pathlib.Path) -> None:
    loaded = results.load(ccc_run)
    report = content.make(evidence.gather([ccc_run]), content.ReportOptions())
    [table] = report.tables
    assert table.columns == [evidence.ALL_IMAGES]
    sums = loaded.shifts.groupby("label", sort=False)[["images", "correct"]].sum()
    expected = 100 * (1 - sums["correct"] / sums["images"])
    assert {row.label: row.mean.mean for row in table.rows} == pytest.approx(expected.to_dict())
    assert f"{IMAGES} images in the stream" in table.caption
    [section] = list[Section](sections(report))
    points = online.running(section).loc["resnet_bn", "tent"]
    assert points["images_seen"].tolist() == [*range(20, IMAGES, 20), IMAGES], "a twentieth of the stream each"
    batches = loaded.batches[loaded.batches["label"] == "tent"]
    assert points["mean"].tolist()[1] == pytest.approx(batches["error_pct"].iloc[2:4].mean())
    assert np.average(points["mean"], weights=np.diff([0, *points["images_seen"]])) == pytest.approx(expected["tent"])


# -- processes that make images ------------------------------------------------------------------------------------------


def stream(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    shift, image = rng.integers(0, 2, (count, 3)).astype(np.int16), rng.integers(0, 1000, (count, 3)).astype(np.int32)
    return [Batch(s, i, False, True) for s, i in zip(shift, image, strict=True)]


@pytest.fixture(scope="module")
def digits(ccc_suite: pathlib.Path) -> Dataset:
    [(_, dataset, _)] = plan.sources(suite.load(str(ccc_suite))).values()
    return dataset


@pytest.mark.parametrize(("number", "count"), [(1, 4), (3, 7), (3, 2)])
def test_batches_come_in_order_from_any_number_of_makers(
    digits: Dataset, number: int, count: int, tmp_path: pathlib.Path
) -> None:
    with image_makers.makers(Forks(tmp_path), digits, PAIR, number) as processes:
        made = list(image_makers.batches(processes, stream(count)))
    assert len(made) == count
    for pixels, batch in zip(made, stream(count), strict=True):
        expected = [digits.read(PAIR[s], np.array([i])) for s, i in zip(batch.shift, batch.image, strict=True)]
        assert np.array_equal(pixels, np.concatenate(expected))


def test_a_damaged_image_is_named_and_a_killed_maker_is_no_fault_of_the_method(
    digits: Dataset, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> np.ndarray:
        raise UsageError([])

    with image_makers.makers(Forks(tmp_path), digits, PAIR, 1) as [process]:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(OSError, match="a process that makes images has ended|Broken pipe|reset by peer"):
            list(image_makers.batches([process], stream(2)))
    monkeypatch.setattr(type(digits), "read", damaged)
    with image_makers.makers(Forks(tmp_path), digits, PAIR, 1) as processes, pytest.raises(UsageError):
        list(image_makers.batches(processes, stream(2)))
