"""Tables of errors, methods × corruptions; :mod:`tta_bench.report.error_tables` makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from tta_bench.data.corrupt.corruptions import GROUPS
from tta_bench.report.statistics import Ranks
from tta_bench.setting import Setting

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

CORRUPTIONS = "corruption"  # the family whose tables need not say it
JOINED = ""  # all families in one table, where that is asked for
_NOUNS = {
    CORRUPTIONS: "corruptions",
    JOINED: "shifts of all families",
    "natural": "natural variants",
    "domain": "domains",
}

Mark = Literal["", "best", "second", "tied"]


@dataclass(frozen=True)
class Cell:
    """Error of a method under a corruption, over seeds.

    Attributes:
        mean: mean error over seeds, per cent; None where there is none.
        std: standard deviation over seeds (n − 1), or None with one seed.
        state: "ok", or "failed", "skipped", "missing" where a trial is; "none" where no image can have the value.
        low, high: 95 % interval of ``mean`` over images, per cent; None where images are not paired.
        mark: "best": significantly lower than every other method of the source model; "second": second lowest after such
            a one; "tied", where none is "best": the lowest, and those that do not differ significantly from it.
        seeds: number of seeds in ``mean``.
    """

    mean: float | None
    std: float | None
    state: str
    low: float | None = None
    high: float | None = None
    mark: Mark = ""
    seeds: int = 0

    @property
    def text(self) -> str:
        """For a person: ``12.3``, ``12.3±0.4``, or the state."""
        if self.mean is None:
            return self.state
        spread = "" if self.std is None else f"±{self.std:.1f}"
        return f"{self.mean:.1f}{spread}{'' if self.state == 'ok' else '*'}"


@dataclass(frozen=True)
class MethodErrors:
    """A method on one source model: its cells by corruption, and their mean.

    Attributes:
        mean: over the corruptions without ``clean``; where it is over fewer cells than the table has, its state is not
            "ok" and it is not tested.
        reason: why cells are not ok, or empty.
        by_seed: (columns, seeds) error, per cent; not a number where there is none.
    """

    label: str
    model: str
    cells: dict[str, Cell]
    mean: Cell
    reason: str
    by_seed: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)


@dataclass(frozen=True)
class Pair:
    """Two methods on one source model, compared by their mean over corruptions.

    Attributes:
        difference: error of ``label`` minus error of ``other``, points.
        low, high: its 95 % interval over images.
        p: of the test over images and seeds, corrected for all pairs of the source model.
    """

    model: str
    label: str
    other: str
    difference: float
    low: float
    high: float
    p: float

    def reversed(self) -> Pair:
        """The same comparison the other way round."""
        swapped = replace(self, label=self.other, other=self.label)
        return replace(swapped, difference=-self.difference, low=-self.high, high=-self.low)


def warnings(partial: bool, mixed: Sequence[str]) -> tuple[str, ...]:
    """Why a table is no result: it used a part of the images, or its runs differ."""
    subset = ("SUBSET OF THE IMAGES, NOT A RESULT",) if partial else ()
    return (*subset, f"MIXED: {'; '.join(mixed)}") if mixed else subset


@dataclass(frozen=True)
class TableSetting:
    """The setting that all rows of a table share.

    Attributes:
        base: the setting of the trials, without severity and number of images adapted on.
        severity: 0 where there is none.
        adapt_images: images of each segment that were adapted on, 0 for all.
        several: whether other trials adapted on other numbers, so that "all" is stated, too.
        family: of the shifts that the mean is over, or :data:`JOINED`.
    """

    base: Setting
    severity: int
    adapt_images: int = 0
    several: bool = False
    family: str = CORRUPTIONS

    @property
    def noun(self) -> str:
        """The shifts that the mean is over, in the plural."""
        return _NOUNS.get(self.family, f"corruptions of {self.family}")

    @property
    def name(self) -> str:
        """For file names: ``severity-5``, ``all``, ``natural``, ``c-bar-severity-5``."""
        family = [] if self.family == CORRUPTIONS else [identifier(self.family or "joined")]
        severity = [f"severity-{self.severity}"] if self.severity else []
        return "-".join([*family, *severity]) or "all"

    @property
    def told(self) -> str:
        """What the name says, for titles, with a comma before it; or empty."""
        family = "" if self.family == CORRUPTIONS else f", {self.noun}"
        return f"{family}, severity {self.severity}" if self.severity else family

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.base.dataset

    @property
    def protocol(self) -> str:
        """The protocol's registered name."""
        return self.base.protocol

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.base.batch_size

    @property
    def conditions(self) -> str:
        """``protocol reset, batch size 200``, and values other than the defaults."""
        base = self.base
        size = f"batch size {self.batch_size}" if self.batch_size else ""  # none where a table is by batch size
        parts = [base.mask_told, f"protocol {self.protocol}", base.caption, size, base.mode_told]
        parts += [f"adapted on the first {self.adapt_images}"] if self.adapt_images else []
        parts += ["adapted on all images"] if self.several and not self.adapt_images else []
        return ", ".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """``CIFAR-10-C, severity 5, protocol reset, batch size 200``."""
        family = [] if self.family == CORRUPTIONS else [self.noun]
        severity = [f"severity {self.severity}"] if self.severity else []
        return ", ".join([self.dataset, *family, *severity, self.conditions])

    def columns(self) -> dict[str, object]:
        """The values as columns of a table."""
        own = {"family": self.family or "joined", "severity": self.severity, "adapt_images": self.adapt_images}
        return {**self.base.columns(), **own}


