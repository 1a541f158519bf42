"""Tables along the stream and the overview of protocols, against the runs' own rows."""

from __future__ import annotations

import dataclasses
import pathlib

import pandas as pd
import pytest
from conftest import DIGITS_SUITE, run_locally

from tta_bench.report import across, content
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.report.figures import drawings
from tta_bench.report.figures.style import house_style
from tta_bench.report.render import grids
from tta_bench.report.table import ErrorTable

pytestmark = pytest.mark.faults  # one run under seven protocols

PROTOCOLS = """\
protocol:
  - {kind: reset}
  - {kind: continual}
  - {kind: continual, delta: 0.1}
  - {kind: gradual, severities: [1, 3, 5, 3, 1], corruptions: [contrast, fog]}
  - {kind: recurring, visits: 3}
  - {kind: continual, probe: {shift: clean, images: 30}}
  - {kind: continual, adapt: {eta: 1.0, cost_ratio: 2}}
  - {kind: continual, batch_size: 10, adapt: {every: [1, 3]}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> Content:
    """The report on a run of the small digits suite under several protocols."""
    folder = tmp_path_factory.mktemp("views")
    text = DIGITS_SUITE.replace("[clean, contrast]", "[clean, contrast, fog]")
    (folder / "views.yaml").write_text(text + PROTOCOLS)
    return content.make(gather([run_locally(folder / "views.yaml", folder / "run", cache)]), ReportOptions())


def named(report: Content, kind: str, protocol: str) -> ErrorTable:
    """The view of a kind and protocol, the latter as its parameters say it."""
    named = {f"{t.setting.protocol} {t.setting.base.told}".strip(): t for t in report.views if t.view == kind}
    return named[protocol]


def rows_of(report: Content, table: ErrorTable) -> pd.DataFrame:
    """The rows of the runs under a table's protocol."""
    return report.evidence.shifts[report.evidence.shifts["section"] == table.setting.base.id]


def shown(table: ErrorTable) -> dict[str, list[float | None]]:
    """The values of each method by column."""
    return {row.label: [row.cells[name].mean for name in table.corruptions] for row in table.rows}


def means(rows: pd.DataFrame, label: str, by: str) -> list[float]:
    return rows[rows["label"] == label].groupby(by, sort=False)["error_pct"].mean().tolist()


def test_gradual_shows_the_error_at_each_place_and_their_mean(made: Content) -> None:
    table = named(made, "place", "gradual severities [1, 3, 5, 3, 1]")
    assert table.columns == ["1", "3", "5", "3 again", "1 again", "mean"]
    rows = rows_of(made, table)
    steps = rows.assign(step=rows["severity"].astype(str) + " " + rows["visit"].astype(str))
    for label, values in shown(table).items():
        assert values == pytest.approx(means(steps, label, "step"))
        [row] = [row for row in table.rows if row.label == label]
        assert row.mean.mean == pytest.approx(sum(values) / 5)  # type: ignore[arg-type]


def test_recurring_shows_the_error_at_each_visit_and_its_change(made: Content) -> None:
    table = named(made, "visit", "recurring visits 3")
    assert table.columns == ["1", "2", "3", "last − first"]
    shifted = rows_of(made, table).query("corruption != 'clean'")
    for label, (*visits, change) in shown(table).items():
        assert visits == pytest.approx(means(shifted, label, "visit"))
        assert change == pytest.approx(visits[2] - visits[0])  # type: ignore[operator]


def test_probes_are_apart_and_show_forgetting(made: Content) -> None:
    [table] = [table for table in made.views if table.view == "probe"]
    assert table.columns == ["after 1", "after 2", "average", "forgetting"]
    probes = rows_of(made, table).query("role == 'probe'")
    values = shown(table)
    assert values["tent"][:2] == pytest.approx(means(probes, "tent", "visit"))
    assert values["source"][3] == 0
    assert values["tent"][3] == pytest.approx(values["tent"][2] - values["source"][2])  # type: ignore[operator]
    [errors] = [t for t in made.tables if t.setting.base == table.setting.base]
    assert errors.corruptions == ["fog", "contrast"], "without the probe's shift"


def test_a_time_constrained_stream_shows_adapted_and_predicted_images(made: Content) -> None:
    [table] = [t for t in made.views if t.view == "adaptation" and "eta" in t.setting.base.told]
    assert table.columns == ["all", "adapted", "predicted", "share"]
    shifted = rows_of(made, table).query("label == 'tent' and corruption != 'clean'")
    expected = [shifted[name].mean() for name in ("error_pct", "error_adapted_pct", "error_skipped_pct")]
    assert shown(table)["tent"][:3] == pytest.approx(expected)
    share = 100 * shifted["images_adapted"].astype(float) / shifted["images"].astype(float)
    assert shown(table)["tent"][3] == pytest.approx(share.mean())


def test_collapse_is_the_share_of_the_most_predicted_class(made: Content) -> None:
    table = named(made, "collapse", "continual delta 0.1")
    assert table.columns == ["images", "classes", "most predicted"]
    segments = made.evidence.segments
    segments = segments[segments["section"] == table.setting.base.id].query("label == 'tent' and segment != 'clean'")
    assert shown(table)["tent"][2] == pytest.approx(segments["most_predicted_pct"].mean())


def test_a_stream_of_one_part_has_no_view_but_that_of_collapse(made: Content) -> None:
    assert {table.view for table in made.views if table.setting.protocol == "reset"} == {"collapse"}


def test_the_overview_has_a_column_for_each_protocol_and_the_average_rank(made: Content) -> None:
    [table] = made.overviews
    assert table.corruptions[0] == "reset"
    assert table.corruptions[-1] == "rank"
    assert len(table.corruptions) == 10
    assert any("delta 0.1" in column for column in table.corruptions)
    worst = {t.setting.base: {r.label: r.mean.mean for r in t.rows} for t in made.tables}
    errors = pd.DataFrame(worst)
    for label, (*values, rank) in shown(table).items():
        assert values == errors.loc[label].tolist()
        assert rank == errors.rank().mean(axis=1)[label]
    assert grids.grids(made)[0].title.endswith("error in per cent by protocol")


def test_an_overview_of_precisions_is_not_called_one_of_protocols(made: Content) -> None:
    first = next(table for table in made.tables if table.setting.protocol == "reset")
    setting = dataclasses.replace(first.setting, base=dataclasses.replace(first.setting.base, precision="bfloat16"))
    [table] = across.overview("digits", [first, dataclasses.replace(first, setting=setting)], ())
    assert table.title == "digits: error in per cent by setting"
    assert "under every setting" in table.caption


def test_what_a_suite_varies_has_a_table_and_a_figure(made: Content) -> None:
    [table] = [table for table in made.views if table.view == "by adapt"]
    assert table.corruptions == ["every 1", "every 3"]
    assert "batch size 10" in table.caption
    worst = {t.setting.base.caption: {r.label: r.mean.mean for r in t.rows} for t in made.tables}
    for label, values in shown(table).items():
        assert values == [worst[f"adapt every {k}"][label] for k in (1, 3)]
    with house_style():
        figures = [drawing for drawing in drawings(made) if drawing.text.title == "Error by adapt"]
    [axes] = figures[0].figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["every 1", "every 3"]
    assert len(figures) == 1
    assert "every" not in figures[0].text.conditions
