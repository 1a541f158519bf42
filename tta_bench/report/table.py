"""The table of methods × corruptions: what stands in it, before anything decides how it looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from tta_bench.data.corruptions import NAMES
from tta_bench.results import Results

_ORDER = {name: position for position, name in enumerate(("clean", *NAMES))}


@dataclass(frozen=True)
class Cell:
    """Error of a method under a corruption, over seeds.

    Attributes:
        mean: mean error over seeds, per cent; None where there is none.
        std: standard deviation over seeds (n − 1), or None with one seed.
        state: "ok", or "failed", "skipped", "missing": the worst of its trials.
    """

    mean: float | None
    std: float | None
    state: str

    @property
    def text(self) -> str:
        """For a person: ``12.3``, ``12.3±0.4``, or the state."""
        if self.mean is None:
            return self.state
        spread = "" if self.std is None else f"±{self.std:.1f}"
        return f"{self.mean:.1f}{spread}{'' if self.state == 'ok' else '*'}"


@dataclass(frozen=True)
class Row:
    """A method with one source model: its cells by corruption, and their mean.

    Attributes:
        mean: over the corruptions, ``clean`` left out; over fewer cells than the table has, its state is not "ok" and it
            is compared with nothing.
        reason: why cells are not ok, or empty.
    """

    label: str
    model: str
    cells: dict[str, Cell]
    mean: Cell
    reason: str


@dataclass(frozen=True)
class ErrorTable:
    """One table: one protocol and one severity.

    Attributes:
        caption: all conditions in a sentence.
        corruptions: the columns; or the numbers of images adapted on.
        rows: grouped by source model, methods in the suite's order.
        partial: whether the run used only a part of the images.
        averaged: whether the mean over ``corruptions`` is a further column.
    """

    title: str
    caption: str
    corruptions: list[str]
    rows: list[Row]
    partial: bool
    averaged: bool = True

    @property
    def columns(self) -> list[str]:
        """All columns, ``mean`` included."""
        return [*self.corruptions, "mean"] if self.averaged else self.corruptions

    @property
    def models(self) -> list[str]:
        """Source models in order."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def best(self, model: str, column: str) -> float | None:
        """Lowest error among the model's comparable cells, as shown (one decimal); None where nothing is compared."""
        cells = [row.mean if column == "mean" else row.cells[column] for row in self.rows if row.model == model]
        shown = [round(cell.mean, 1) for cell in cells if cell.mean is not None and cell.state == "ok"]
        return min(shown) if len(shown) > 1 else None

    def is_best(self, row: Row, column: str) -> bool:
        """Whether the row's cell shares the lowest shown error of its model."""
        cell = row.mean if column == "mean" else row.cells[column]
        best = self.best(row.model, column)
        return best is not None and cell.state == "ok" and cell.mean is not None and round(cell.mean, 1) == best


def tables(results: Results) -> list[ErrorTable]:
    """One table for each severity of the run; ``clean`` stands in each.

    Where the run varies ``adapt_images``, that table is of the trials that adapt on most, and two more follow it.
    """
    frame = results.segments
    severities = sorted({int(s) for s in frame["severity"]} - {0}) or [0]
    counts = list(dict.fromkeys(frame["adapt_images"].fillna(0).astype(int)))  # 0: all
    made = []
    for severity in severities:
        part = frame[frame["severity"].isin([severity, 0])]
        most = 0 if 0 in counts else max(counts)
        made.append(_table(results, part[part["adapt_images"].fillna(0) == most], severity, most))
        if len(counts) > 1:
            made += [_curve(results, part, severity, column) for column in ("error_pct", "error_after_pct")]
    return made


def _table(results: Results, frame: pd.DataFrame, severity: int, count: int) -> ErrorTable:
    corruptions = sorted(frame["corruption"].unique(), key=lambda name: _ORDER.get(name, len(_ORDER)))
    rows = [_row(of_row, *names, corruptions) for names, of_row in _rows(frame)]
    partial = not results.plan["all_images"]
    title = f"{results.plan['suite']}: error in per cent" + (f", severity {severity}" if severity else "")
    adapted = [f"adapted on the first {count} images of each"] if count else []
    return ErrorTable(title, _caption(results, frame, severity, partial, adapted), corruptions, rows, partial)


