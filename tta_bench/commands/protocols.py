"""``tta-bench protocols``: the registered protocols, and the description of one of them."""

from __future__ import annotations

import inspect
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.commands.description import field_items, print_citation_keys, print_heading, print_items
from tta_bench.commands.hyperparameters import documented, hyperparameters, section
from tta_bench.commands.plugins import listing, summary
from tta_bench.commands.prose import reflowed
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.protocols import Protocol, ProtocolConfig
from tta_bench.protocols.words import advice
from tta_bench.registry import PROTOCOLS, PluginEntry, Registry

# A value of each common key, to see whether a kind takes it.
_COMMON: dict[str, Any] = {
    "adapt_images": 64, "adapt": {"every": 2}, "reset": "never", "window": 8, "probe": {"shift": "clean"},
    "shift_order": "seed",
}  # fmt: skip
_RESETS = {"segment": "before each segment", "never": "never"}


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered protocol; one that cannot be loaded shows the reason in its row."""
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    table = listing("protocol", "origin", "variants", "description")
    for entry in registry.entries(PROTOCOLS):
        table.add_row(entry.name, entry.origin, _variants(entry), summary(entry))
    Console().print(table)


def _variants(entry: PluginEntry) -> str:
    try:
        return ", ".join(entry.load().Config.variants)  # type: ignore[attr-defined]
    except UsageError:
        return ""


def show(name: str, plugins: Iterable[str] = ()) -> None:
    """Print one protocol's origin, description, variants, parameters, the common keys that it takes, and examples.

    Raises:
        UsageError: it is unknown (the hint translates the field's words), ambiguous or cannot be loaded.
    """
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    names = registry.names(PROTOCOLS)
    if name not in names:
        raise UsageError(Problem(f"unknown protocol {name!r}", hint=advice(name, near_miss(name, names))))
    entry = registry.entry(name, PROTOCOLS)
    cls: type[Protocol] = entry.load()
    examples = _examples(cls)
    console = Console(highlight=False)
    print_heading(console, entry)
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("reset, by default", _RESETS[cls.resets])
    facts.add_row("streams", "one for each severity" if cls.by_severity else "one for all severities")
    console.print(facts)
    fields = hyperparameters(cls.Config, registry)
    own = [f for f in fields if f.name.partition(".")[0] not in ProtocolConfig.model_fields]
    refused = set(_refused(cls, examples[0]))
    common = [f for f in fields if f.name.partition(".")[0] in _COMMON.keys() - refused]
    described = dict(documented(inspect.getdoc(cls.Config) or "", "Variants", cls.Config.variants))
    print_items(console, "Variants", ((variant, described.get(variant, "")) for variant in cls.Config.variants))
    print_items(console, "Parameters", field_items(own))
    print_items(console, "Common keys", field_items(common))
    print_citation_keys(console, registry, entry)
    console.print(Text("\nIn a suite", "bold"))
    for example in examples:
        console.print(reflowed(f"protocol: {example}", console.width, indent=2, hanging=4))


def _examples(cls: type[Protocol]) -> list[str]:
    """Values of a suite's ``protocol``, from the Config's docstring; without any, the kind with its required fields."""
    text = textwrap.dedent(section(inspect.getdoc(cls.Config) or "", "Example").strip("\n"))
    if text:
        return [" ".join(example.split()) for example in text.replace("\n{", "\n\n{").split("\n\n")]
    required = [name for name, field in cls.Config.model_fields.items() if field.is_required() and name != "kind"]
    return [f"{{{', '.join([f'kind: {cls.name}', *(f'{name}: …' for name in required)])}}}"]


def _refused(cls: type[Protocol], example: str) -> Iterator[str]:
    """The common keys that the protocol of an example does not take."""
    given: Mapping[str, Any] = yaml.safe_load(example)
    for key, value in _COMMON.items():
        try:
            cls.Config.model_validate({**given, key: value})
        except ValidationError as error:
            if any(key in problem["loc"][:1] for problem in error.errors()):
                yield key
