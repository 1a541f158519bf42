"""The lines of the page of ``tta-bench data``, and what they say of data that are there."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.text import Text

from tta_bench.data.base import DataConfig, Dataset
from tta_bench.data.comparison import counts, differences
from tta_bench.data.geometry import ImageFiles
from tta_bench.data.headers import Look, look_at
from tta_bench.data.listing import counted
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem
from tta_bench.schedule.options import available_cpus
from tta_bench.schedule.progress import ReadingProgress
from tta_bench.streams import Shift, subset

_INDENT = 13
_MOST = 3  # of like things that are listed
_BRIEF = 20  # of further problems, whose places alone are listed


class Page:
    """Lines of a head and a text, filled to the console's width; commands stay whole, so that they can be copied.

    Attributes:
        faults: number of problems shown.
    """

    def __init__(self, console: Console):
        self._console, self.faults = console, 0

    def title(self, text: str) -> None:
        self._console.print(Text(text, "bold"), soft_wrap=True)

    def line(self, head: str, text: str, style: str = "") -> None:
        width = max(self._console.width - _INDENT, 20)
        for part in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
            self._console.print(Text.assemble(f"  {head:<{_INDENT - 2}}", (part, style)), soft_wrap=True)
            head = ""

    def whole(self, head: str, text: str) -> None:
        """A line that is not broken, whatever the width."""
        self._console.print(Text(f"  {head:<{_INDENT - 2}}{text}"), soft_wrap=True)

    def problem(self, problem: Problem, head: str = "wrong") -> None:
        """A problem, and how to mend it."""
        self.faults += 1
        self.line(head, f"{problem.message} ({problem.where})" if problem.where else problem.message, "red")
        if problem.hint:
            self.whole("", f"hint: {problem.hint}")

    def problems(self, problems: Sequence[Problem]) -> None:
        """The first of some problems, and how many more there are."""
        for problem in problems[:_MOST]:
            self.problem(problem)
        if (more := len(problems) - _MOST) > 0:
            shown = [each.where or each.message for each in problems[_MOST : _MOST + _BRIEF]]
            self.line("", f"and {more:,} more: {', '.join(shown)}{' …' if more > _BRIEF else ''}", "red")


# -- data that are there -------------------------------------------------------------------------------------------------


def show_found(
    page: Page,
    config: DataConfig,
    dataset: Dataset,
    shifts: Sequence[Shift],
    published: PublishedSet,
    limit: int | None,
) -> None:
    """What is there under ``shifts``, or as source images where there are none: read from lists and headers of files."""
    size = limit or config.max_images
    if shifts:
        _show_counts(page, dataset, shifts, published)
        files = [(each, len(dataset.labels_of(shift))) for shift in shifts if (each := dataset.files(shift))]
        arrays = [array for shift in shifts if (array := dataset.array(shift)) is not None]
    elif dataset.source is not None:
        page.line("found", f"{len(dataset.source.ids):,} source images")
        own, size = dataset.source.files(), None  # methods that use source images use all
        files, arrays = [(own, len(own.names))] if own else [], []
    else:
        return
    chosen = {each.folder: _chosen(each, count, size, config.seed) for each, count in files}
    _show_folders(page, dataset, [*chosen])
    if arrays:
        page.line(
            "arrays", f"{arrays[0].dtype}, {_sides(arrays[0].shape[1:3])} pixels; used as they are, without cache"
        )
    if chosen:
        _show_look(page, _look([*chosen.values()]))


def _show_counts(page: Page, dataset: Dataset, shifts: Sequence[Shift], published: PublishedSet) -> None:
    by_count: dict[int, list[Shift]] = {}
    for shift, count in counts(dataset, shifts).items():
        by_count.setdefault(count, []).append(shift)
    shown = [f"{count:,} images" + (f" under each of {len(those)} shifts" if len(those) > 1 else f" ({those[0].id})")
             for count, those in by_count.items()]  # fmt: skip
    classes = {len(np.unique(dataset.labels_of(shift))) for shift in shifts}
    unlike = [*differences(published, dataset, shifts)]
    expected = published.summary()
    as_published = f", as {published.title} is published" if expected and not unlike else ""
    page.line("found", f"{', '.join(shown)}; {' or '.join(f'{n:,}' for n in sorted(classes))} classes{as_published}")
    for line in unlike:
        page.line("unlike", line, "yellow")


def _show_folders(page: Page, dataset: Dataset, folders: Sequence[object]) -> None:
    """Which class each class folder became, and what was left out."""
    found, left_out = [each for each in dataset.found() if each.folder in {*map(str, folders)}], Counter[str]()
    told = list[Sequence[str]]()
    for each in found:
        left_out.update(each.left_out)
        if each.classes and each.classes not in told:
            page.line("classes", each.order(_MOST + 1))
            told.append(each.classes)
    if left_out:
        page.line("left out", counted(left_out), "yellow")


def _chosen(files: ImageFiles, count: int, size: int | None, seed: int) -> ImageFiles:
    """The files of the images that a run with at most ``size`` images uses."""
    rows = subset(count, size, seed)
    return replace(files, names=[files.names[row] for row in rows])


def _look(lists: Sequence[ImageFiles]) -> Look:
    found, total, done = Look(), sum(len(files.names) for files in lists), 0
    progress = ReadingProgress(Console(stderr=True))

    def advance(files: int) -> None:
        nonlocal done
        done += files
        progress(done, total)

    for files in lists:
        found.add(look_at(files, available_cpus(), advance))
    return found


def _show_look(page: Page, look: Look) -> None:
    formats = ", ".join(f"{number:,} {name}" for name, number in look.formats.most_common())
    page.line("files", f"{formats or 'no images'}; {_bytes(look.bytes)}; {_sizes(look)}")
    if look.converted:
        page.line("converted", ", ".join(f"{number:,} {kind}" for kind, number in sorted(look.converted.items())))
    page.problems(look.faults)


def _sizes(look: Look) -> str:
    if not look.sizes:
        return "no sizes"
    [(most, number)] = look.sizes.most_common(1)
    if len(look.sizes) == 1:
        return f"all of {_sides(most)} pixels"
    ordered = sorted(look.sizes, key=lambda size: size[0] * size[1])
    return f"{_sides(ordered[0])} to {_sides(ordered[-1])} pixels, {number:,} of {_sides(most)}"


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1000:,.1f} kB"
