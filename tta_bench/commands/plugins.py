"""``tta-bench plugins``: the registered plugins of every kind."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.errors import UsageError
from tta_bench.registry import KINDS, PluginEntry, Registry


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered name, kind by kind; one that cannot be loaded shows the reason in its row."""
    registry = Registry(pathlib.Path(file) for file in plugins)
    table = listing("kind", "name", "origin", "description")
    for kind in KINDS:
        for entry in registry.entries(kind):
            table.add_row(kind.noun, entry.name, entry.origin, summary(entry))
    Console().print(table)


def listing(*columns: str) -> Table:
    """An empty table without lines; all columns but the last two keep their words on one line."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number < len(columns) - 2)
    return table


def summary(entry: PluginEntry) -> Text:
    """The first paragraph of a plugin's description, or why it cannot be loaded."""
    try:
        docstring = inspect.getdoc(entry.load()) or ""
    except UsageError as error:
        return Text.assemble(("broken", "red"), f": {error.problems[0].message}")
    return Text(" ".join(docstring.partition("\n\n")[0].split()).replace("``", "`"))