@dataclass(frozen=True)
class ErrorTable:
    """One table: one setting, family of shifts and severity.

    Attributes:
        name: unique in the report, for file names: ``severity-5``.
        setting: that all rows share.
        caption: all conditions in a sentence.
        corruptions: the columns; or the numbers of images adapted on.
        rows: grouped by source model, methods in the suite's order.
        partial: whether only a part of the images was used.
        averaged: whether there is a column of the mean over ``corruptions``.
        seeds: their number.
        pairs: comparisons of the mean column.
        untested: why nothing was tested; empty where it was.
        ranks: average ranks: over all source models under "", and by source model where there are several.
        mixed: how the runs differ, a sentence each.
        view: kind of a table of :mod:`tta_bench.report.views` or :mod:`tta_bench.report.across`; empty for others.
        classes: of the columns under a class mask, how many the network tells apart.
    """

    name: str
    title: str
    setting: TableSetting
    caption: str
    corruptions: list[str]
    rows: list[MethodErrors]
    partial: bool
    averaged: bool = True
    seeds: int = 1
    pairs: list[Pair] = field(default_factory=list)
    untested: str = ""
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    mixed: tuple[str, ...] = ()
    view: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the table is no result."""
        return warnings(self.partial, self.mixed)

    @property
    def columns(self) -> list[str]:
        """All columns, ``mean`` included."""
        return [*self.corruptions, "mean"] if self.averaged else self.corruptions

    @property
    def models(self) -> list[str]:
        """Source models in order."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """Methods in order."""
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The columns by what stands above them: ("", ["clean"]), ("noise", […]), …, ("", ["mean"])."""
        groups: list[tuple[str, list[str]]] = []
        for name in self.columns:
            group = self.group_of(name)
            if groups and group and groups[-1][0] == group:
                groups[-1][1].append(name)
            else:
                groups.append((group, [name]))
        return groups

    def group_of(self, column: str) -> str:
        """What stands above a column: the kind of corruption, or the number of classes under a class mask; or empty."""
        return f"{self.classes[column]:,} classes" if column in self.classes else _GROUP_OF.get(column, "")

    def of(self, model: str) -> list[MethodErrors]:
        """The rows of a source model."""
        return [row for row in self.rows if row.model == model]

    def cell(self, row: MethodErrors, column: str) -> Cell:
        """A row's cell in a column."""
        return row.mean if column == "mean" else row.cells[column]

    def pair(self, row: MethodErrors, baseline: str) -> Pair | None:
        """The comparison of a row with the baseline: the row's error minus the baseline's."""
        for pair in self.pairs:
            if pair.model == row.model and {pair.label, pair.other} == {row.label, baseline}:
                return pair if pair.other == baseline else pair.reversed()
        return None

    def rank(self, row: MethodErrors) -> float | None:
        """A row's average rank among the methods of its source model."""
        ranks = self.ranks.get(row.model) or (self.ranks.get("") if len(self.models) == 1 else None)
        return float(ranks.ranks[ranks.labels.index(row.label)]) if ranks and row.label in ranks.labels else None


def shifted_of(columns: Sequence[str]) -> list[str]:
    """The columns that a mean is over: all but ``clean``, where there are others."""
    return [name for name in columns if name != "clean"] or list(columns)


def identifier(text: str) -> str:
    """Lower-case ASCII letters, digits and hyphens, for file names and links."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
