"""``tta-bench methods``: what is registered, where it comes from, its hyperparameters and needs."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

from tta_bench.adapter import Adapter, Needs
from tta_bench.errors import UsageError
from tta_bench.registry import Registry


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered method; one that cannot be loaded shows the reason in its row."""
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    table = Table("method", "origin", "needs", "what it is", box=None, pad_edge=False)
    for entry in registry.entries():
        try:
            cls: type[Adapter] = registry.load(entry.name)
        except UsageError as error:
            table.add_row(entry.name, entry.origin, "", f"[red]broken[/red]: {error.problems[0].message}")
            continue
        table.add_row(entry.name, entry.origin, _needs(cls.needs), _first_line(cls))
    Console().print(table)


def show(name: str, plugins: Iterable[str] = ()) -> None:
    """Print one method's origin, description, hyperparameters with defaults, presets with citations, and needs.

    Raises:
        UsageError: it is unknown, ambiguous or cannot be loaded.
    """
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    entry = registry.entry(name)
    cls: type[Adapter] = entry.load()
    console = Console(highlight=False)
    console.print(f"[bold]{name}[/bold]  {entry.origin}  {entry.file or entry.target}\n", soft_wrap=True)
    console.print(inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or "", markup=False)
    console.print(f"\nneeds: {_needs(cls.needs)}")
    console.print(f"reset() keeps: {', '.join(cls.reset_keeps) or 'nothing'}\n")
    console.print(_hyperparameters(cls))


def _hyperparameters(cls: type[Adapter]) -> Table:
    """Hyperparameters down, the defaults and each preset across."""
    table = Table("hyperparameter", "default", *cls.presets, box=None, pad_edge=False)
    for field, info in cls.Config.model_fields.items():
        default = info.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else repr(default)
        table.add_row(field, shown, *(_preset_value(cls, p, field, shown) for p in cls.presets))
    table.add_row("from", "", *(preset.citation for preset in cls.presets.values()))
    return table


def _preset_value(cls: type[Adapter], preset: str, field: str, default: str) -> str:
    try:
        value = repr(getattr(cls.Config.model_validate(dict(cls.presets[preset].values)), field))
    except ValidationError as error:
        return f"broken: {error.errors()[0]['msg']}"
    return "" if value == default else value


def _needs(needs: Needs) -> str:
    parts = [name.replace("_", " ") for name in ("backward", "source_images", "checkpoint") if getattr(needs, name)]
    parts += [f"batch of {needs.min_batch}"] if needs.min_batch > 1 else []
    parts += [f"{' or '.join(needs.norm_kinds)} norm"] if needs.norm_kinds else []
    return ", ".join(parts) or "nothing"


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
