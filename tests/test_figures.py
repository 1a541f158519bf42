"""The figures: which there are, that they show the tables' numbers, and that nothing is hidden, cut or covered."""

from __future__ import annotations

import io
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from conftest import Outcome
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from runs import Cell, verdicts, write_run

from tta_bench.report import content, figures, table
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.report.figures import by_corruption, by_cost, by_severity, by_updates, heatmap, online, ranks
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, sections
from tta_bench.report.figures.style import colours, house_style, styles
from tta_bench.report.table import MethodErrors

HOSTILE = "$x_1$ 100% [lr=0.001] <&>"
LONG = "mgg[lr=0.001,objective=entropy+alignment]"
SHIFTS = ["clean", "gaussian_noise-5", "fog-5", "contrast-5"]


def cells(labels: list[str], models: list[str], shifts: list[str], seeds: list[int]) -> dict[Cell, np.ndarray | str]:
    """Trials of 100 images whose errors all differ a little."""
    found: dict[Cell, np.ndarray | str] = {}
    for (i, label), (j, model), (k, shift), seed in itertools.product(
        *(enumerate(names) for names in (labels, models, shifts)), seeds
    ):
        error = 10 + 5 * ((i * 7 + j * 3 + k * 5) % 11) + seed
        found[label, model, shift, seed] = verdicts(error, 100, 13 * i)
    return found


def made(path: pathlib.Path, rows: Mapping[Cell, np.ndarray | str], **options: Any) -> Content:
    return content.make(gather([write_run(path / "run", rows, **options)]), ReportOptions())


def only(report: Content) -> Section:
    [section] = sections(report)
    return section


def names(report: Content) -> list[str]:
    with house_style():
        return [drawing.text.name for drawing in figures.drawings(report)]


