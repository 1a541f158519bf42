"""The figures: which there are, that they show the tables' numbers, and that nothing is hidden, cut or covered."""

from __future__ import annotations

import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from conftest import Outcome
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from runs import Cell, verdicts, write_run

from tta_bench.report import content, figures
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.report.figures import cost, errors, heatmap, online, severity
from tta_bench.report.figures.section import Section, sections
from tta_bench.report.figures.style import colours, house_style, styles

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
        return [figure.name for figure in figures.drawn(report)]


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


# -- which figures there are -------------------------------------------------------------------------------------------


def test_there_is_a_figure_only_where_there_is_something_to_draw(tmp_path: pathlib.Path, hard: Content) -> None:
    def of(name: str, rows: dict[Cell, np.ndarray | str], **options: Any) -> list[str]:
        return names(made(tmp_path / name, rows, **options))

    assert of("one", cells(["tent"], ["m"], ["fog-5"], [0])) == ["errors", "online"]
    assert of("none", dict.fromkeys(cells(["tent"], ["m"], ["fog-5"], [0]), "failed")) == []
    assert of("two", cells(["source", "tent"], ["m"], ["fog-3", "fog-5"], [0])) == [
        "errors", "severity", "online", "heatmap"]  # fmt: skip
    assert of("three", cells(["a", "b", "c"], ["m"], ["fog-5", "snow-5"], [0])) == ["errors", "online", "ranks"]
    assert names(hard) == ["errors", "severity", "online", "cost", "updates", "heatmap", "ranks"]


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
        drawn = list(cost.draw(only(report)))
    assert [figure.name for figure in drawn] == ["cost-1", "cost-2"]
    assert ["GPU A" in figure.caption for figure in drawn] == [True, False]
    assert [figure.figure.axes[0].get_xlim()[1] < 10 for figure in drawn] == [True, False]


def test_the_precision_is_told_once_beside_the_hardware(tmp_path: pathlib.Path) -> None:
    report = made(tmp_path, cells(["source", "tent"], ["m"], ["fog-5"], [0]), precision="float64")
    frame = report.evidence.segments
    frame["step_ms_median"] = [5.0 + (label == "tent") for label in frame["label"]]
    report = content.make(report.evidence, ReportOptions())
    with house_style():
        [figure] = cost.draw(only(report))
    assert "batch size 10, float64, " in figure.caption
    assert figure.caption.count("float64") == 1


def test_a_curve_over_images_adapted_on(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], ["fog-5", "snow-5"], [0])
    runs = [write_run(tmp_path / str(n), rows, adapt_images=n, facts={"error_after_pct": 33.0}) for n in (20, 50, None)]
    [figure] = [
        f
        for f in figures.draw(content.make(gather(runs), ReportOptions()), tmp_path, ["svg"])
        if f.name == "adapt_images"
    ]
    said = texts(figure.svg)
    assert {"error on all images, %", "error after the first 50, %", "20", "50", "all"} <= set(said)


# -- what they show ----------------------------------------------------------------------------------------------------


def test_bars_are_the_tables_errors(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0, 1])))
    with house_style():
        [figure] = errors.draw(section)
    patches = figure.figure.axes[0].patches
    for row, patch in zip(section.worst.rows, patches, strict=True):
        heights = patch.get_path().vertices.reshape(-1, 5, 2)[:, :, 1].max(axis=1)
        expected = [section.worst.cell(row, name).mean for name in section.worst.columns]
        assert heights == pytest.approx(expected)
    assert "± standard deviation over seeds" in figure.caption


def test_with_one_seed_bars_have_intervals_over_images(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["source", "tent"], ["m"], SHIFTS, [0])))
    with house_style():
        [figure] = errors.draw(section)
    assert "95 % interval over images" in figure.caption
    ends = figure.figure.axes[0].lines[0].get_ydata()
    assert ends[0] == pytest.approx(section.worst.rows[0].cells["clean"].low)
    assert ends[1] == pytest.approx(section.worst.rows[0].cells["clean"].high)


