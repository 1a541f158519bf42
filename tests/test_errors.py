"""The error tables: what they hold, how sure it is, and what they never hide."""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd
import pytest
from runs import Cell, verdicts, write_run

from tta_bench.report.error_tables import curves, rows_of, tables
from tta_bench.report.evidence import gather
from tta_bench.report.table import ErrorTable


def made(path: pathlib.Path, cells: dict[Cell, np.ndarray | str], **options: object) -> list[ErrorTable]:
    return tables(gather([write_run(path / "run", cells, **options)]))  # type: ignore[arg-type]


def cells(*rows: tuple[str, str, float], seed: int = 0, images: int = 1000) -> dict[Cell, np.ndarray | str]:
    """Trials of (label, shift, error) on one model; methods are wrong on images of their own as far as there are any."""
    labels = list(dict.fromkeys(label for label, _, _ in rows))
    return {
        (label, "m", shift, seed): verdicts(error, images, 300 * labels.index(label)) for label, shift, error in rows
    }


def test_the_mean_leaves_clean_out_and_columns_are_in_the_published_order(tmp_path: pathlib.Path) -> None:
    [table] = made(tmp_path, cells(("a", "fog-5", 10), ("a", "clean", 1), ("a", "snow-5", 20)))
    [row] = table.rows
    assert table.columns == ["clean", "snow", "fog", "mean"]
    assert row.mean.mean == pytest.approx(15)
    assert row.cells["clean"].mean == pytest.approx(1)
    assert table.groups == [("", ["clean"]), ("weather", ["snow", "fog"]), ("", ["mean"])]


def test_each_severity_has_a_table_and_clean_stands_in_both(tmp_path: pathlib.Path) -> None:
    mild, harsh = made(tmp_path, cells(("a", "fog-1", 10), ("a", "clean", 1), ("a", "fog-5", 20)))
    assert (mild.rows[0].mean.mean, harsh.rows[0].mean.mean) == (pytest.approx(10), pytest.approx(20))
    assert (mild.name, harsh.name) == ("severity-1", "severity-5")
    assert mild.columns == harsh.columns == ["clean", "fog", "mean"]