def texts(figure: Figure) -> list[str]:
    """Everything written in a figure."""
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Twelve methods, three source models, one method skipped, one failed in a cell, a seed missing, a subset."""
    labels = ["source", "norm", "tent", "eta", "eata", "sar", "cotta", "a", LONG, HOSTILE, "_b", "last"]
    models = ["resnet18", "vit_base_patch16_224.augreg2_in21k_ft_in1k", "convnext_tiny.fb_in22k"]
    rows = cells(labels, models, [*SHIFTS, "fog-3", "contrast-3", "elastic_transform-5"], [0, 1])
    for place in rows:
        label, model, shift, seed = place
        if label == "norm" and model != "resnet18":
            rows[place] = "skipped"
        elif place[:3] == ("sar", models[1], "fog-5"):
            rows[place] = "failed"
        elif (label, model, shift, seed) == (LONG, "resnet18", "contrast-5", 1):
            rows[place] = "missing"
    report = made(tmp_path_factory.mktemp("hard"), rows, all_images=False)
    frame = report.evidence.segments  # costs that differ, on a GPU
    number = frame["label"].map({label: i for i, label in enumerate(labels)})
    frame["updates"] = frame["images_backwarded"] = (100 * (number % 3)).astype("Int64")
    frame["step_ms_median"], frame["peak_memory_mib"] = 5.0 + number, 100.0 * (1 + number % 5)
    return content.make(report.evidence, ReportOptions())


@pytest.fixture(scope="module")
def hard_drawings(hard: Content) -> list[Drawing]:
    """Its figures, laid out."""
    with house_style():
        drawings = list(figures.drawings(hard))
        for drawing in drawings:
            drawing.figure.draw_without_rendering()
    return drawings


# -- which figures there are -------------------------------------------------------------------------------------------


def test_there_is_a_figure_only_where_there_is_something_to_draw(tmp_path: pathlib.Path, hard: Content) -> None:
    def of(name: str, rows: dict[Cell, np.ndarray | str], **options: Any) -> list[str]:
        return names(made(tmp_path / name, rows, **options))

    assert of("one", cells(["tent"], ["m"], ["fog-5"], [0])) == ["errors", "online"]
    assert of("none", dict.fromkeys(cells(["tent"], ["m"], ["fog-5"], [0]), "failed")) == []
    assert of("two", cells(["source", "tent"], ["m"], ["fog-3", "fog-5"], [0])) == [
        "errors", "severity", "online", "heatmap"]  # fmt: skip
    assert of("three", cells(["a", "b", "c"], ["m"], ["fog-5", "snow-5"], [0])) == ["errors", "online", "ranks"]
    costs = [
        f"cost-{name}" for name in ("resnet18", "vit-base-patch16-224-augreg2-in21k-ft-in1k", "convnext-tiny-fb-in22k")
    ]
    assert names(hard) == ["errors", "severity", "online", *costs, "updates", "heatmap", "ranks"]


def test_nothing_is_written_without_formats(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["tent"], ["m"], ["fog-5"], [0]))
    assert figures.draw(report, tmp_path / "figures", []) == []
    assert not (tmp_path / "figures").exists()


def test_several_data_sets_have_figures_of_their_own(tmp_path: pathlib.Path) -> None:
    rows = cells(["tent"], ["m"], ["fog-5"], [0])
    runs = [write_run(tmp_path / name, rows, dataset=name) for name in ("C-10", "C-100")]
    report = content.make(gather(runs), ReportOptions())
    assert names(report) == [
        "errors-c-10-reset-10",
        "online-c-10-reset-10",
        "errors-c-100-reset-10",
        "online-c-100-reset-10",
    ]


def test_times_of_two_devices_are_in_figures_of_their_own(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], ["fog-5"], [0, 1])
    report = made(tmp_path, rows)
    frame = report.evidence.segments
    frame["device"] = "cuda"
    frame["device_name"] = ["GPU A" if seed == 0 else "GPU B" for seed in frame["seed"]]
    frame["step_ms_median"] = [
        5.0 + (label == "tent") + 10 * seed for label, seed in zip(frame["label"], frame["seed"], strict=True)
    ]
    report = content.make(report.evidence, ReportOptions())
    with house_style():
        drawings = list(by_cost.draw(only(report)))
    assert [drawing.text.name for drawing in drawings] == ["cost-1", "cost-2"]
    assert ["GPU A" in drawing.text.caption for drawing in drawings] == [True, False]
    assert [drawing.figure.axes[0].get_xlim()[1] < 10 for drawing in drawings] == [True, False]


def test_the_precision_is_told_once_beside_the_hardware(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["source", "tent"], ["m"], ["fog-5"], [0]), precision="float64")
    frame = report.evidence.segments
    frame["step_ms_median"] = [5.0 + (label == "tent") for label in frame["label"]]
    report = content.make(report.evidence, ReportOptions())
    with house_style():
        [drawing] = by_cost.draw(only(report))
    assert "batch size 10, float64, " in drawing.text.caption
    assert drawing.text.caption.count("float64") == 1


def test_a_curve_over_images_adapted_on(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], ["fog-5", "snow-5"], [0])
    runs = [write_run(tmp_path / str(n), rows, adapt_images=n, facts={"error_after_pct": 33.0}) for n in (20, 50, None)]
    with house_style():
        *_, drawing = figures.drawings(content.make(gather(runs), ReportOptions()))
    assert drawing.text.name == "adapt_images"
    expected = {"error on all images, %", "error after the first 50, %", "20", "50", "all"}
    assert expected <= set(texts(drawing.figure))


# -- what they show ----------------------------------------------------------------------------------------------------


def test_bars_are_the_tables_errors(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0, 1])))
    with house_style():
        [drawing] = by_corruption.draw(section)
    bars = [part for part in drawing.figure.axes[0].containers if isinstance(part, BarContainer)]
    for row, container in zip(section.worst.rows, bars, strict=True):
        expected = [section.worst.cell(row, name).mean for name in section.worst.columns]
        assert [bar.get_height() for bar in container] == pytest.approx(expected)
    assert "± standard deviation over seeds" in drawing.text.caption


def test_with_one_seed_bars_have_intervals_over_images(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0])))
    with house_style():
        [drawing] = by_corruption.draw(section)
    assert "95\u00a0% interval over images" in drawing.text.caption
    bars = next(part for part in drawing.figure.axes[0].containers if isinstance(part, BarContainer))
    ends = bars.errorbar.lines[2][0].get_segments()[0][:, 1]
    clean = section.worst.rows[0].cells["clean"]
    assert ends == pytest.approx([clean.low, clean.high])


def test_a_cell_without_a_result_has_a_cross(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], SHIFTS, [0])
    rows["tent", "m", "fog-5", 0] = "failed"
    with house_style():
        [drawing] = by_corruption.draw(only(made(tmp_path, rows)))
    [crosses] = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "x"]
    assert crosses.get_xdata().round().tolist() == [2], "fog, after clean and gaussian noise"
    assert "× no result" in drawing.text.notes


def test_a_heat_map_of_one_method_has_a_row_of_coloured_cells(tmp_path: pathlib.Path) -> None:
    with house_style():
        [drawing] = heatmap.draw(only(made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0]))))
        drawing.figure.draw_without_rendering()
    axes, scale = drawing.figure.axes
    [mesh] = axes.collections
    assert mesh.get_datalim(axes.transData).bounds == pytest.approx((-0.5, -0.5, 5, 1))
    assert min(axes.bbox.height, scale.bbox.height) > 0.5 * drawing.figure.dpi


def test_ranks_are_drawn_with_half_the_critical_difference(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["a", "b", "c"], ["m"], SHIFTS, [0])))
    with house_style():
        [drawing] = ranks.draw(section)
    [axes], expected = drawing.figure.axes, section.worst.ranks[""]
    assert [label.get_text() for label in axes.get_yticklabels()] == expected.labels
    bars = [part.lines[2][0].get_segments()[0][:, 0] for part in axes.containers]
    assert np.mean(bars, axis=1) == pytest.approx(expected.ranks)
    assert np.diff(bars, axis=1).ravel() == pytest.approx([expected.critical] * 3)


def test_the_heat_map_is_the_difference_to_the_baseline(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent", "norm"], ["m"], SHIFTS, [0])
    rows["norm", "m", "fog-5", 0] = "failed"
    worst = only(made(tmp_path, rows)).worst
    grid = heatmap.relative(worst, "m", ["tent", "norm"], "source")
    source, tent, _ = worst.rows
    expected = [worst.cell(tent, n).mean - worst.cell(source, n).mean for n in worst.columns]  # type: ignore[operator]
    assert grid.values[0] == pytest.approx(expected)
    assert np.isnan(grid.values[1]).tolist() == [False, False, True, False, False]
    assert grid.fewer[1].tolist() == [False, False, False, False, True], "the mean lacks a corruption"


@pytest.mark.parametrize(
    ("costs", "errors", "front"),
    [
        ([1, 2, 3], [30, 20, 10], [0, 1, 2]),
        ([1, 2, 3], [10, 20, 30], [0]),
        ([3, 1, 2], [10, 30, 40], [1, 0]),
        ([1, 1, 2], [20, 10, 10], [1]),
        ([1, 1, 2], [10, 10, 10], [0, 1]),
    ],
)
def test_no_method_is_better_than_one_of_the_front_in_both(
    costs: list[float], errors: list[float], front: list[int]
) -> None:
    points = [(cost, mean_of(error)) for cost, error in zip(costs, errors, strict=True)]
    found = sorted(by_cost.Costs("time", points, []).front, key=lambda point: point[0])
    assert found == [points[i] for i in front]
    axes = Figure().subplots()
    axes.set_xlim(0, 9)
    by_cost._draw_front(axes, found)
    assert axes.lines[0].get_xdata().tolist() == [*(costs[i] for i in front), 9]
    assert axes.lines[0].get_ydata().tolist() == [*(errors[i] for i in front), errors[front[-1]]]


def mean_of(error: float, label: str = "tent") -> MethodErrors:
    return MethodErrors(label, "m", {}, table.Cell(error, None, "ok"), "")


# Label: images forwarded and backwarded per image, step in ms, MiB; error in per cent.
COSTS = {"source": (1, 0, 5.0, 1000, 45), "norm": (1, 0, 5.2, 1000, 32), "tent": (1, 1, 14, 2600, 29),
         "cotta": (34, 0.02, 190, 4400, 28), "eata": (1, 0.4, 11, 2500, 27), "sar": (2, 1.6, 27, 2700, 27.1)}  # fmt: skip


def priced(path: pathlib.Path, costs: Mapping[str, Any], *, on_gpu: bool, unmeasured: str = "") -> list[Drawing]:
    """Figures of error by cost of methods on two source models."""
    rows = {(label, model, "fog-5", 0): verdicts(own[4], 1000) for label, own in costs.items() for model in ("m", "n")}
    frame = (report := made(path, rows)).evidence.segments
    forwarded, backwarded, time, memory = (frame["label"].map({k: v[i] for k, v in costs.items()}) for i in range(4))
    frame["images_forwarded"] = (1000 * forwarded).round().astype("Int64")
    frame["images_backwarded"] = (1000 * backwarded).round().astype("Int64").mask(frame["label"] == unmeasured)
    frame["step_ms_median"] = time.astype(float)
    if on_gpu:
        frame["peak_memory_mib"] = memory.astype(float)
    with house_style():
        drawings = list(by_cost.draw(only(content.make(report.evidence, ReportOptions()))))
        for drawing in drawings:
            drawing.figure.draw_without_rendering()
    return drawings


def marks(axes: Axes) -> dict[str, np.ndarray]:
    """The points (n, 2) of a panel: "" those of methods, "ring" those of its front."""
    found: dict[str, list[tuple[float, float]]] = {"": [], "ring": []}
    for line in axes.lines:
        if line.get_marker() not in ("None", None, "", "_", "|"):
            name = "ring" if line.get_markersize() > 8 else ""
            found[name] += list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return {name: np.array(points) for name, points in found.items()}


def test_each_source_model_has_a_figure_and_each_cost_a_panel_with_its_front(tmp_path: pathlib.Path) -> None:
    drawings = priced(tmp_path, COSTS, on_gpu=True)
    assert [drawing.text.name for drawing in drawings] == ["cost-m", "cost-n"]
    assert [drawing.text.title for drawing in drawings] == ["Error by cost, m", "Error by cost, n"]
    axes = drawings[0].figure.axes
    assert [panel.get_xlabel() for panel in axes] == ["forward passes per image", "backward passes per image",
                                                      "time of a step, ms", "peak memory, MiB"]  # fmt: skip
    times = marks(axes[2])
    assert times[""] == pytest.approx(np.array([(cost[2], cost[4]) for cost in COSTS.values()]))
    assert times["ring"] == pytest.approx(np.array([(5.0, 45), (5.2, 32), (11, 27)]))
    assert "Pareto front by time of a step, ms: source, norm, eata." in drawings[0].text.caption
    assert marks(axes[3])["ring"] == pytest.approx(np.array([(1000, 32), (2500, 27)]))
    forwards = marks(axes[0])
    assert forwards["ring"] == pytest.approx(np.array([(1, 27)])), "all others cost as much or more"
    assert len(forwards[""]) == len(COSTS)


def test_a_cost_of_0_has_its_place_left_of_a_logarithmic_axis(tmp_path: pathlib.Path) -> None:
    drawing, _ = priced(tmp_path, COSTS, on_gpu=True)
    backwards = drawing.figure.axes[1]
    assert backwards.get_xscale() == "log"
    zero, first = backwards.get_xticks()[:2]
    assert backwards.get_xticklabels()[0].get_text() == "0"
    assert zero < 0.02 <= first
    [border] = [
        line for line in backwards.lines if line.get_linestyle() not in ("-", "None") and len(line.get_xdata()) == 2
    ]
    assert zero < border.get_xdata()[0] < 0.02
    assert marks(backwards)[""][:2] == pytest.approx(np.array([(zero, 45), (zero, 32)]))
    assert "Left of a dotted line: cost 0, which a logarithmic axis does not have" in drawing.text.notes


def test_what_is_not_known_is_said(tmp_path: pathlib.Path) -> None:
    some = {label: COSTS[label] for label in ("source", "norm", "tent", "eata")}
    drawing, _ = priced(tmp_path, some, on_gpu=False, unmeasured="tent")
    assert [axes.get_xlabel() for axes in drawing.figure.axes] == ["backward passes per image", "time of a step, ms"]
    assert len(marks(drawing.figure.axes[0])[""]) == 3
    assert set(drawing.text.notes) >= {
        "The same for all methods with a value: forward passes per image, 1",
        "Without a value for backward passes per image: tent",
        "Not measured: peak memory, MiB",
    }


def test_twenty_methods_are_told_apart(tmp_path: pathlib.Path) -> None:
    many = {f"method_{i}": (1 + i % 3, i % 2, 5.0 + i**2, 1000 + i, 20 + 0.05 * i) for i in range(20)}
    drawing, _ = priced(tmp_path, many, on_gpu=True)
    assert set(many) <= set(texts(drawing.figure))
    legend = [line for frame in _frames(drawing.figure) for legend in frame.legends for line in legend.get_lines()]
    looks = {(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in legend}
    assert len(looks) == len(legend) == 20
    for axes in drawing.figure.axes[:2]:
        places = axes.transData.transform(marks(axes)[""]) / drawing.figure.dpi * 72
        apart = [np.hypot(*(one - other)) for one, other in itertools.combinations(places, 2)]
        assert min(apart) > 2, "no mark is hidden by another, points"
    check_text(drawing)


def _frames(figure: FigureBase) -> Iterator[FigureBase]:
    yield figure
    for inner in figure.subfigs:
        yield from _frames(inner)


def test_a_mean_over_fewer_cells_is_marked_and_in_no_front(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], SHIFTS, [0])
    rows["tent", "m", "fog-5", 0] = "failed"
    report = made(tmp_path, rows)
    frame = report.evidence.segments
    frame["step_ms_median"] = [9.0 if label == "source" else 1.0 for label in frame["label"]]
    section = only(content.make(report.evidence, ReportOptions()))
    with house_style():
        drawings = [next(kind.draw(section)) for kind in (by_corruption, by_cost)]
    for drawing in drawings:
        assert "* mean over fewer cells" in drawing.text.caption
        assert "tent on m (failed: failed for a reason)" in drawing.text.caption
        assert "*" in texts(drawing.figure)
    front = next(line for line in drawings[1].figure.axes[0].lines if line.get_drawstyle() == "steps-post")
    assert front.get_xdata()[0] == 9.0, "source alone, though tent is faster"


def test_severities_have_clean_at_the_left(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["tent"], ["m"], ["clean", "fog-1", "fog-5"], [0])))
    places = by_severity.errors(section, "m", "tent")
    assert [x for x, _ in places] == [0, 1, 5]
    assert places[0][1].mean == section.worst.rows[0].cells["clean"].mean
    assert places[2][1].mean == section.worst.rows[0].mean.mean


def test_the_running_error_ends_at_the_tables(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m", "n"], [*SHIFTS, "fog-3"], [0, 1])))
    curves = online.running(section)
    for row in section.worst.rows:
        last = curves.loc[[(row.model, row.label)]].iloc[-1]
        assert last["images_seen"] == 100
        assert last["mean"] == pytest.approx(row.mean.mean)
        assert last["low"] < last["mean"] < last["high"]


@pytest.mark.faults
def test_under_a_continual_protocol_the_running_error_is_over_the_whole_stream(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    suite = suite_file(
        ("corruptions: [clean, contrast]", "corruptions: [clean, fog, contrast]\nprotocol: {kind: continual}")
    )
    assert run_cli("run", suite, "--executor", "local", "--out", tmp_path / "run").code == 0
    section = only(content.make(gather([tmp_path / "run"]), ReportOptions()))
    curves = online.running(section)
    for row in section.worst.rows:
        curve = curves.loc[[(row.model, row.label)]]
        assert curve["images_seen"].tolist() == [40, 80, 100, 140, 180, 200, 240, 280, 300]
        assert curve["mean"].iloc[-1] == pytest.approx(np.mean([cell.mean for cell in row.cells.values()]))
    with house_style():
        [drawing] = online.draw(section)
    [above] = drawing.figure.axes[0].child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["clean", "fog", "contrast"]
    assert above.get_xticks().tolist() == [0, 100, 200], "where each shift begins"


def test_updates_are_of_the_same_trials(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["tent"], ["m"], ["clean", "fog-1", "fog-5"], [0])))
    assert section.per_thousand("updates") == {("m", "tent"): 100.0}, "ten steps for 100 images"


# -- many methods, and bad ones ----------------------------------------------------------------------------------------


def test_a_bad_method_does_not_flatten_the_others() -> None:
    errors = {"source": [40.0], "tent": [38.0], "mgg": [33.0], "sar": [99.0]}
    limits = Range.of(errors, "source")
    assert (limits.low, limits.high, limits.beyond) == (33.0, 40.0, {"sar": 99.0})
    assert Range.of({**errors, "sar": [44.0]}, "source").beyond == {}, "it flattens nothing"
    assert Range.of({"source": [99.0], "a": [5.0], "b": [5.0]}, "source").beyond == {}, "the baseline is always shown"
    assert Range.of({"a": [99.0], "b": [5.0]}, "source").beyond == {}, "of two, none is the bad one"
    many = {f"m{i}": [10.0 + i] for i in range(7)} | {"x": [90.0], "y": [90.0]}
    assert Range.of(many, "m0").beyond == {"x": 90.0, "y": 90.0}, "a quarter"


@pytest.mark.parametrize("kind", [by_corruption, by_severity, by_updates, by_cost])
def test_an_axis_that_leaves_out_a_method_says_so(tmp_path: pathlib.Path, kind: Any) -> None:
    labels = ["source", "a", "b", "bad"]
    rows = cells(labels, ["m"], ["fog-3", "fog-5", "snow-5"], [0])
    rows |= {place: verdicts(30, 100) for place in rows} | {k: verdicts(99, 100) for k in rows if k[0] == "bad"}
    report = made(tmp_path, rows)
    number = report.evidence.segments["label"].map({label: i for i, label in enumerate(labels)})
    report.evidence.segments["updates"] = (100 * number).astype("Int64")
    report.evidence.segments["step_ms_median"] = 5.0 + number
    with house_style():
        [drawing] = kind.draw(only(content.make(report.evidence, ReportOptions())))
    axes = drawing.figure.axes[0]
    assert axes.get_ylim()[1] < 50
    assert "↑" in texts(drawing.figure)
    assert "↑ higher than its end: bad (up to 99" in " ".join(drawing.text.notes)
    assert max(axes.get_yticks()) < axes.get_ylim()[1]
    assert axes.get_ylim()[0] >= 0


def test_no_point_is_left_of_zero(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["source", "a", "b", "c"], ["m"], ["fog-5"], [0]))
    frame = report.evidence.segments
    frame["updates"] = [100 if label == "c" else 0 for label in frame["label"]]
    with house_style():
        [drawing] = by_updates.draw(only(content.make(report.evidence, ReportOptions())))
    assert min(marks(drawing.figure.axes[0])[""][:, 0]) == 0


def test_colours_of_a_heat_map_are_for_its_panel(tmp_path: pathlib.Path) -> None:
    rows = {(label, model, "fog-5", 0): verdicts(error, 1000) for (label, model), error in {
        ("source", "m"): 50, ("a", "m"): 48, ("b", "m"): 50, ("bad", "m"): 99,
        ("source", "n"): 50, ("a", "n"): 20, ("b", "n"): 30, ("bad", "n"): 35}.items()}  # fmt: skip
    with house_style():
        [drawing] = heatmap.draw(only(made(tmp_path, rows)))
    scales = [axes.collections[0].get_clim()[1] for axes in drawing.figure.axes[:2]]
    assert scales == pytest.approx([2, 30])
    shown = [text for text in texts(drawing.figure) if text in ("0.0", "+0.0", "+49.0")]
    assert sorted(set(shown)) == ["+49.0", "0.0"]
    assert "Differences beyond a scale have its last colour" in drawing.text.notes


def test_of_thirty_methods_bars_show_the_best_and_name_the_others(tmp_path: pathlib.Path) -> None:
    labels = ["source", *(f"m{i:02}" for i in range(29))]
    rows = {(label, "m", shift, 0): verdicts(60 if label == "source" else 10 + i, 100)
            for i, label in enumerate(labels) for shift in ("fog-3", "fog-5")}  # fmt: skip
    section = only(made(tmp_path, rows))
    with house_style():
        drawings = [next(kind.draw(section)) for kind in (by_corruption, by_severity, online)]
        for drawing in drawings:
            drawing.figure.draw_without_rendering()
    for drawing in drawings:
        shown = [text for text in texts(drawing.figure) if text in labels]
        assert shown == labels[:21], "the baseline, though its error is the highest, and the best"
        assert f"Left out here, 9 of 30 methods, with higher errors: {', '.join(labels[21:])}" in drawing.text.notes
        check_text(drawing)


def test_the_ticks_of_ranks_begin_with_the_best(tmp_path: pathlib.Path) -> None:
    for count, ticks in ((3, [1, 2, 3]), (20, [1, 5, 10, 15, 20])):
        rows = cells([f"m{i}" for i in range(count)], ["m"], SHIFTS, [0])
        with house_style():
            [drawing] = ranks.draw(only(made(tmp_path / str(count), rows)))
        assert drawing.figure.axes[0].get_xticks().tolist() == ticks


def test_averaging_is_said(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m"], [*SHIFTS, "fog-3"], [0, 1])))
    with house_style():
        drawings = {drawing.text.name: drawing.text.notes[0] for drawing in figures.drawings(section.content)}
    assert drawings["severity"] == drawings["online"] == "Means over 3 corruptions and 2 seeds"
    assert drawings["errors"] == "Bars: means over 2 seeds; mean: over the 3 corruptions, without clean"


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_code_points(tmp_path: pathlib.Path) -> None:
    labels = ["source", "拡張", "tent🔥", "طريقة"]
    report = made(tmp_path, cells(labels, ["模型"], [*SHIFTS, "fog-3"], [0]), dataset="数据")
    drawn = figures.draw(report, tmp_path, ["png"])
    assert len(drawn) > 3
    with house_style():
        for drawing in figures.drawings(report):
            shown = texts(drawing.figure)
            assert "[U+6A21][U+578B]" in shown
            assert {"طريقة", "[U+62E1][U+5F35]", "tent[U+1F525]"} <= set(shown), drawing.text.name
            assert "拡張" not in "".join(shown)


# -- style -------------------------------------------------------------------------------------------------------------


def test_a_method_has_one_style_whatever_comes_after_it() -> None:
    assert colours(["source", "a", "b"]).items() < colours(["source", "a", "b", "c"]).items()
    assert colours(["a", "b"])["a"] == colours(["a", "source", "b"])["a"], "the source model takes no colour"
    many = styles(["source", *map(str, range(70))])
    assert len(set(many.values())) == 71, "colours repeat, styles do not"
    looks = {str((s.point()["marker"], s.colour, s.bar.get("hatch"))) for s in many.values()}
    assert len(looks) == 71
    assert len({style.colour for label, style in many.items() if label in ("source", *map(str, range(7)))}) == 8


def test_a_method_keeps_its_style_where_another_is_absent(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "norm", "tent"], ["m", "n"], ["fog-5"], [0])
    rows["norm", "n", "fog-5", 0] = "skipped"
    with house_style():
        [drawing] = by_corruption.draw(only(made(tmp_path, rows)))
    shades = [
        [to_hex(part[0].get_facecolor()) for part in axes.containers if isinstance(part, BarContainer)]
        for axes in drawing.figure.axes
    ]
    expected = {label: colour.lower() for label, colour in colours(["source", "norm", "tent"]).items()}
    assert shades == [list(expected.values()), [expected["source"], expected["tent"]]]


def test_a_users_own_settings_change_nothing_and_stay(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["source", HOSTILE], ["m"], ["fog-5"], [0]))
    [plain, *_] = figures.draw(report, tmp_path / "plain", ["png"])
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "svg.fonttype": "path"}):
        [own, *_] = figures.draw(report, tmp_path / "own", ["png"])
        assert matplotlib.rcParams["text.usetex"]
    assert own.files[0].read_bytes() == plain.files[0].read_bytes()


# -- what must be said -------------------------------------------------------------------------------------------------


def test_every_figure_shows_the_warning_and_names_absent_results(hard: Content, hard_drawings: list[Drawing]) -> None:
    for drawing in hard_drawings:
        text, shown = drawing.text, " ".join(texts(drawing.figure)).replace("\n", " ")
        assert hard.warning == "SUBSET OF THE IMAGES, NOT A RESULT"
        assert hard.warning in shown, text.name
        assert hard.warning in text.caption, text.name
        if text.name not in ("cost-resnet18", "cost-vit-base-patch16-224-augreg2-in21k-ft-in1k"):  # of another model
            assert "norm on convnext_tiny.fb_in22k" in text.caption, text.name
            assert "skipped: skipped for a reason" in text.caption, text.name
        for condition in ("D, ", "protocol reset", "batch size 10", "100 images of each shift", "2 seeds (0, 1)"):
            assert condition in text.caption, text.name
            assert condition in shown, text.name


def test_a_long_warning_is_shortened_on_the_figure_and_whole_in_the_caption(tmp_path: pathlib.Path) -> None:
    rows = cells(["tent"], ["m"], ["fog-5"], [0])
    runs = [write_run(tmp_path / f"run{seed}", {(*place[:3], seed): c for place, c in rows.items()},
                      session={"packages": {"torch": f"2.{seed} {'long ' * 60}end"}}) for seed in (0, 1)]  # fmt: skip
    report = content.make(gather(runs, mix=True), ReportOptions())
    with house_style():
        drawings = list(figures.drawings(report))
    for drawing in drawings:
        assert report.warning in drawing.text.caption
        shown = " ".join(texts(drawing.figure)).replace("\n", " ")
        assert "MIXED: run0 and run1 differ in torch" in shown
        assert report.warning not in shown
        assert "…" in shown


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_open_and_are_the_same_when_drawn_again(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0]))
    first, again = (figures.draw(report, tmp_path / name, ["png", "pdf", "svg"]) for name in ("1", "2"))
    for one, other in zip(first, again, strict=True):
        assert [path.name for path in one.files] == [f"{one.name}.png", f"{one.name}.pdf"]
        png, pdf = (path.read_bytes() for path in one.files)
        assert [png, pdf] == [path.read_bytes() for path in other.files]
        assert one.svg == other.svg
        with Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10, "something is drawn"
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf, "fonts are embedded as TrueType"
        assert b"/Type3" not in pdf
        assert one.svg
        assert ElementTree.fromstring(one.svg).tag.endswith("svg")


def test_labels_are_shown_as_they_are(tmp_path: pathlib.Path) -> None:
    labels = ["source", HOSTILE, "_b"]
    with house_style():
        drawings = list(figures.drawings(made(tmp_path, cells(labels, ["$m_1$"], SHIFTS, [0]))))
    for drawing in drawings:
        shown = texts(drawing.figure)
        assert {HOSTILE, "_b", "$m_1$"} <= set(shown), drawing.text.name


def test_no_text_is_cut_or_covered(hard_drawings: list[Drawing]) -> None:
    """Twelve methods and three source models, all with long names."""
    for drawing in hard_drawings:
        check_text(drawing)


def check_text(drawing: Drawing) -> None:
    """All text of a figure that is laid out is on it, and covers neither other text nor a panel."""
    page = drawing.figure.bbox.padded(1)
    around = [(text.get_text(), text.get_window_extent()) for text in _around(drawing.figure) if text.get_text()]
    inside = [text.get_window_extent() for axes in drawing.figure.axes for text in _inside(axes) if text.get_text()]
    for box in (*(box for _, box in around), *inside):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, drawing.text.name
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, drawing.text.name
    for (one, first), (other, second) in itertools.combinations(around, 2):
        assert not _overlap(first, second), (drawing.text.name, one, other)
    for text, box in around:
        assert not any(_overlap(box, axes.bbox) for axes in drawing.figure.axes), (drawing.text.name, text)
        assert not any(_overlap(box, label) for label in inside), (drawing.text.name, text)


def test_figures_fit_a_paper_and_panels_stay_large(hard_drawings: list[Drawing]) -> None:
    for drawing in hard_drawings:
        wide = drawing.text.name in ("errors", "heatmap")  # twelve methods × eight columns
        assert drawing.figure.get_figwidth() <= (7.5 if wide else 7.0), drawing.text.name
        for axes in drawing.figure.axes:
            assert axes.bbox.height > 1.2 * drawing.figure.dpi, drawing.text.name


def _around(frame: FigureBase) -> Iterator[Text]:
    """All text outside of the panels."""
    yield from frame.texts
    for legend in frame.legends:
        yield from legend.get_texts()
    for inner in frame.subfigs:
        yield from _around(inner)


def _inside(axes: Axes) -> Iterator[Text]:
    """All text that belongs to a panel and is drawn."""
    yield from (*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title)
    for axis, bounds in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False):
            if min(bounds) <= place <= max(bounds) and text.get_visible():
                yield text
    for child in axes.child_axes:
        yield from child.get_xticklabels()


def _overlap(one: Bbox, other: Bbox) -> bool:
    """By more than a pixel in both directions."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
