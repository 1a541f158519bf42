"""The screen that describes one plugin: its heading and docstring, then titled lists."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from tta_bench.citations import Library, plain
from tta_bench.commands.hyperparameters import Hyperparameter
from tta_bench.commands.prose import reflowed
from tta_bench.registry import PluginEntry, Registry


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


def print_citations(console: Console, registry: Registry, entry: PluginEntry) -> None:
    """The BibTeX entries of a plugin, lines broken at the console's width; or why they cannot be read."""
    library = Library(registry)
    for number, cited in enumerate(library.named(entry.name, entry.kind)):
        console.print(Text("\nTo cite" if number == 0 else "", "bold"), end="\n" if number == 0 else "")
        console.print(f"  {cited.key}")
        for line in cited.text.splitlines():
            indent = 6 + len(line) - len(line.lstrip())
            console.print(reflowed(line.strip(), console.width, indent=indent, hanging=indent + 2))
    _print_problems(console, library)


def print_citation_keys(console: Console, registry: Registry, entry: PluginEntry) -> None:
    """The keys of a plugin's BibTeX entries, with the values of its Config that they belong to, and their titles."""
    library = Library(registry)
    found = [(cited, cited.narrowed(entry.name, entry.kind)) for cited in library.named(entry.name, entry.kind)]
    items = [
        (f"{cited.key}{f', with {when}' if when else ''}", f"{cited.short}: {plain(cited.fields.get('title', ''))}")
        for cited, when in found
    ]
    print_items(console, "To cite (tta-bench report writes the entries)", items)
    _print_problems(console, library)


def _print_problems(console: Console, library: Library) -> None:
    for problem in library.problems:
        console.print(f"\nnothing to cite: {problem}", soft_wrap=True, markup=False)
