"""``tta-bench plugins``: what is registered of every kind."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tta_bench.errors import UsageError
from tta_bench.registry import KINDS, Entry, Registry


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered name, kind by kind; one that cannot be loaded shows the reason in its row."""
    registry = Registry(pathlib.Path(file) for file in plugins)
    table = Table("kind", "name", "origin", "what it is", box=None, pad_edge=False)
    for kind in KINDS:
        for entry in registry.entries(kind):
            table.add_row(kind.noun, entry.name, entry.origin, what_it_is(entry))
    Console().print(table)


def what_it_is(entry: Entry) -> str:
    """The first line of a plugin's description, or why it cannot be loaded."""
    try:
        return first_line(entry.load())
    except UsageError as error:
        return f"[red]broken[/red]: {error.problems[0].message}"


def first_line(cls: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
