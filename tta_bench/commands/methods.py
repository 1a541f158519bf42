"""``tta-bench methods``: what methods there are, and what one of them takes."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterable

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tta_bench.adapter import Adapter, Needs
from tta_bench.commands.plugins import what_it_is
from tta_bench.errors import UsageError
from tta_bench.registry import Registry

_SHOWN_BATCH = 64  # for which batch size rules are evaluated when they are shown


def list_all(plugins: Iterable[str] = ()) -> None:
    """Print every registered method; one that cannot be loaded shows the reason in its row."""
    registry = Registry(plugins=[pathlib.Path(p) for p in plugins])
    table = Table("method", "origin", "needs", "what it is", box=None, pad_edge=False)
    for entry in registry.entries():
        try:
            needs = _needs(entry.load().needs)  # type: ignore[attr-defined]
        except UsageError:
            needs = ""
        table.add_row(entry.name, entry.origin, needs, what_it_is(entry))
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
    for paragraph in (inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or "").split("\n\n"):
        console.print(paragraph.replace("\n", " "), markup=False)
        console.print()
    console.print(f"needs            {_needs(cls.needs)}")
    console.print(f"reset() keeps    {', '.join(cls.reset_keeps) or 'nothing'}\n")
    console.print(_grid("hyperparameter", "default", _defaults(cls).items()))
    own = getattr(cls, "Pretraining", None)
    if own is not None:
        console.print()
        fields = ((f"--{n.replace('_', '-')}", repr(f.get_default())) for n, f in own.model_fields.items())
        console.print(_grid("option of pretrain", "default", fields))
    if cls.presets:
        console.print()
        rows = ((name, f"{_changes(cls, name)}\nfrom {preset.citation}") for name, preset in cls.presets.items())
        console.print(_grid("preset", "what differs from the defaults", rows))


def _grid(left: str, right: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(left, right, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _defaults(cls: type[Adapter]) -> dict[str, str]:
    """Hyperparameters as they are without any preset; a field that has no default is "required"."""
    try:
        return {name: repr(value) for name, value in cls.Config().model_dump().items()}
    except ValidationError:  # some field has no default
        fields = cls.Config.model_fields.items()
        return {name: "required" if info.is_required() else repr(info.get_default()) for name, info in fields}


def _changes(cls: type[Adapter], preset: str) -> str:
    try:
        values = cls.Config.model_validate(cls.presets[preset].resolve(_SHOWN_BATCH)).model_dump()
    except ValidationError as error:
        return f"broken: {error.errors()[0]['msg']}"
    defaults = _defaults(cls)
    rules = {name: value for name, value in cls.presets[preset].values.items() if callable(value)}
    said = [f"{k} = {v!r}" for k, v in values.items() if repr(v) != defaults[k]]
    said += [f"{name} at batch {_SHOWN_BATCH}, else: {inspect.getdoc(rule)}" for name, rule in rules.items()]
    return ", ".join(said) or "nothing"


def _needs(needs: Needs) -> str:
    parts = [name.replace("_", " ") for name, value in vars(needs).items() if value is True]
    parts += [f"batch of {needs.min_batch}"] if needs.min_batch > 1 else []
    parts += [f"{' or '.join(needs.norm_kinds)} norm"] if needs.norm_kinds else []
    parts += [f"package {name}" for name in needs.packages]
    return ", ".join(parts) or "nothing"