def _rows(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """((label, model), their part of the frame), grouped by model."""
    for model in frame["model"].unique():
        for label in frame["label"].unique():
            of_row = frame[(frame["model"] == model) & (frame["label"] == label)]
            if len(of_row):
                yield (str(label), str(model)), of_row


def _curve(results: Results, frame: pd.DataFrame, severity: int, column: str) -> ErrorTable:
    """Mean error over corruptions against the number of images adapted on, over all images or over those after."""
    shifted = frame[frame["corruption"] != "clean"] if severity else frame
    shifted = shifted.assign(
        error_pct=shifted[column], corruption=shifted["adapt_images"].astype("string").fillna("all")
    )
    counts = list(dict.fromkeys(shifted["corruption"]))
    counts.sort(key=lambda name: float("inf") if name == "all" else int(name))
    rows = [_row(of_row, *names, counts) for names, of_row in _rows(shifted)]
    after = max(int(name) for name in counts if name != "all")
    what = "all images" if column == "error_pct" else f"the images after the first {after}"
    title = f"{results.plan['suite']}: error in per cent on {what}, by images adapted on"
    title += f", severity {severity}" if severity else ""
    partial = not results.plan["all_images"]
    grades = [f"mean over the corruptions, over {what}", "columns: images of each corruption that were adapted on"]
    return ErrorTable(title, _caption(results, shifted, severity, partial, grades), counts, rows, partial, False)


def _row(frame: pd.DataFrame, label: str, model: str, corruptions: Sequence[str]) -> Row:
    cells = {name: _cell(frame[frame["corruption"] == name]) for name in corruptions}
    shifted = [name for name in corruptions if name != "clean"] or list(corruptions)
    have = [name for name in shifted if cells[name].mean is not None]
    whole = len(have) == len(shifted) and all(cells[name].state == "ok" for name in have)
    states = [cells[name].state for name in shifted if cells[name].state != "ok"]
    state = "ok" if whole else states[0]
    reasons = [str(reason) for reason in frame["reason"].dropna().unique() if reason]
    by_seed = frame[frame["corruption"].isin(have) & (frame["status"] == "ok")].groupby("seed")["error_pct"].mean()
    mean = _spread(by_seed, state) if have else Cell(None, None, state)
    return Row(label, model, cells, mean, "; ".join(reasons))


def _cell(frame: pd.DataFrame) -> Cell:
    if not len(frame):
        return Cell(None, None, "missing")
    good = frame[frame["status"] == "ok"]
    bad = frame[frame["status"] != "ok"]["status"]
    state = "ok" if not len(bad) else str(bad.iloc[0])
    return _spread(good.groupby("seed")["error_pct"].mean(), state) if len(good) else Cell(None, None, state)


def _spread(by_seed: pd.Series, state: str) -> Cell:
    std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    return Cell(float(by_seed.mean()), std, state)


def _caption(results: Results, frame: pd.DataFrame, severity: int, partial: bool, further: Sequence[str] = ()) -> str:
    seeds = sorted(int(s) for s in frame["seed"].unique())
    images = max(int(t["images"]) for t in results.plan["trials"])
    spread = (
        "one seed, so no spread is known" if len(seeds) == 1 else f"mean ± standard deviation over {len(seeds)} seeds"
    )
    parts = [
        f"Error in per cent on {' and '.join(frame['dataset'].unique())}",
        *([f"severity {severity}"] if severity else []),
        f"protocol {' and '.join(frame['protocol'].unique())}",
        f"batch size {' and '.join(str(b) for b in frame['batch_size'].unique())}",
        f"{images} images a corruption{' (a subset: not a result)' if partial else ''}",
        *further,
        spread,
    ]
    return ", ".join(parts) + ". The mean leaves clean out."
