"""Long streams: read in blocks, kept without arrays of images, thinned in the online curve; memory does not grow."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import clean_environment
from torch import Tensor
from trials import Counting, Runner

from tta_bench.protocols import Streams, building
from tta_bench.registry import installed
from tta_bench.report.verify import verify
from tta_bench.run import grading, runner
from tta_bench.run.messages import Batch, BlockMeasurements, Scored
from tta_bench.store import results, tables
from tta_bench.streams import CLEAN, StreamSpec

PROTOCOL = ("batch_size: 40", "batch_size: 10\nprotocol: {kind: mixed, adapt: {every: 3}}")


def counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if "ms" not in name and "per_s" not in name} for row in rows]


def test_blocks_change_no_result(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Counting, PROTOCOL, trial=0)
    monkeypatch.setattr(runner, "BLOCK", 3)
    blocks = run(Counting, PROTOCOL, trial=0)
    assert counts(blocks.segments) == counts(whole.segments)
    assert blocks.shifts == whole.shifts
    for name, array in whole.images.items():
        assert np.array_equal(blocks.images[name], array), name
    np.testing.assert_array_equal(blocks.batches["stat_count"], whole.batches["stat_count"])
    assert len(whole.batches["batch"]) == 20


@pytest.mark.parametrize(
    ("block", "protocol", "ahead"),
    [(3, "{kind: mixed}", [4, 4, 4, 4, 4, 2, 0]), (1000, "{kind: continual}", [4, 0])],  # of 20 batches
)
def test_behind_a_block_or_a_segment_the_child_has_batches_to_go_on_with(
    run: Runner, monkeypatch: pytest.MonkeyPatch, block: int, protocol: str, ahead: list[int]
) -> None:
    unanswered, at_ends = 0, list[int]()
    send, receive = runner._TrialExchange._send, runner._TrialExchange._receive

    def sending(exchange: Any, message: Any) -> None:
        nonlocal unanswered
        unanswered += isinstance(message, Batch)
        send(exchange, message)

    def receiving(exchange: Any, kind: Any) -> Any:
        nonlocal unanswered
        unanswered -= kind is Scored
        if kind is BlockMeasurements:
            at_ends.append(unanswered)
        return receive(exchange, kind)

    monkeypatch.setattr(runner, "BLOCK", block)
    monkeypatch.setattr(runner._TrialExchange, "_send", sending)
    monkeypatch.setattr(runner._TrialExchange, "_receive", receiving)
    result = run(Counting, ("batch_size: 40", f"batch_size: 10\nprotocol: {protocol}"), trial=0)
    assert (result.status, at_ends) == ("ok", ahead)


class Diverging(Counting):
    """Its scores are not finite from its sixth batch on."""

    def step(self, x: Tensor) -> Tensor:
        return super().step(x) + (math.nan if self.count > 5 else 0.0)


def test_the_batch_whose_scores_are_not_finite_is_named_in_a_later_block(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BLOCK", 3)
    result = run(Diverging, ("batch_size: 40", "batch_size: 10\nprotocol: {kind: mixed}"), trial=0)
    assert result.status == "failed"
    assert result.reason == "FloatingPointError: the scores of batch 5 (segment mixed) are not finite"


def test_without_arrays_of_images_the_rows_are_the_same(run: Runner) -> None:
    short = run(Counting, PROTOCOL, trial=0)
    long = run(Counting, PROTOCOL, ("seeds: [0]", "seeds: [0]\nper_image: 199"), trial=0)
    assert long.images == {}
    assert long.facts["images_not_kept"] == 200
    assert "images_not_kept" not in short.facts
    assert long.shifts == short.shifts
    assert counts(long.segments) == counts(short.segments)
    assert long.batches["images_graded"].tolist() == [10] * 20
    of_batch = np.bincount(short.images["batch"][short.images["correct"]], minlength=20)
    assert long.batches["images_correct"].tolist() == of_batch.tolist()


@pytest.mark.faults
def test_a_run_without_arrays_of_images_has_the_same_tables_and_report(
    suite_file: Callable[..., pathlib.Path], run_cli: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    file = suite_file(("[source, tent]", "[source]"), ("batch_size: 40", "batch_size: 10"))
    for name, limit in (("short", 1000), ("long", 50)):
        outcome = run_cli("run", file, "--executor", "local", "--out", name, "--set", f"per_image={limit}")
        assert outcome.code == 0, outcome.err
    short, long = (results.load(tmp_path / name) for name in ("short", "long"))
    own = results.result_columns(short.batches).columns
    assert results.result_columns(long.batches)[own].equals(short.batches[own])
    assert long.segments["images_not_kept"].tolist() == [100, 100]
    assert verify([long]) == ([], 2)
    assert "the cells do not share their images" in run_cli("report", "long").out


def test_a_long_curve_is_thinned_to_rows_of_several_batches() -> None:
    rng = np.random.default_rng(0)
    size = 25_001
    columns = {
        "batches/batch": np.arange(size),
        "batches/segment": (np.arange(size) >= 20_000).astype(np.int16),
        "batches/images": np.full(size, 64),
        "batches/adapted": np.ones(size, dtype=bool),
        "batches/step_ms": np.full(size, 2.0),
        "batches/images_graded": np.full(size, 64),
        "batches/images_correct": rng.integers(0, 65, size),
    }
    thin = tables.batch_columns(columns)
    assert len(thin["batch"]) <= tables.MAX_POINTS
    assert thin["images_graded"].sum() == 64 * size
    assert thin["batch"].tolist()[:3] == [0, 3, 6]
    assert thin["images_correct"][1] == columns["batches/images_correct"][3:6].sum()
    first_of_second = thin["position"].tolist().index(1)
    assert thin["batch"][first_of_second] == 20_000, "no row is of two segments"
    assert thin["images_correct"][:first_of_second].sum() == columns["batches/images_correct"][:20_000].sum()
    assert set(thin["step_ms"]) == {2.0}, "a mean"


def test_counts_of_blocks_are_added_and_peaks_are_not() -> None:
    one = BlockMeasurements(10, 5, 1, 3.0, *(np.ones(2) for _ in range(4)), {"a": np.ones(2)})
    both = grading.joined([one, replace(one, peak_memory_mib=2.0, images_backwarded=None)])
    assert (both.images_forwarded, both.images_backwarded, both.updates, both.peak_memory_mib) == (20, 5, 2, 3.0)
    assert both.stats["a"].tolist() == [1] * 4
    unknown = replace(one, images_backwarded=None)
    assert grading.joined([unknown, unknown]).images_backwarded is None


def test_of_long_streams_only_one_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_LONG", 50)
    streams = Streams(installed(), lambda model, shift: np.zeros(100 if model == "long" else 10, dtype=np.int64))
    for model, seed in (("short", 0), ("long", 0), ("short", 1), ("long", 1)):
        streams.build(model, StreamSpec('{"kind": "continual"}', (CLEAN,), None, 0, 4, seed))
    assert [(model, spec.seed) for model, spec in streams._built] == [("short", 0), ("short", 1), ("long", 1)]


MEASURE = """\
import json, pathlib, resource, sys
import numpy as np
from conftest import DIGITS_SUITE
from plugins import Replaced, supervisor
from tta_bench import suite
from tta_bench.adapter import Adapter
from tta_bench.run import runner
from tta_bench.suite import plan
import dataclasses, torch
class Constant(Adapter):
    def step(self, x):
        return 9 * torch.eye(10)[:1].repeat(len(x), 1)
    predict = step