def test_the_heat_map_is_the_difference_to_the_baseline(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent", "norm"], ["m"], SHIFTS, [0])
    rows["norm", "m", "fog-5", 0] = "failed"
    table = only(made(tmp_path, rows)).worst
    grid = heatmap.relative(table, "m", ["tent", "norm"], "source")
    source, tent, _ = table.rows
    expected = [table.cell(tent, n).mean - table.cell(source, n).mean for n in table.columns]  # type: ignore[operator]
    assert grid.values[0] == pytest.approx(expected)
    assert np.isnan(grid.values[1]).tolist() == [False, False, True, False, False]
    assert grid.fewer[1].tolist() == [False, False, False, False, True], "the mean lacks a corruption"


@pytest.mark.parametrize(
    ("costs", "wrong", "front"),
    [
        ([1, 2, 3], [30, 20, 10], [0, 1, 2]),
        ([1, 2, 3], [10, 20, 30], [0]),
        ([3, 1, 2], [10, 30, 40], [1, 0]),
        ([1, 1, 2], [20, 10, 10], [1]),
        ([1, 1], [10, 10], [0, 1]),
        ([], [], []),
    ],
)
def test_the_pareto_front(costs: list[float], wrong: list[float], front: list[int]) -> None:
    assert cost.pareto(costs, wrong) == front


def test_a_mean_over_fewer_cells_is_marked_and_in_no_front(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "tent"], ["m"], SHIFTS, [0])
    rows["tent", "m", "fog-5", 0] = "failed"
    report = made(tmp_path, rows)
    frame = report.evidence.segments
    frame["step_ms_median"] = [9.0 if label == "source" else 1.0 for label in frame["label"]]
    section = only(content.make(report.evidence, ReportOptions()))
    with house_style():
        drawn = {figure.name: figure for each in (errors.draw, cost.draw) for figure in each(section)}
    for figure in drawn.values():
        assert "* mean over fewer cells" in figure.caption
        assert "tent on m (failed: failed for a reason)" in figure.caption
        assert "*" in [text.get_text() for axes in figure.figure.axes for text in axes.texts]
    front = next(line for line in drawn["cost"].figure.axes[0].lines if line.get_drawstyle() == "steps-post")
    assert front.get_xdata()[0] == 9.0, "source alone, though tent is faster"


def test_severities_have_clean_at_the_left(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["tent"], ["m"], ["clean", "fog-1", "fog-5"], [0])))
    places = severity.errors(section, "m", "tent")
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
        [figure] = online.draw(section)
    said = [text.get_text() for text in figure.figure.axes[0].texts]
    assert said == ["clean", "fog", "contrast"], "where each shift begins"


def test_updates_are_of_the_same_trials(tmp_path: pathlib.Path) -> None:
    section = only(made(tmp_path, cells(["tent"], ["m"], ["clean", "fog-1", "fog-5"], [0])))
    assert section.per_thousand("updates") == {("m", "tent"): 100.0}, "ten steps for 100 images"


# -- style -------------------------------------------------------------------------------------------------------------


def test_a_method_has_one_style_whatever_comes_after_it() -> None:
    assert colours(["source", "a", "b"]).items() < colours(["source", "a", "b", "c"]).items()
    assert colours(["a", "b"])["a"] == colours(["a", "source", "b"])["a"], "the source model takes no colour"
    many = styles(["source", *map(str, range(28))])
    assert len(set(many.values())) == 29, "colours repeat, styles do not"
    assert len({style.colour for label, style in many.items() if label in ("source", *map(str, range(7)))}) == 8


