"""What methods cost: times of one kind of hardware only, counts of all of it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from runs import Cell, verdicts, write_run

from tta_bench.report.cost import CostTable, costs
from tta_bench.report.evidence import gather
from tta_bench.report.render.grids import cost_grid

H100 = {"device": "cuda", "device_name": "NVIDIA H100", "host": "gpu-1"}


def run(path: pathlib.Path, *labels: str, seed: int = 0, **options: Any) -> pathlib.Path:
    cells: dict[Cell, Any] = {
        (label, "m", f"{c}-5", seed): verdicts(10, 200) for label in labels for c in ("fog", "snow")
    }
    return write_run(path, cells, **options)


def made(*runs: pathlib.Path, **options: Any) -> list[CostTable]:
    return costs(gather(list(runs)), "source", **options)


def test_times_are_medians_and_counts_are_for_each_thousand_images(tmp_path: pathlib.Path) -> None:
    facts = {"step_ms_median": 12.0, "step_ms_p95": 15.0, "images_per_s": 900.0, "images_backwarded": 150}
    [table] = made(run(tmp_path / "run", "source", facts={**facts, "prepare_s": 3.0}))
    [row] = table.rows
    assert (row.step_ms, row.step_ms_p95, row.images_per_s, row.prepare_s) == (12.0, 15.0, 900.0, 3.0)
    assert (row.forwards, row.backwards, row.updates) == (1000.0, 750.0, 100.0)
    assert row.peak_memory_mib is None
    assert row.trials == 2


def test_slow_down_is_over_the_baseline_on_the_same_hardware(tmp_path: pathlib.Path) -> None:
    table, _ = made(
        run(tmp_path / "source", "source", facts={"step_ms_median": 4.0}, environment=H100),
        run(tmp_path / "tent", "tent", facts={"step_ms_median": 10.0}, environment=H100),
        run(tmp_path / "cpu", "sar", facts={"step_ms_median": 800.0}),
    )
    assert {row.label: row.slowdown for row in table.rows} == {"source": 1.0, "tent": 2.5}


def test_slow_down_is_said_to_be_over_segments_which_need_not_be_shifts(tmp_path: pathlib.Path) -> None:
    [table] = made(run(tmp_path / "run", "source", "tent"))
    assert "×source: ratio to source's time, median over segments and seeds." in cost_grid(table, "cost-1").legend


def test_other_hardware_is_another_table(tmp_path: pathlib.Path) -> None:
    where: list[dict[str, Any]] = [{}, {"host": "other"}, {"threads": 4}, H100, {**H100, "host": "gpu-2"}, {**H100, "device_name": "A100"}]  # fmt: skip
    runs = [run(tmp_path / str(i), f"x{i}", environment=place) for i, place in enumerate(where)]
    found = {table.hardware: [row.label for row in table.rows] for table in made(*runs)}
    assert found == {
        "x86_64 (node), 1 thread, torch 2.13.0": ["x0"], "x86_64 (other), 1 thread, torch 2.13.0": ["x1"],
        "x86_64 (node), 4 threads, torch 2.13.0": ["x2"], "NVIDIA H100, torch 2.13.0": ["x3", "x4"],
        "A100, torch 2.13.0": ["x5"],
    }  # fmt: skip
    assert made(*runs)[0].rows[0].slowdown is None, "no baseline there"


def test_times_of_a_shared_device_are_kept_out_unless_asked_for(tmp_path: pathlib.Path) -> None:
    own = run(tmp_path / "own", "source", facts={"step_ms_median": 4.0}, environment=H100)
    packed = run(tmp_path / "packed", "source", "tent", seed=1, environment=H100,
                 facts={"step_ms_median": 40.0, "device_share": 0.25, "peak_memory_mib": 300.0})  # fmt: skip
    table, counts = made(own, packed)
    assert [(row.label, row.step_ms) for row in table.rows] == [("source", 4.0)]
    assert (counts.hardware, [(row.label, row.step_ms, row.updates) for row in counts.rows]) == (
        "",
        [("tent", None, 100.0)],
    )
    assert "times are left out" in counts.caption
    first, second = made(own, packed, shared=True)
    assert (first.shared, second.shared) == (False, True)
    assert [(row.label, row.step_ms) for row in second.rows] == [("source", 40.0), ("tent", 40.0)]
    assert "other trials used the device" in second.caption


def test_failed_trials_cost_nothing(tmp_path: pathlib.Path) -> None:
    path = write_run(
        tmp_path / "run", {("source", "m", "fog-5", 0): "failed", ("tent", "m", "fog-5", 0): verdicts(10, 200)}
    )
    [table] = made(path)
    assert [row.label for row in table.rows] == ["tent"]
    assert table.rows[0].slowdown is None
    assert table.rows[0].forwards == pytest.approx(1000)


def test_a_frozen_model_is_not_what_a_method_costs(tmp_path: pathlib.Path) -> None:
    """Trials that adapt on the first images only predict the rest: their median step is that of a prediction."""
    frozen = run(tmp_path / "frozen", "tent", adapt_images=50, facts={"step_ms_median": 4.0})
    whole = run(tmp_path / "whole", "tent", facts={"step_ms_median": 12.0})
    [table] = made(frozen, whole)
    assert [row.step_ms for row in table.rows] == [12.0]


def test_other_precision_is_another_table(tmp_path: pathlib.Path) -> None:
    single = run(tmp_path / "single", "source", environment=H100)
    double = run(tmp_path / "double", "tent", environment=H100, precision="float64")
    found = costs(gather([single, double], mix=True), "source")
    assert [table.title for table in found] == ["NVIDIA H100, torch 2.13.0", "NVIDIA H100, torch 2.13.0, float64"]
    assert [table.caption for table in found] == [
        "Cost on D, batch size 10, NVIDIA H100, torch 2.13.0.",
        "Cost on D, batch size 10, float64, NVIDIA H100, torch 2.13.0.",
    ]
    delta = run(tmp_path / "delta", "tent", environment=H100, precision="float64", parameters={"delta": 1})
    for table in costs(gather([double, delta]), "source"):
        assert table.caption.count("float64") == 1, table.caption
        assert "protocol" in table.caption, table.caption
    assert found[1].rows[0].slowdown is None
