"""Mean corruption errors, against values computed by hand."""

from __future__ import annotations

import pytest

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.report.mce import alexnet_errors, mce_tables
from tta_bench.report.table import Cell, ErrorTable, MethodErrors, TableSetting
from tta_bench.setting import Setting


def row(label: str, errors: dict[str, float], state: str = "ok") -> MethodErrors:
    cells = {name: Cell(error, None, state, seeds=1) for name, error in errors.items()}
    return MethodErrors(label, "m", cells, Cell(sum(errors.values()) / len(errors), None, state, seeds=1), "")


def table(severity: int, rows: list[MethodErrors], dataset: str = "ImageNet-C", partial: bool = False) -> ErrorTable:
    setting = TableSetting(Setting(dataset, "reset"), severity)
    return ErrorTable(f"severity-{severity}", "t", setting, "c", list(BENCHMARK), rows, partial)


def by_severity(severity: int, factor: float = 1.0) -> dict[str, float]:
    """Errors that rise with severity and have AlexNet's mean."""
    return {name: factor * error * severity / 3 for name, error in alexnet_errors().items()}


def test_alexnet_has_100_and_half_its_errors_50() -> None:
    grid = [table(s, [row("alexnet", by_severity(s)), row("half", by_severity(s, 0.5))]) for s in range(1, 6)]
    [made] = mce_tables(grid)
    assert [(r.label, pytest.approx(r.mce)) for r in made.rows] == [("alexnet", 100), ("half", 50)]
    assert made.rows[0].ce == pytest.approx(dict.fromkeys(BENCHMARK, 100))
    assert "own images" not in made.caption
    assert (made.left_out, made.warnings) == ([], ())


def test_the_sum_over_severities_is_what_counts() -> None:
    """One corruption at 10, 20, 30, 40, 50 per cent, the others at AlexNet's: by hand from the published 88.6428."""
    grid = [table(s, [row("a", {**by_severity(s), "gaussian_noise": 10.0 * s})]) for s in range(1, 6)]
    [made] = mce_tables(grid)
    ce = 100 * (10 + 20 + 30 + 40 + 50) / (5 * 88.6428)
    assert made.rows[0].ce["gaussian_noise"] == pytest.approx(ce)
    assert made.rows[0].mce == pytest.approx((14 * 100 + ce) / 15)


def test_a_method_without_all_75_cells_is_left_out_and_it_is_said() -> None:
    grid = [
        table(s, [row("a", by_severity(s)), row("b", by_severity(s), "failed" if s == 2 else "ok")])
        for s in range(1, 6)
    ]
    [made] = mce_tables(grid)
    assert [r.label for r in made.rows] == ["a"]
    assert made.left_out == ["b on m (15 of 75 cells without a result)"]


@pytest.mark.parametrize(
    ("dataset", "severities", "count"),
    [
        ("ImageNet-C", (1, 2, 3, 4), 0),
        ("CIFAR-10-C", (1, 2, 3, 4, 5), 0),
        ("ImageNet-C (generated)", (1, 2, 3, 4, 5), 1),
    ],
)
def test_only_the_whole_grid_of_imagenet_c_has_one(dataset: str, severities: tuple[int, ...], count: int) -> None:
    made = mce_tables([table(s, [row("a", by_severity(s))], dataset, partial=True) for s in severities])
    assert len(made) == count
    for one in made:
        assert "not ImageNet-C's own images" in one.caption
        assert one.warnings == ("SUBSET OF THE IMAGES, NOT A RESULT",)