def test_a_method_keeps_its_style_where_another_is_absent(tmp_path: pathlib.Path) -> None:
    rows = cells(["source", "norm", "tent"], ["m", "n"], ["fog-5"], [0])
    rows["norm", "n", "fog-5", 0] = "skipped"
    with house_style():
        [figure] = errors.draw(only(made(tmp_path, rows)))
    shades = [
        [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches] for axes in figure.figure.axes
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


def test_every_figure_says_the_warning_and_who_is_absent(tmp_path: pathlib.Path, hard: Content) -> None:
    for figure in figures.draw(hard, tmp_path, ["svg"]):
        shown = " ".join(texts(figure.svg))
        assert hard.warning == "SUBSET of the images, not a result"
        assert hard.warning in shown, figure.name
        assert hard.warning in figure.caption, figure.name
        assert "norm on convnext_tiny.fb_in22k" in figure.caption, figure.name
        assert "skipped: skipped for a reason" in figure.caption, figure.name
        for condition in ("D, ", "protocol reset", "batch size 10", "100 images of each shift", "2 seeds (0, 1)"):
            assert condition in figure.caption, figure.name
            assert condition in shown, figure.name


def test_a_long_warning_is_shortened_on_the_figure_and_whole_in_the_caption(tmp_path: pathlib.Path) -> None:
    rows = cells(["tent"], ["m"], ["fog-5"], [0])
    runs = [write_run(tmp_path / f"run{seed}", {(*place[:3], seed): c for place, c in rows.items()},
                      session={"packages": {"torch": f"2.{seed} {'long ' * 60}end"}}) for seed in (0, 1)]  # fmt: skip
    report = content.make(gather(runs, mix=True), ReportOptions())
    for figure in figures.draw(report, tmp_path, ["svg"]):
        assert report.warning in figure.caption
        shown = " ".join(texts(figure.svg))
        assert "MIXED: run0 and run1 differ in torch" in shown
        assert report.warning not in shown
        assert "…" in shown


# -- files -------------------------------------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg.encode()).iter("{http://www.w3.org/2000/svg}text")
    ]


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


def test_an_svg_follows_the_readers_scheme_and_shares_no_id(tmp_path: pathlib.Path, hard: Content) -> None:
    seen: set[str] = set()
    for figure in figures.draw(hard, tmp_path, ["svg"]):
        root = ElementTree.fromstring(figure.svg.encode())
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= {str(name) for name in ids}
        for target in re.findall(r'(?:href="|url\()#([^")]+)', figure.svg):
            assert target in ids, "what is referred to is there"
        rule, _, rest = figure.svg.partition("</style>")
        assert "@media screen and (prefers-color-scheme: dark)" in rule
        for colour in re.findall(r"--\w+: (#\w{6})", rule.partition("@media")[0]):
            assert colour not in rest, "ink has no fixed colour"
        assert len(figure.svg) < 300_000


def test_labels_are_shown_as_they_are(tmp_path: pathlib.Path) -> None:
    label = "a=0.123456 font-family: x #1b1c1d"  # looks like what is rewritten in an SVG's tags
    drawn = figures.draw(
        made(tmp_path, cells(["source", HOSTILE, "_b", label], ["$m_1$"], SHIFTS, [0])), tmp_path, ["svg"]
    )
    for figure in drawn:
        said = texts(figure.svg)
        for name in (HOSTILE, "_b", label):
            assert name in said, figure.name
        assert any(text.startswith("$m_1$") for text in said), figure.name


def test_no_text_is_cut_or_covered(hard: Content) -> None:
    """Twelve methods with long names, source models with long names."""
    with house_style():
        for figure in figures.drawn(hard):
            canvas: Canvas = figure.figure
            canvas.canvas.draw()
            whole = canvas.bbox.padded(1)
            own = {text.get_text(): text.get_window_extent() for text in canvas.texts if text.get_text()}
            others = [text.get_window_extent() for axes in canvas.axes for text in _inner(axes) if text.get_text()]
            for box in (*own.values(), *others):
                assert whole.contains(box.x0, box.y0), figure.name
                assert whole.contains(box.x1, box.y1), figure.name
            for (one, first), (other, second) in itertools.combinations(own.items(), 2):
                assert not _overlap(first, second), (figure.name, one, other)
            for said, box in own.items():
                assert not any(_overlap(box, axes.bbox) for axes in canvas.axes), (figure.name, said)
                assert not any(_overlap(box, label) for label in others), (figure.name, said)


def _inner(axes: Axes) -> Iterator[Text]:
    """All text that belongs to a panel and is drawn."""
    yield from (*axes.texts, axes.xaxis.label, axes.yaxis.label)
    for axis, bounds in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
            if min(bounds) <= place <= max(bounds) and axes.axison:
                yield text


def _overlap(one: Bbox, other: Bbox) -> bool:
    """By more than a pixel in both directions."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
