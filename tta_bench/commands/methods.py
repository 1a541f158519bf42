"""``tta-bench methods``: the registered methods, and the description of one of them."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.adapter import Adapter, Needs, Preset
from tta_bench.commands.description import field_items, print_citations, print_heading, print_items
from tta_bench.commands.hyperparameters import as_yaml, defaults, hyperparameters
from tta_bench.commands.plugins import listing, summary
from tta_bench.errors import UsageError
from tta_bench.registry import Registry

_BATCH_SIZE = 64  # for which presets are shown


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered method; one that cannot be loaded shows the reason in its row."""
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    table = listing("method", "origin", "needs", "description")
    for entry in registry.entries():
        try:
            needs = _needs(entry.load().needs)  # type: ignore[attr-defined]
        except UsageError:
            needs = ""
        table.add_row(entry.name, entry.origin, needs, summary(entry))
    Console().print(table)


def show(name: str, plugins: Iterable[str] = ()) -> None:
    """Print one method's origin, description, needs, hyperparameters, options of ``pretrain``, and presets.

    Raises:
        UsageError: it is unknown, ambiguous or cannot be loaded.
    """
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    entry = registry.entry(name)
    cls: type[Adapter] = entry.load()
    console = Console(highlight=False)
    print_heading(console, entry)
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("needs", Text(_needs(cls.needs)))
    facts.add_row("reset() keeps", Text(", ".join(cls.reset_keeps) or "nothing"))
    console.print(facts)
    print_items(console, "Hyperparameters", field_items(hyperparameters(cls.Config, registry, cls.example)))
    if pretraining := getattr(cls, "Pretraining", None):
        options = hyperparameters(pretraining, registry)
        items = ((f"--{f.name.replace('_', '-')}: {f.type}, {f.default}", f.description) for f in options)
        print_items(console, f"Options of 'tta-bench pretrain {name}'", items)
    presets = (_preset(cls, registry, *item) for item in cls.presets.items())
    print_items(console, f"Presets, at batch size {_BATCH_SIZE}", presets)
    print_citations(console, registry, entry)


def _preset(cls: type[Adapter], registry: Registry, name: str, preset: Preset) -> tuple[str, str]:
    """A preset with its values as a suite's model that names it gets them."""
    given = preset.resolve(_BATCH_SIZE)
    try:
        config = cls.Config.model_validate({**cls.example, **given}, context={"registry": registry})
    except ValidationError as error:
        return f"{name}: broken: {error.errors()[0]['msg']}", f"From {preset.citation}."
    usual = defaults(cls.Config, registry, cls.example)
    shown = [
        f"{field} {as_yaml(value)}{_rule(preset.values.get(field))}"
        for field, value in config
        if field in given or value != usual.get(field)
    ]
    return f"{name}: {', '.join(shown) or 'the defaults'}", f"From {preset.citation}."


def _rule(value: Any) -> str:
    return f" ({inspect.getdoc(value)})" if callable(value) else ""


def _needs(needs: Needs) -> str:
    parts = [name.replace("_", " ") for name, value in vars(needs).items() if value is True]
    parts += [f"batch of {needs.min_batch}"] if needs.min_batch > 1 else []
    parts += [f"{'/'.join(needs.norm_kinds)} norm"] if needs.norm_kinds else []
    parts += [f"package {name}" for name in needs.packages]
    return ", ".join(parts) or "nothing"