def test_the_lowest_is_best_only_where_a_test_tells_it_apart(tmp_path: pathlib.Path) -> None:
    """fog: 10 against 20 and 30; snow: 20.0 against 20.1 and 30."""
    rows = [
        ("a", "fog-5", 10),
        ("b", "fog-5", 20),
        ("c", "fog-5", 30),
        ("a", "snow-5", 20),
        ("b", "snow-5", 20.1),
        ("c", "snow-5", 30),
    ]
    [table] = made(tmp_path, cells(*rows))
    a, b, c = table.rows
    assert [row.cells["fog"].mark for row in (a, b, c)] == ["best", "second", ""]
    assert [row.cells["snow"].mark for row in (a, b, c)] == ["tied", "tied", ""]
    assert [row.mean.mark for row in (a, b, c)] == ["best", "second", ""]
    assert [(p.label, p.other) for p in table.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table.pairs[0].difference == pytest.approx(-5.05)
    assert table.pairs[0].low < -5.05 < table.pairs[0].high < 0


def test_where_nothing_is_told_apart_nothing_is_marked(tmp_path: pathlib.Path) -> None:
    [table] = made(tmp_path, cells(("a", "fog-5", 20), ("b", "fog-5", 20.5)))
    assert [row.cells["fog"].mark for row in table.rows] == ["", ""]


def test_many_comparisons_are_corrected_for(tmp_path: pathlib.Path) -> None:
    """A difference of two methods that is significant alone is not among ten methods and three corruptions."""
    pair = cells(("a", "fog-5", 20), ("b", "fog-5", 24.5))
    [alone] = made(tmp_path / "alone", pair)
    others = {(f"x{i}", "m", "fog-5", 0): verdicts(60 + i / 10, 1000, 37 * i) for i in range(8)}
    more = {
        (label, "m", shift, 0): v for shift in ("snow-5", "frost-5") for (label, _, _, _), v in (pair | others).items()
    }
    [among] = made(tmp_path / "among", pair | others | more)
    assert alone.rows[0].cells["fog"].mark == "best"
    assert among.rows[0].cells["fog"].mark == "tied"


def test_intervals_hold_the_error_and_shrink_with_images(tmp_path: pathlib.Path) -> None:
    [few] = made(tmp_path / "few", cells(("a", "fog-5", 20), images=100))
    [many] = made(tmp_path / "many", cells(("a", "fog-5", 20), images=10_000))

    def width(table: ErrorTable) -> float:
        cell = table.rows[0].mean
        assert cell.low is not None
        assert cell.high is not None
        assert cell.low < 20 < cell.high
        return cell.high - cell.low

    assert width(few) == pytest.approx(10 * width(many), rel=0.15)


def test_an_image_counts_once_however_many_corruptions_it_has(tmp_path: pathlib.Path) -> None:
    """The same images are wrong under every corruption: more corruptions do not make the mean surer."""
    names = ("fog-5", "snow-5", "frost-5", "contrast-5")
    [one] = made(tmp_path / "one", cells(("a", "fog-5", 20)))
    [four] = made(tmp_path / "four", cells(*(("a", name, 20) for name in names)))
    assert one.rows[0].mean.low == pytest.approx(four.rows[0].mean.low)


def test_spread_is_over_seeds_and_one_seed_has_none(tmp_path: pathlib.Path) -> None:
    several = cells(("a", "fog-5", 10), ("a", "snow-5", 20)) | cells(("a", "fog-5", 14), ("a", "snow-5", 20), seed=1)
    [table] = made(tmp_path / "two", several)
    row = table.rows[0]
    assert row.cells["fog"].text == "12.0±2.8"
    assert row.mean.text == "16.0±1.4", "the spread of the seeds' means"
    assert "over 2 seeds (0, 1)" in table.caption
    [single] = made(tmp_path / "one", cells(("a", "fog-5", 10)), all_images=False)
    assert single.rows[0].cells["fog"].std is None
    assert "one seed (0)" in single.caption
    assert "a subset: not a result" in single.caption


def test_a_failed_a_skipped_and_a_missing_cell_are_seen_and_not_compared(tmp_path: pathlib.Path) -> None:
    rows = cells(("a", "fog-5", 10), ("a", "snow-5", 20), ("b", "fog-5", 1), ("c", "fog-5", 30), ("c", "snow-5", 40))
    gaps = {("b", "m", "snow-5", 0): "failed", ("d", "m", "fog-5", 0): "skipped", ("d", "m", "snow-5", 0): "skipped",
            ("e", "m", "fog-5", 0): "missing", ("e", "m", "snow-5", 0): "missing"}  # fmt: skip
    [table] = made(tmp_path, {**rows, **gaps})
    a, b, c, d, e = table.rows
    assert (b.mean.text, b.cells["snow"].text, d.mean.text, e.mean.text) == ("1.0*", "failed", "skipped", "missing")
    assert b.cells["fog"].mark == "best", "this cell is whole"
    assert (a.mean.mark, b.mean.mark, c.mean.mark) == ("best", "", "second"), "1.0 is over one corruption of two"
    assert b.reason == "failed for a reason"
    assert {(p.label, p.other) for p in table.pairs} == {("a", "c")}


def test_a_missing_seed_marks_the_mean_and_takes_it_out_of_comparisons(tmp_path: pathlib.Path) -> None:
    whole = cells(("a", "fog-5", 10), ("b", "fog-5", 20), ("c", "fog-5", 30))
    later = cells(("a", "fog-5", 10), ("b", "fog-5", 20), ("c", "fog-5", 30), seed=1)
    [table] = made(tmp_path, {**whole, **later, ("a", "m", "fog-5", 1): "missing"})
    assert table.rows[0].mean.text == "10.0*"
    assert [row.mean.mark for row in table.rows] == ["", "best", "second"]


def test_a_seed_that_lacks_a_corruption_does_not_enter_the_mean(tmp_path: pathlib.Path) -> None:
    """Seed 1 failed under snow: its fog alone is no mean over fog and snow."""
    first = cells(("a", "fog-5", 10), ("a", "snow-5", 30))
    second = cells(("a", "fog-5", 12), seed=1)
    [table] = made(tmp_path, {**first, **second, ("a", "m", "snow-5", 1): "failed"})
    assert table.rows[0].mean.mean == pytest.approx(20)
    assert table.rows[0].mean.text == "20.0*"


def test_cells_of_other_images_are_not_tested_and_that_is_said(tmp_path: pathlib.Path) -> None:
    one = write_run(tmp_path / "one", cells(("a", "fog-5", 10)))
    other = write_run(tmp_path / "other", cells(("b", "fog-5", 20)), image_ids=np.arange(1000) + 1000)
    [table] = tables(gather([one, other]))
    assert table.untested == "the cells do not share their images"
    assert [row.mean.mark for row in table.rows] == ["", ""]
    assert [row.mean.low for row in table.rows] == [None, None]


def test_the_order_of_the_stream_does_not_matter(tmp_path: pathlib.Path) -> None:
    rows = {("a", "m", "fog-5", 0): verdicts(20, 500), ("b", "m", "fog-5", 0): verdicts(30, 500)}
    [plain] = made(tmp_path / "plain", rows)
    order = np.random.default_rng(0).permutation(500)
    [shuffled] = made(tmp_path / "shuffled", {k: v[order] for k, v in rows.items()}, image_ids=order)  # type: ignore[index]
    assert plain.rows == shuffled.rows
    assert plain.pairs == shuffled.pairs


def test_ranks_are_over_source_models_and_corruptions(tmp_path: pathlib.Path) -> None:
    rows = {(label, model, shift, 0): verdicts(error)
            for model in ("m", "n") for shift in ("fog-5", "snow-5") for label, error in (("a", 10), ("b", 20), ("c", 30))}  # fmt: skip
    [table] = made(tmp_path, {**rows, ("d", "m", "fog-5", 0): "skipped"})
    assert set(table.ranks) == {"", "m", "n"}
    assert table.ranks[""].labels == ["a", "b", "c"]
    assert table.ranks[""].ranks.tolist() == [1, 2, 3]
    assert table.ranks[""].blocks == 4
    assert table.ranks[""].left_out == ["d"]


def test_other_protocols_and_batch_sizes_have_tables_of_their_own(tmp_path: pathlib.Path) -> None:
    one = write_run(tmp_path / "one", cells(("a", "fog-5", 10)))
    other = write_run(tmp_path / "other", cells(("a", "fog-5", 20)), protocol="continual")
    found = tables(gather([one, other]))
    assert [t.setting.protocol for t in found] == ["reset", "continual"]
    assert [t.name for t in found] == ["d-reset-10-severity-5", "d-continual-10-severity-5"]
    assert [len(t.rows) for t in found] == [1, 1]


def test_a_curve_over_adapt_images_has_tables_of_its_own_and_is_never_averaged(tmp_path: pathlib.Path) -> None:
    runs = [
        write_run(tmp_path / str(count), cells(("a", "fog-5", error), ("a", "snow-5", error)), adapt_images=count)
        for count, error in ((64, 40), (None, 20))
    ]
    evidence = gather(runs)
    [most] = tables(evidence)
    [whole] = curves(evidence)
    assert most.rows[0].mean.mean == pytest.approx(20), "of the trials that adapt on all images"
    assert "adapted on all images" in most.caption
    assert "images of each segment adapted on" in whole.caption
    assert whole.columns == ["64", "all"]
    assert [cell.mean for cell in whole.rows[0].cells.values()] == [pytest.approx(40), pytest.approx(20)]


def test_a_shift_that_is_met_in_parts_counts_all_its_images_alike() -> None:
    parts = [(64, 100.0), (936, 10.0)]
    shared = {
        "model": "m",
        "label": "a",
        "corruption": "fog",
        "shift": "fog-5",
        "seed": 0,
        "status": "ok",
        "reason": "",
    }
    frame = pd.DataFrame([{**shared, "images": n, "error_pct": error} for n, error in parts])
    [row] = rows_of(frame, "corruption", ["fog"])
    assert row.mean.mean == pytest.approx((64 * 100 + 936 * 10) / 1000)
    other = frame.iloc[:1].assign(corruption="snow", shift="snow-5", images=10, error_pct=0.0)
    [row] = rows_of(pd.concat([frame, other]).assign(view="all"), "view", ["all"])
    assert row.cells["all"].mean == pytest.approx(15.76 / 2), "a mean over shifts does not ask for their sizes"


def test_a_curve_is_also_graded_on_the_same_images_at_every_point(tmp_path: pathlib.Path) -> None:
    runs = [
        write_run(
            tmp_path / str(count), cells(("a", "fog-5", 30)), adapt_images=count, facts={"error_after_pct": after}
        )
        for count, after in ((64, 35.0), (None, 15.0))
    ]
    _, after = curves(gather(runs))
    assert "after the first 64" in after.title
    assert [cell.mean for cell in after.rows[0].cells.values()] == [35, 15]


def test_a_run_that_graded_nothing_after_has_no_point_on_that_curve(tmp_path: pathlib.Path) -> None:
    graded = write_run(tmp_path / "64", cells(("a", "fog-5", 30)), adapt_images=64, facts={"error_after_pct": 35.0})
    _, after = curves(gather([graded, write_run(tmp_path / "all", cells(("a", "fog-5", 20)))]))
    assert [cell.text for cell in after.rows[0].cells.values()] == ["35.0", "none"]


def test_a_seed_that_only_another_method_has_is_missing(tmp_path: pathlib.Path) -> None:
    """Two runs: source with seed 0, tent with three; on the seed that they share it is source that is better."""
    source = write_run(tmp_path / "one", {("source", "m", "fog-5", 0): verdicts(20)})
    errors = {0: 25, 1: 10, 2: 10}
    tent = write_run(tmp_path / "two", {("tent", "m", "fog-5", s): verdicts(e, first=300) for s, e in errors.items()})
    [table] = tables(gather([source, tent]))
    few, many = table.rows
    assert (few.mean.text, few.reason) == ("20.0*", "not run with seed 1, 2")
    assert many.mean.state == "ok"
    assert not table.pairs
    assert few.mean.mark == many.mean.mark == ""


def test_methods_without_a_seed_in_common_are_compared_with_nothing(tmp_path: pathlib.Path) -> None:
    runs = [write_run(tmp_path / str(s), {(f"m{s}", "m", "fog-5", s): verdicts(10 * (s + 1))}) for s in (0, 1)]
    [table] = tables(gather(runs))
    assert [row.mean.text for row in table.rows] == ["10.0*", "20.0*"]
    assert not table.pairs


def test_images_that_differ_are_not_paired_even_when_mixed(tmp_path: pathlib.Path) -> None:
    one = write_run(tmp_path / "one", cells(("a", "fog-5", 10)))
    other = write_run(tmp_path / "other", cells(("b", "fog-5", 40)), data="others")
    [table] = tables(gather([one, other], mix=True))
    assert table.untested == "the cells do not share their images"
    assert not table.pairs
    assert [row.mean.mark for row in table.rows] == ["", ""]


def test_only_clean_is_a_mean_that_leaves_nothing_out(tmp_path: pathlib.Path) -> None:
    [table] = made(tmp_path, cells(("a", "clean", 10)))
    assert table.rows[0].mean.mean == pytest.approx(10)
    assert "leaves clean out" not in table.caption


def test_a_run_without_a_result_says_that(tmp_path: pathlib.Path) -> None:
    [table] = made(tmp_path, {("a", "m", "fog-5", 0): "failed", ("b", "m", "fog-5", 0): "missing"})
    assert table.untested == "there is no result"
    assert [row.mean.text for row in table.rows] == ["failed", "missing"]


def test_a_mean_over_fewer_cells_has_no_interval(tmp_path: pathlib.Path) -> None:
    """Its seeds are not those of its cells: the interval could leave it out."""
    [table] = made(tmp_path, {**cells(("a", "fog-5", 10), ("a", "snow-5", 30)), ("a", "m", "snow-5", 1): "failed"})
    assert table.rows[0].mean.low is None
    assert table.rows[0].cells["fog"].low is not None
