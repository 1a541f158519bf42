"""Intervals of a table's errors, and which differ significantly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from tta_bench.report import statistics
from tta_bench.report.images import ImageErrors
from tta_bench.report.table import Cell, Mark, MethodErrors, Pair, shifted_of


class ColumnImages(NamedTuple):
    """Attributes: shift: id of a column's shift; pool: name of its own images, empty for those of the clean ones."""

    shift: str
    pool: str = ""


class Tested:
    """Rows with intervals and marks, from one resampling of the table's images.

    Columns of one pool of images are resampled together, image by image; pools apart.

    Args:
        rows: of a table, without either.
        columns: of the table, with their images.
        images: errors of images.

    Attributes:
        rows: with intervals and marks; as they were where cells do not share their images.
        pairs: comparisons of the means over corruptions.
        untested: why there are none; empty where there are.
    """

    def __init__(self, rows: Sequence[MethodErrors], columns: Mapping[str, ColumnImages], images: ImageErrors):
        self._columns, self._shifted = list(columns), shifted_of([*columns])
        self.pairs: list[Pair] = []
        self.untested = ""
        self._draws: dict[tuple[str, str, str], np.ndarray] = {}
        cells = [(row, name) for row in rows for name in columns if row.cells[name].mean is not None]
        for pool in dict.fromkeys(columns[name].pool for _, name in cells):
            own = [(row, name) for row, name in cells if columns[name].pool == pool]
            matrix = images.matrix([(row.label, row.model, columns[name].shift) for row, name in own])
            if matrix is None:
                self.untested = "the cells do not share their images"
                break
            draws = 100.0 * statistics.bootstrap(matrix, pool=pool)
            self._draws |= {(row.model, row.label, name): draws[:, i] for i, (row, name) in enumerate(own)}
        if self.untested or not cells:
            self.rows = list(rows)
            self.untested = self.untested or "there is no result"
            return
        with_intervals = [self._with_intervals(row) for row in rows]
        models = dict.fromkeys(row.model for row in rows)
        self.rows = [row for model in models for row in self._marked([r for r in with_intervals if r.model == model])]

    def _draws_of(self, row: MethodErrors, column: str) -> np.ndarray | None:
        """(draws,) errors of a cell, or of the mean over the cells with a result."""
        names = self._shifted if column == "mean" else [column]
        draws = [self._draws[key] for name in names if (key := (row.model, row.label, name)) in self._draws]
        return np.mean(draws, axis=0) if draws else None

    def _with_intervals(self, row: MethodErrors) -> MethodErrors:
        def with_interval(cell: Cell, column: str) -> Cell:
            draws = self._draws_of(row, column)
            if draws is None:
                return cell
            low, high = statistics.interval(draws)
            return replace(cell, low=float(low), high=float(high))

        cells = {name: with_interval(cell, name) for name, cell in row.cells.items()}
        complete = row.mean.state == "ok"  # an incomplete mean is over other seeds than the draws
        return replace(row, cells=cells, mean=with_interval(row.mean, "mean") if complete else row.mean)

    def _marked(self, rows: Sequence[MethodErrors]) -> list[MethodErrors]:
        """The rows of a source model with marks; p-values are corrected over all pairs and corruptions, the mean apart."""
        tests = {name: self._test(rows, name) for name in (*self._columns, "mean")}
        corrected = _corrected({name: tests[name][1] for name in self._columns})
        corrected |= _corrected({"mean": tests["mean"][1]})
        self.pairs += self._pairs(tests["mean"][0], corrected["mean"])
        marks = {name: _marks(tested, name, corrected[name]) for name, (tested, _) in tests.items()}
        return [
            replace(
                row,
                cells={n: replace(c, mark=marks[n].get(row.label, "")) for n, c in row.cells.items()},
                mean=replace(row.mean, mark=marks["mean"].get(row.label, "")),
            )
            for row in rows
        ]

    def _test(self, rows: Sequence[MethodErrors], column: str) -> tuple[list[MethodErrors], np.ndarray]:
        """(the rows that are compared in a column, (rows, rows) p-values, each pair once)."""
        complete = [row for row in rows if _cell_of(row, column).state == "ok"]
        draws = [self._draws_of(row, column) for row in complete]
        if len(complete) < 2:
            return complete, np.full((len(complete), len(complete)), np.nan)
        names = self._shifted if column == "mean" else [column]
        by_seed = pd.concat([row.by_seed.loc[names].mean(skipna=False) for row in complete], axis=1).dropna()
        return complete, statistics.upper(statistics.pair_tests(np.stack(draws, axis=1), by_seed.to_numpy()))  # type: ignore[arg-type]

    def _pairs(self, rows: Sequence[MethodErrors], p: np.ndarray) -> Iterator[Pair]:
        for i, one in enumerate(rows):
            for j, other in enumerate(rows[i + 1 :], i + 1):
                low, high = statistics.interval(self._draws_of(one, "mean") - self._draws_of(other, "mean"))  # type: ignore[operator]
                difference = (one.mean.mean or 0.0) - (other.mean.mean or 0.0)
                yield Pair(one.model, one.label, other.label, difference, float(low), float(high), float(p[i, j]))


def _corrected(tests: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """p-values corrected together (Holm), each matrix symmetric again."""
    flat = statistics.holm(np.concatenate([p.ravel() for p in tests.values()]))
    parts = np.split(flat, np.cumsum([p.size for p in tests.values()])[:-1])
    return {
        name: statistics.mirrored(part.reshape(p.shape)) for (name, p), part in zip(tests.items(), parts, strict=True)
    }


def _cell_of(row: MethodErrors, column: str) -> Cell:
    return row.mean if column == "mean" else row.cells[column]


def _marks(rows: Sequence[MethodErrors], column: str, p: np.ndarray) -> dict[str, Mark]:
    """Marks by label: see :class:`Cell`."""
    if len(rows) < 2:
        return {}
    order = np.argsort([_cell_of(row, column).mean or 0.0 for row in rows], kind="stable")
    alike = [int(i) for i in order if p[order[0], i] >= 1 - statistics.LEVEL]  # the lowest itself included
    if len(alike) > 1:
        return {} if len(alike) == len(rows) else {rows[i].label: "tied" for i in alike}
    return {rows[order[0]].label: "best", rows[order[1]].label: "second"}
