"""The report as one HTML file: no network, opens from disk; without JavaScript it only neither sorts nor filters.

Here is what the templates do not work out themselves; they hold every word and mark of the page.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from tta_bench import __version__
from tta_bench.files import write_text
from tta_bench.report import provenance
from tta_bench.report.content import Content
from tta_bench.report.cost import CostTable
from tta_bench.report.figures import SavedFigure
from tta_bench.report.figures.style import colours
from tta_bench.report.table import Cell, ErrorTable, Pair, Row

_STATUSES = ("ok", "failed", "skipped", "missing")
_PIXELS = 1.4 * 96  # for each inch of a figure: a screen is read from further away than paper


def write(content: Content, figures: Sequence[SavedFigure], path: pathlib.Path) -> pathlib.Path:
    """Write the page to ``path``.

    Args:
        content: the report.
        figures: those with ``svg`` are embedded; the files that lie beside the page are linked.
        path: of the page; tables that are already in ``data/`` beside it are linked.
    """
    text = _environment(content).get_template("page.html.j2").render(
        content=content,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        counts=_counts(content),
        summaries=list(_summaries(content)),
        gaps=[(status, part) for status in _STATUSES if (part := [g for g in content.gaps if g.status == status])],
        methods=provenance.methods(content.methods),
        runs=provenance.runs(content.evidence),
        pictures=[_picture(figure, figure.svg, path.parent) for figure in figures if figure.svg],
        data=_links((path.parent / "data").glob("*.*"), path.parent),
        colours=colours(content.labels),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _environment(content: Content) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tta_bench.report.render"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = [number, p_value, breakable, column_name, about, slug]
    environment.filters.update({function.__name__: function for function in filters})
    style, script = (_source(environment, name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(style=Markup(style), script=Markup(script), digest=digest, warning=content.warning)
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


# -- filters of the templates ------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """``1,234.5``, ``+0.3``, ``−0.3``; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")  # rounded to nothing, it has no sign
    return text.replace("-", "−")


def p_value(p: float | None) -> str:
    """Three digits, or that it is less."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def breakable(text: str) -> Markup:
    """Escaped, with places where a long label may wrap."""
    return Markup("<wbr>").join(re.split(r"(?<=[,/=_+])|(?=\[)", text))


def column_name(name: str, group: str) -> str:
    """A corruption below the head of its group: ``gaussian`` below ``noise``."""
    return name.removesuffix(f"_{group}").replace("_", " ")


def about(cell: Cell) -> str:
    """All that is known of a cell, in a line."""
    if cell.mean is None:
        return ""
    parts = [f"{cell.mean:.2f} %"]
    parts += [f"95 % interval {cell.interval}"] if cell.interval else []
    parts += [f"{cell.seeds} seed{'s' if cell.seeds != 1 else ''}"] if cell.seeds else []
    return ", ".join(parts + ([f"some {cell.state}"] if cell.state != "ok" else []))


def slug(text: str) -> str:
    """Fit for an anchor."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


# -- header and summary ------------------------------------------------------------------------------------------------


def _counts(content: Content) -> dict[str, int]:
    """Trials by status, all statuses there are."""
    return {name: sum(run.counts.get(name, 0) for run in content.evidence.runs) for name in _STATUSES}


@dataclass(frozen=True)
class SummaryRow:
    """A method with one source model.

    Attributes:
        place: by mean error, from 1; None where the mean is not over all cells.
        difference: of the mean error to the baseline's, points.
        pair: the test of that difference, turned so that ``other`` is the baseline; None where there is none.
        rank: average rank over corruptions.
        step_ms: median step time, ms.
    """

    row: Row
    place: int | None
    difference: float | None
    pair: Pair | None
    rank: float | None
    step_ms: float | None


@dataclass(frozen=True)
class Summary:
    """A data set's most severe table, methods ranked.

    Attributes:
        groups: (source model, its rows).
        hardware: of the step times; empty where none are known.
    """

    table: ErrorTable
    groups: list[tuple[str, list[SummaryRow]]]
    hardware: str


def _summaries(content: Content) -> Iterator[Summary]:
    last = {t.setting.base: t for t in content.tables}
    for table in last.values():
        cost = _main_cost(content.costs, table)
        steps = {(row.model, row.label): row.step_ms for row in cost.rows} if cost else {}
        groups = [(model, _summary_rows(table, model, content.baseline, steps)) for model in table.models]
        yield Summary(table, groups, cost.hardware if cost else "")


def _main_cost(costs: Iterable[CostTable], table: ErrorTable) -> CostTable | None:
    """The hardware that timed most trials: step times of several never stand in one column."""
    own = [c for c in costs if c.hardware and not c.shared and c.section == table.setting.base]
    return max(own, key=lambda cost: sum(row.trials for row in cost.rows), default=None)


def _summary_rows(
    table: ErrorTable, model: str, baseline: str, steps: dict[tuple[str, str], float | None]
) -> list[SummaryRow]:
    def order(row: Row) -> tuple[bool, bool, float]:
        return row.mean.mean is None, row.mean.state != "ok", row.mean.mean or 0.0

    ranks = table.ranks.get(model) or (table.ranks.get("") if len(table.models) == 1 else None)
    rank = dict(zip(ranks.labels, map(float, ranks.ranks), strict=True)) if ranks else {}
    whole = {row.label: row.mean.mean for row in table.of(model) if row.mean.state == "ok"}
    base, pairs, made = whole.get(baseline), _against(table.pairs, model, baseline), []
    for number, row in enumerate(sorted(table.of(model), key=order), 1):
        mine = whole.get(row.label)
        difference = mine - base if mine is not None and base is not None and row.label != baseline else None
        place = number if mine is not None else None
        pair, step = pairs.get(row.label), steps.get((model, row.label))
        made.append(SummaryRow(row, place, difference, pair, rank.get(row.label), step))
    return made


def _against(pairs: Iterable[Pair], model: str, baseline: str) -> dict[str, Pair]:
    """By label its comparison with the baseline: the label's error minus the baseline's."""
    found = {}
    for p in pairs:
        if p.model == model and baseline in (p.label, p.other):
            turned = Pair(model, p.other, p.label, -p.difference, -p.high, -p.low, p.p)
            pair = p if p.other == baseline else turned
            found[pair.label] = pair
    return found


# -- figures and files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """Attributes: source: a data URL; width: on the page, CSS pixels; files: (name, relative path)."""

    figure: SavedFigure
    source: str
    width: int
    files: list[tuple[str, str]]


def _picture(figure: SavedFigure, svg: bytes, folder: pathlib.Path) -> Picture:
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return Picture(figure, source, round(_PIXELS * figure.width), _links(figure.files, folder))


def _links(files: Iterable[pathlib.Path], folder: pathlib.Path) -> list[tuple[str, str]]:
    """(name, path from the page) of the files that are below the page's folder."""
    inside = [file for file in sorted(files) if file.resolve().is_relative_to(folder.resolve())]
    return [(file.name, file.resolve().relative_to(folder.resolve()).as_posix()) for file in inside]
