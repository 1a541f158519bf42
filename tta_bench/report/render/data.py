"""The report as data: tidy tables in CSV and Parquet, numbers unrounded."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.files import write_atomically
from tta_bench.report.content import Content, ReportOptions, make
from tta_bench.report.evidence import gather
from tta_bench.store.tables import csv_text

OF_RUNS = ("segments", "shifts", "batches")
TABLES = (*OF_RUNS, "errors", "pairs", "ranks", "calibration", "costs", "published", "mce", "gaps")


def load(runs: Sequence[pathlib.Path], table: str, *, mix: bool) -> pd.DataFrame:
    """One table of some runs, empty where it has no rows; see :func:`tta_bench.load_results`."""
    if table not in TABLES:
        raise UsageError(Problem(f"unknown table {table!r}", hint=near_miss(table, TABLES)))
    evidence = gather(runs, mix=mix)
    if table in OF_RUNS:
        return getattr(evidence, table)
    return frames(make(evidence, ReportOptions())).get(table, pd.DataFrame())


def frames(content: Content) -> dict[str, pd.DataFrame]:
    """The tables of the report by name, without empty ones.

    ``segments``, ``shifts`` and ``batches`` are those of the runs (:mod:`tta_bench.store.schema`); ``errors`` has a row
    for each cell of the error tables, means included; ``pairs`` for each pair of methods; ``calibration`` for each method
    and severity; ``costs``, ``ranks``, ``published``, ``mce`` and ``gaps`` for each of their rows.
    """
    tables = {
        **{name: getattr(content.evidence, name) for name in OF_RUNS},
        "errors": pd.DataFrame(_errors(content)),
        "pairs": pd.DataFrame(_pairs(content)),
        "ranks": pd.DataFrame(_ranks(content)),
        "calibration": pd.DataFrame(_calibration(content)),
        "costs": pd.DataFrame(_costs(content)),
        "published": pd.DataFrame(_published(content)),
        "mce": pd.DataFrame(_mce(content)),
        "gaps": pd.DataFrame(dataclasses.asdict(gap) for gap in content.gaps),
    }
    return {name: frame for name, frame in tables.items() if len(frame)}


def write_csv(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write every table as ``data/<name>.csv``, without the online curves, which are long."""
    tables = {name: frame for name, frame in frames(content).items() if name != "batches"}
    return [_write(folder, f"{name}.csv", csv_text(frame).encode()) for name, frame in tables.items()]


def write_parquet(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write every table as ``data/<name>.parquet``."""
    return [
        _write(folder, f"{name}.parquet", _texts(frame).to_parquet(index=False))
        for name, frame in frames(content).items()
    ]


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists become texts: other tools read those."""
    lists = [name for name in frame if len(frame) and isinstance(frame[name].iloc[0], tuple)]
    return frame.assign(**{name: frame[name].map(lambda values: " ".join(map(str, values))) for name in lists})


def _write(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: stream.write(content))
    return path


def _errors(content: Content) -> Iterator[dict[str, Any]]:
    for table in (*content.tables, *content.views, *content.curves, *content.overviews):
        setting = {"table": table.name, **table.setting.columns()}
        for row in table.rows:
            for column in table.columns:
                cell = dataclasses.asdict(table.cell(row, column))
                cell["error_pct"], cell["std_over_seeds"] = cell.pop("mean"), cell.pop("std")
                yield {**setting, "label": row.label, "model": row.model, "column": column, **cell}


def _pairs(content: Content) -> Iterator[dict[str, Any]]:
    for table in content.tables:
        for pair in table.pairs:
            yield {"table": table.name, **dataclasses.asdict(pair)}


def _ranks(content: Content) -> Iterator[dict[str, Any]]:
    for table in content.tables:
        for model, ranks in table.ranks.items():
            for label, rank in zip(ranks.labels, ranks.ranks, strict=True):
                about = {"blocks": ranks.blocks, "friedman_p": ranks.p, "critical_difference": ranks.critical}
                yield {"table": table.name, "model": model or "all", "label": label, "rank": float(rank), **about}


def _calibration(content: Content) -> Iterator[dict[str, Any]]:
    for table in content.calibration:
        for row in table.rows:
            for severity in table.severities:
                ece, nll = row.ece[severity], row.nll[severity]
                yield {
                    **{"table": table.name, **table.setting.columns(), "severity": severity},
                    **{"label": row.label, "model": row.model, "state": ece.state, "seeds": ece.seeds},
                    **{"ece_pct": ece.mean, "ece_std_over_seeds": ece.std},
                    **{"nll": nll.mean, "nll_std_over_seeds": nll.std},
                }


def _costs(content: Content) -> Iterator[dict[str, Any]]:
    for table in content.costs:
        hardware = {
            **(table.section.columns() if table.section else {}),
            "hardware": table.hardware,
            "shared": table.shared,
        }
        for row in table.rows:
            yield {**hardware, **dataclasses.asdict(row)}


def _published(content: Content) -> Iterable[dict[str, Any]]:
    for comparison in content.comparisons:
        for row in comparison.rows:
            yield {"paper": comparison.paper, "arxiv": comparison.arxiv, **dataclasses.asdict(row)}


def _mce(content: Content) -> Iterator[dict[str, Any]]:
    for table in content.mce:
        for row in table.rows:
            yield {"label": row.label, "model": row.model, "mce": row.mce, **row.ce}
