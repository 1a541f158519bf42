"""The report as one HTML file: no network, opens from disk; JavaScript only sorts and filters.

All tables are grids, rendered by one macro of ``templates/macros.html.j2``.
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
from tta_bench.report.figures import SavedFigure
from tta_bench.report.figures.style import colours
from tta_bench.report.render import grids, page_grids
from tta_bench.report.render.grid import Grid
from tta_bench.report.table import identifier
from tta_bench.report.words import plain

_STATUSES = ("ok", "failed", "skipped", "missing")
_PIXELS = 1.4 * 96  # for each inch of a figure: a screen is read from further away than paper


@dataclass(frozen=True)
class PageSection:
    """Attributes: id: of its link; about: a sentence; grids: each with one that is folded below it, or None."""

    id: str
    title: str
    about: str
    grids: Sequence[tuple[Grid, Grid | None]]


def write(content: Content, figures: Sequence[SavedFigure], path: pathlib.Path) -> pathlib.Path:
    """Write the page to ``path``.

    Args:
        content: the report.
        figures: those with ``svg`` are embedded; files below the page's folder are linked.
        path: of the page; tables that are already in ``data/`` beside it are linked.
    """
    text = _environment().get_template("page.html.j2").render(
        content=content,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        counts=_counts(content),
        sections=[*_sections(content)],
        methods=provenance.methods(content.methods),
        runs=provenance.runs(content.evidence),
        pictures=[_picture(figure, figure.svg, path.parent) for figure in figures if figure.svg],
        data=_links((path.parent / "data").glob("*.*"), path.parent),
        colours=colours(content.labels),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _sections(content: Content) -> Iterator[PageSection]:
    """The sections of tables; those without one are left out, but for failures."""
    last = {(table.setting.base, table.setting.family): table for table in content.tables}  # the most severe
    nouns = " or ".join(dict.fromkeys(table.setting.noun for table in content.tables))
    about = f"Methods of each source model by mean error over the {nouns}, lowest first."
    severe = " Of several severities, the highest." if len(content.tables) > len(last) else ""
    errors = [(grids.error_grid(t), page_grids.pairs_grid(t) if t.pairs else None) for t in content.tables]
    summaries = [(page_grids.summary_grid(content, table), None) for table in last.values()]
    sections: list[tuple[str, str, str, Sequence[tuple[Grid, Grid | None]]]] = [
        ("protocols", "Protocols", "Each method under each protocol.",
         [(grids.error_grid(table), None) for table in content.overviews]),
        ("summary", "Summary", about + severe, summaries),
        ("errors", "Errors", "", errors),
        ("views", "Along the stream", "", [(grids.error_grid(table), None) for table in content.views]),
        ("curves", "Curves", "Adaptation on the first images of each segment; the frozen result predicts the rest.",
         [(grids.error_grid(table), None) for table in content.curves]),
        ("calibration", "Calibration", "Whether a method's probabilities are as high as its answers are often right.",
         [(grids.calibration_grid(table), None) for table in content.calibration]),
        ("cost", "Cost", "Times measured on different hardware are never compared; counts do not depend on it.",
         [(grids.cost_grid(t, f"cost-{i}", content.warnings), None) for i, t in enumerate(content.costs, 1)]),
        ("mce", "mCE", "Mean corruption error (Hendrycks and Dietterich 2019).",
         [(grids.mce_grid(table, f"mce-{number}"), None) for number, table in enumerate(content.mce, 1)]),
        ("published", "Published", "Measured beside published numbers, and why they may differ.",
         [(grids.comparison_grid(comparison, content.warnings), None) for comparison in content.comparisons]),
    ]  # fmt: skip
    yield from (PageSection(*section) for section in sections if section[-1])
    yield PageSection("setting", "Setting", plain(content.setting), [])
    gaps = [(page_grids.gaps_grid(content), None)] if content.gaps else []
    yield PageSection("failures", "Failures", "" if gaps else "Every planned trial has a result.", [*gaps])


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tta_bench.report.render"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = [breakable, identifier]
    environment.filters.update({function.__name__: function for function in filters})
    style, script = (_source(environment, name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(style=Markup(style), script=Markup(script), digest=digest)
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


# -- filters of the templates ------------------------------------------------------------------------------------------


def breakable(text: str) -> Markup:
    """Escaped, with places where a long label may wrap."""
    return Markup("<wbr>").join(re.split(r"(?<=[,/=_+])|(?=\[)", text))


# -- header ----------------------------------------------------------------------------------------------------------


def _counts(content: Content) -> dict[str, int]:
    """Trials by status, all statuses there are."""
    return {name: sum(run.counts.get(name, 0) for run in content.evidence.runs) for name in _STATUSES}


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
