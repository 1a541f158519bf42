"""The screen that describes one plugin: its heading and docstring, then titled lists."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from tta_bench.commands.hyperparameters import Hyperparameter
from tta_bench.commands.prose import reflowed
from tta_bench.registry import PluginEntry


def print_heading(console: Console, entry: PluginEntry) -> None:
    """Name, origin and location of a plugin, and the docstring of its module, or else of its class.

    Raises:
        UsageError: it cannot be loaded.
    """
    cls = entry.load()
    docstring = inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""
    location = f"  {entry.origin}  {entry.file or entry.target}\n"
    console.print(Text.assemble((entry.name, "bold"), location), soft_wrap=True)
    console.print(reflowed(docstring, console.width))


def print_items(console: Console, title: str, items: Iterable[tuple[str, str]]) -> None:
    """A titled list of (head, description), each description indented below its head; nothing where it is empty."""
    for number, (head, description) in enumerate(items):
        if number == 0:
            console.print(Text(f"\n{title}", "bold"))
        console.print(reflowed(head, console.width, indent=2, hanging=6))
        if description:
            console.print(reflowed(description, console.width, indent=6))


def field_items(fields: Iterable[Hyperparameter]) -> Iterable[tuple[str, str]]:
    """The items of a list of fields: ``lr: float, default 0.001`` and the description."""
    return ((f"{field.name}: {field.type}, {field.default}", field.description) for field in fields)
