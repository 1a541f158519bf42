"""Tables along the stream and the overview of protocols, against the runs' own rows."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import Outcome, run_locally

from tta_bench.report import content
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.report.render import grids
from tta_bench.report.table import ErrorTable

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]
Report = Callable[..., Content]


@pytest.fixture
def report(suite_file: SuiteFile, tmp_path: pathlib.Path, cache: pathlib.Path) -> Report:
    """The report on local runs of the small digits suite, one for each protocol (a suite's text)."""

    def make(*protocols: str, severities: str = "[5]", corruptions: str = "[clean, contrast, fog]") -> Content:
        runs = []
        for number, protocol in enumerate(protocols):
            file = suite_file(("corruptions: [clean, contrast]", f"corruptions: {corruptions}"),
                              ("severities: [5]", f"severities: {severities}\nprotocol: {protocol}"))  # fmt: skip
            runs.append(run_locally(file, tmp_path / str(number), cache))
        return content.make(gather(runs), ReportOptions())

    return make


def named(report: Content, kind: str) -> ErrorTable:
    [table] = [table for table in report.views if table.name.rpartition("severity")[0] == "" and kind in table.name]
    return table


def shown(table: ErrorTable) -> dict[str, list[float | None]]:
    """The values of each method by column."""
    return {row.label: [row.cells[name].mean for name in table.corruptions] for row in table.rows}


def means(rows: pd.DataFrame, label: str, by: str) -> list[float]:
    return rows[rows["label"] == label].groupby(by, sort=False)["error_pct"].mean().tolist()


def test_gradual_shows_the_error_at_each_place_and_their_mean(report: Report) -> None:
    made = report("{kind: gradual, severities: [1, 3, 5, 3, 1]}", severities="[1, 3, 5]", corruptions="[contrast, fog]")
    table = named(made, "place")
    assert table.columns == ["1", "3", "5", "3 again", "1 again", "mean"]
    rows = made.evidence.shifts
    steps = rows.assign(step=rows["severity"].astype(str) + " " + rows["visit"].astype(str))
    for label, values in shown(table).items():
        assert values == pytest.approx(means(steps[steps["label"] == label], label, "step"))
        [row] = [row for row in table.rows if row.label == label]
        assert row.mean.mean == pytest.approx(sum(values) / 5)  # type: ignore[arg-type]
    assert [t.setting.severity for t in made.tables] == [1, 3, 5]


def test_recurring_shows_the_error_at_each_visit_and_its_change(report: Report) -> None:
    table = named(made := report("{kind: recurring, visits: 3}"), "visit")
    assert table.columns == ["1", "2", "3", "last − first"]
    shifted = made.evidence.shifts.query("corruption != 'clean'")
    for label, (*visits, change) in shown(table).items():
        assert visits == pytest.approx(means(shifted, label, "visit"))
        assert change == pytest.approx(visits[2] - visits[0])  # type: ignore[operator]


def test_probes_are_apart_and_show_forgetting(report: Report) -> None:
    made = report("{kind: continual, probe: {shift: clean, images: 30}}")
    table = named(made, "probe")
    assert table.columns == ["after 1", "after 2", "mean ", "forgetting"]
    probes = made.evidence.shifts.query("role == 'probe'")
    values = shown(table)
    assert values["tent"][:2] == pytest.approx(means(probes, "tent", "visit"))
    assert values["source"][3] == 0
    assert values["tent"][3] == pytest.approx(values["tent"][2] - values["source"][2])  # type: ignore[operator]
    assert made.tables[0].corruptions == ["fog", "contrast"], "without the probe's shift"


def test_a_time_constrained_stream_shows_adapted_and_predicted_images(report: Report) -> None:
    made = report("{kind: continual, adapt: {eta: 1.0, cost_ratio: 2}}")
    [table] = [table for table in made.views if "adaptation" in table.name]
    assert table.columns == ["all", "adapted", "predicted", "share"]
    shifted = made.evidence.shifts.query("label == 'tent' and corruption != 'clean'")
    expected = [shifted[name].mean() for name in ("error_pct", "error_adapted_pct", "error_skipped_pct")]
    assert shown(table)["tent"][:3] == pytest.approx(expected)
    assert 0 < (shown(table)["tent"][3] or 0) < 100


def test_collapse_is_the_share_of_the_most_predicted_class(report: Report) -> None:
    made = report("{kind: continual, delta: 0.1}")
    [table] = [table for table in made.views if "collapse" in table.name]
    assert table.columns == ["images", "classes", "most predicted"]
    segments = made.evidence.segments.query("label == 'tent' and segment != 'clean'")
    assert shown(table)["tent"][2] == pytest.approx(segments["most_predicted_pct"].mean())


def test_a_plain_reset_run_has_no_views_and_no_overview(report: Report) -> None:
    made = report("{kind: reset}")
    assert (made.views, made.overviews) == ([], [])


def test_the_overview_has_a_column_for_each_protocol_and_the_average_rank(report: Report) -> None:
    made = report("{kind: reset}", "{kind: continual}", "{kind: continual, delta: 0.1}")
    [table] = made.overviews
    assert table.corruptions == ["reset", "continual", "continual, delta 0.1", "rank"]
    errors = pd.DataFrame({t.setting.base: {r.label: r.mean.mean for r in t.rows} for t in made.tables})
    for label, (*values, rank) in shown(table).items():
        assert values == errors.loc[label].tolist()
        assert rank == errors.rank().mean(axis=1)[label]
    assert grids.grids(made)[0].title.endswith("error in per cent by protocol, severity 5")
