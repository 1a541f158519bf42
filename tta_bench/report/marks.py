"""How sure a table is: intervals, and which errors are told apart from the lowest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tta_bench.report import statistics
from tta_bench.report.images import ImageErrors
from tta_bench.report.table import Cell, Mark, Pair, Row


class Resampled:
    """Rows with intervals and marks, from one resampling of the table's images.

    Args:
        rows: of a table, without either.
        corruptions: its columns.
        severity: of the table, 0 where there is none.
        errors: of images; cells that do not share them are left as they are, and ``untested`` says why.
        by_seed: for each (source model, method) and corruption the error by seed.

    Attributes:
        rows: with both.
        pairs: comparisons of the means over corruptions.
        untested: why there are none.
    """

    def __init__(
        self, rows: Sequence[Row], corruptions: Sequence[str], severity: int, errors: ImageErrors,
        by_seed: Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]],
    ):  # fmt: skip
        self._corruptions, self._by_seed = corruptions, by_seed
        self._shifted = [name for name in corruptions if name != "clean"] or list(corruptions)
        self.pairs: list[Pair] = []
        self.untested = ""
        cells = [(row, name) for row in rows for name in corruptions if row.cells[name].mean is not None]
        places = [(row.label, row.model, _shift(name, severity)) for row, name in cells]
        matrix = errors.matrix(places)
        if matrix is None:
            self.rows = list(rows)
            self.untested = "the cells are not of the same images" if cells else "there is no result"
            return
        draws = 100.0 * statistics.bootstrap(matrix)
        self._draws = {(row.model, row.label, name): draws[:, i] for i, (row, name) in enumerate(cells)}
        widened = [self._with_intervals(row) for row in rows]
        self.rows = [row for model in dict.fromkeys(r.model for r in rows) for row in self._marked(model, widened)]

    def _of(self, row: Row, column: str) -> np.ndarray | None:
        """(draws,) of a cell, or of the mean over the cells that there are."""
        names = self._shifted if column == "mean" else [column]
        found = [d for name in names if (d := self._draws.get((row.model, row.label, name))) is not None]
        return np.mean(found, axis=0) if found else None

    def _with_intervals(self, row: Row) -> Row:
        def widened(cell: Cell, column: str) -> Cell:
            draws = self._of(row, column)
            if draws is None:
                return cell
            low, high = statistics.interval(draws)
            return replace(cell, low=float(low), high=float(high))

        cells = {name: widened(cell, name) for name, cell in row.cells.items()}
        whole = row.mean.state == "ok"  # the draws of another mean are of other seeds than it is
        return replace(row, cells=cells, mean=widened(row.mean, "mean") if whole else row.mean)

    def _marked(self, model: str, rows: Sequence[Row]) -> list[Row]:
        """The rows of a source model with marks; corrected over all pairs and corruptions, the mean apart."""
        mine = [row for row in rows if row.model == model]
        tests = {name: self._tests(mine, name) for name in (*self._corruptions, "mean")}
        corrected = dict(zip(self._corruptions, self._corrected([tests[n][1] for n in self._corruptions]), strict=True))
        corrected["mean"] = self._corrected([tests["mean"][1]])[0]
        self.pairs += self._pairs(model, tests["mean"][0], corrected["mean"])
        marks = {name: _marks(tests[name][0], name, corrected[name]) for name in tests}
        return [
            replace(
                row,
                cells={n: replace(c, mark=marks[n].get(row.label, "")) for n, c in row.cells.items()},
                mean=replace(row.mean, mark=marks["mean"].get(row.label, "")),
            )
            for row in mine
        ]

    def _tests(self, rows: Sequence[Row], column: str) -> tuple[list[Row], np.ndarray]:
        """(the rows that are compared in a column, (rows, rows) p-values, each pair once)."""
        compared = [
            row for row in rows if _cell_of(row, column).state == "ok" and _cell_of(row, column).mean is not None
        ]
        if len(compared) < 2:
            return compared, np.full((len(compared), len(compared)), np.nan)
        draws = np.stack([d for row in compared if (d := self._of(row, column)) is not None], axis=1)
        return compared, statistics.upper(statistics.pair_tests(draws, self._seeds(compared, column)))

    def _seeds(self, rows: Sequence[Row], column: str) -> np.ndarray:
        """(seeds, rows) errors of the seeds that all rows have."""
        names = self._shifted if column == "mean" else [column]
        cells = [[self._by_seed[row.model, row.label][name] for name in names] for row in rows]
        seeds = sorted(set.intersection(*(set(errors) for of_row in cells for errors in of_row)))
        return np.array([[np.mean([errors[seed] for errors in of_row]) for of_row in cells] for seed in seeds])

    @staticmethod
    def _corrected(tests: Sequence[np.ndarray]) -> list[np.ndarray]:
        flat = statistics.holm(np.concatenate([t.ravel() for t in tests]))
        parts = np.split(flat, np.cumsum([t.size for t in tests])[:-1])
        return [statistics.mirrored(part.reshape(t.shape)) for part, t in zip(parts, tests, strict=True)]

    def _pairs(self, model: str, rows: Sequence[Row], p: np.ndarray) -> Iterator[Pair]:
        for i, one in enumerate(rows):
            for j in range(i + 1, len(rows)):
                other = rows[j]
                mine, theirs = self._of(one, "mean"), self._of(other, "mean")
                assert mine is not None
                assert theirs is not None
                low, high = statistics.interval(mine - theirs)
                assert one.mean.mean is not None
                assert other.mean.mean is not None
                gap = one.mean.mean - other.mean.mean
                yield Pair(model, one.label, other.label, gap, float(low), float(high), float(p[i, j]))


def _cell_of(row: Row, column: str) -> Cell:
    return row.mean if column == "mean" else row.cells[column]


def _shift(corruption: str, severity: int) -> str:
    return corruption if corruption == "clean" or not severity else f"{corruption}-{severity}"


def _marks(rows: Sequence[Row], column: str, p: np.ndarray) -> dict[str, Mark]:
    """Marks by label: see :class:`Cell`."""
    if len(rows) < 2:
        return {}
    errors = np.array([_cell_of(row, column).mean for row in rows], dtype=float)
    order = np.argsort(errors, kind="stable")
    alike = [int(i) for i in order if p[order[0], i] >= 1 - statistics.LEVEL]  # the lowest is like itself
    if len(alike) > 1:
        return {} if len(alike) == len(rows) else {rows[i].label: "tied" for i in alike}
    return {rows[order[0]].label: "best", rows[order[1]].label: "second"}
