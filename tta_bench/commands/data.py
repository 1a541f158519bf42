"""``tta-bench data SUITE``: what a suite's data hold, what is wrong with them, and what is still to get; a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.filesize import decimal

from tta_bench.commands.data_page import Page, show_found
from tta_bench.data.cache import CacheEntry
from tta_bench.data.published_sets import SETS
from tta_bench.data.reference import OWN, PublishedSet
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.preflight import cache_space_problem
from tta_bench.streams import subset
from tta_bench.suite import data_alone
from tta_bench.suite.data_alone import Place, SuiteData


@dataclass(frozen=True)
class DataOptions:
    """Options of the command, as of :class:`tta_bench.schedule.options.RunOptions`."""

    suite: str
    sets: Sequence[str] = ()
    cache: str | None = None
    limit: int | None = None
    plugins: Sequence[str] = ()


def show(options: DataOptions) -> int:
    """Print the page; returns 2 where data are absent or would be refused, else 0.

    Raises:
        UsageError: the suite is wrong in another way.
    """
    found = data_alone.load(options.suite, options.sets, options.plugins)
    page, unready = Page(Console(highlight=False)), list[str]()
    page.title(f"{found.name}: data of kind {found.kind}")
    if any(place.absent for place in found.places):
        page.line("DIR, PATH", "stand for folders of your choice")
    for place in found.places:
        before = page.faults
        _show_place(page, found, place, options.limit)
        unready += [place.published.title] if page.faults > before else []
    if found.dataset is not None and found.config is not None and not found.places:
        page.title(f"\n{found.dataset.title}")
        show_found(page, found.config, found.dataset, found.shifts, PublishedSet("", OWN, ""), options.limit)
    page.problems(found.problems)
    _show_cache(page, found, options)
    if unready:
        page.title(f"\nnot ready: {'; '.join(unready)}")
    return 2 if page.faults else 0


def _show_place(page: Page, found: SuiteData, place: Place, limit: int | None) -> None:
    page.title(f"\n{place.published.title}")
    page.whole("suite", f"{place.key}: {place.written or place.path}")
    if place.absent:
        _show_absent(page, place)
        return
    if place.written not in ("", place.path):
        page.whole("folder", place.path)
    page.problems(place.problems)
    if found.dataset is None or found.config is None or not getattr(found.config, place.key):
        if not place.problems:
            page.line("not read", "another folder or file must be there first")
        return
    shifts = [shift for shift in found.shifts if found.config.key_of(shift) == place.key]
    if shifts or place.key == found.config.source_key:
        show_found(page, found.config, found.dataset, shifts, place.published, limit)
    elif not place.problems:
        page.line("found", "the suite's rows use nothing of it")


def _show_absent(page: Page, place: Place) -> None:
    """What to get, and where to put it."""
    page.faults += 1
    unset = "" if place.path else next(iter(place.variables), "")
    page.line("absent", f"the variable {unset} is not set" if unset else f"there is no {place.path}", "red")
    published = place.published
    if published.address != OWN:
        page.whole("get", f"{published.address}{f'  ({published.size})' if published.size else ''}")
        for step in (*_download(published), *published.steps):
            page.whole("", step)
    page.whole("layout", f"{published.layout}{f': {summary}' if (summary := published.summary()) else ''}")
    if place.remark and published.address == OWN:
        page.line("", f"the suite: {place.remark}")
    folder = f"DIR/{published.folder}" if published.folder else "PATH"
    if place.variables:
        page.whole("then", f"export {place.variables[0]}={folder}")
    else:
        page.whole("then", f"--set data.{place.key}={folder}, or in the suite data: {{…, {place.key}: {folder}}}")


def _download(published: PublishedSet) -> list[str]:
    """The command that gets a set, where there is one, with the size of what it fetches."""
    if not published.get:
        return []
    return [f"tta-bench data get {published.get} DIR    # {decimal(SETS[published.get].bytes)}; or by hand:"]


def _show_cache(page: Page, found: SuiteData, options: DataOptions) -> None:
    """How much the image cache takes for what was found, as if nothing were in it yet."""
    dataset, config = found.dataset, found.config
    cache = RunOptions(options.suite, cache=options.cache).resolved(found.cache).image_cache()
    if dataset is None or config is None or not found.shifts:
        return
    page.title("\nimage cache")
    size, cached = options.limit or config.max_images, [s for s in found.shifts if dataset.array(s) is None]
    rows = [subset(len(dataset.labels_of(shift)), size, config.seed) for shift in cached]
    entries = [CacheEntry(dataset, shift, own, "") for shift, own in zip(cached, rows, strict=True)]
    if cache.root is None:
        page.line("off", "images are decoded on every use")
    elif not entries:
        page.line("none", "the arrays are used as they are")
    else:
        needed, free = cache.space(entries)
        images = f"{sum(map(len, rows)):,} images of {dataset.side}x{dataset.side} pixels{_under(len(cached))}"
        page.whole("folder", str(cache.root))
        page.line("needs", f"{needed / 2**30:,.2f} GiB if empty, for {images}; {free / 2**30:,.2f} GiB are free")
        if problem := cache_space_problem(cache, entries):
            page.problem(problem)


def _under(shifts: int) -> str:
    return f" under {shifts} shifts" if shifts > 1 else ""