folder, images = pathlib.Path(sys.argv[1]), int(sys.argv[2])
noises = ("gaussian_noise", "shot_noise", "impulse_noise", "contrast")
matrix = np.add.outer(np.linspace(50, -20, 21), np.linspace(50, -20, 21))
np.savez(folder / "a.npz", **{f"{a}+{b}": matrix for a in noises for b in noises if a != b})
text = DIGITS_SUITE.replace("max_images: 100", "max_images: 1000").replace("[clean, contrast]", "[clean]")
text += f"protocol: {{kind: ccc, baseline: 10, speed: 100, images: {images}, accuracy: {folder}/a.npz}}\\n"
(folder / "s.yaml").write_text(text.replace("[source, tent]", "[source]") + "per_image: 10000\\n")
runner.batches = lambda processes, stream: (np.zeros((len(b.image), 32, 32, 3), np.uint8) for b in stream)
made = plan.make(suite.load(str(folder / "s.yaml")))
bench = supervisor(dataclasses.replace(made.materials, registry=Replaced(source=Constant)), folder)
result = bench.run(made.trials[0])
bench.end_child()
assert result.status == "ok", result.reason
assert sum(row["images"] for row in result.shifts) == images and not result.images
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([*peaks, len(result.shifts), sum(row["correct"] for row in result.shifts) / images]))
"""


@pytest.mark.faults
def test_memory_does_not_grow_with_the_stream_but_for_a_few_bytes_an_image(tmp_path: pathlib.Path) -> None:
    (tmp_path / "measure.py").write_text(MEASURE)
    environment = clean_environment(PYTHONPATH=str(pathlib.Path(__file__).parent), OMP_NUM_THREADS="1")
    peaks = []
    for images in (20_000, 300_000):
        command = [sys.executable, str(tmp_path / "measure.py"), str(tmp_path), str(images)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout)[:2])
    supervisor, child = np.subtract(peaks[1], peaks[0])  # MiB
    assert supervisor < 25
    assert child < 25
