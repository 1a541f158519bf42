"""``tta-bench check``: the conformance suite for methods, on small networks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tta_bench.errors import Problem, UsageError
from tta_bench.registry import Registry
from tta_bench.run.server import own_server
from tta_bench.suite.document import parse

if TYPE_CHECKING:
    from tta_bench.testing.conformance import ConformanceReport


def check(name: str, plugins: Iterable[str], values: Iterable[str]) -> int:
    """Run the conformance suite and print a line for each rule; returns 3 if one is broken, else 0.

    It runs in its own process, which the method may crash.

    Raises:
        UsageError: the method is unknown or cannot be loaded, or a value is not of the form key=value.
    """
    config = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(Problem(f"--config {pair}: not of the form key=value"))
        config[key] = parse(value, f"--config {pair}").data
    console = Console(highlight=False)
    process = own_server().fork(_check, name, list(plugins), config)
    try:
        report: ConformanceReport | UsageError = process.connection.recv()
    except EOFError:
        console.print(f"[red]broken[/red]  {name} ends its process, exit code {process.end(kill=False)}")
        return 3
    process.end()
    if isinstance(report, UsageError):
        raise report
    return _show(name, report, console)


def _check(connection: Connection, name: str, plugins: list[str], config: Mapping[str, Any]) -> None:
    from tta_bench.testing.conformance import check_method

    try:
        registry = Registry(pathlib.Path(file) for file in plugins)
        connection.send(check_method(registry.load(name), config, registry))
    except UsageError as error:
        connection.send(error)


def _show(name: str, report: ConformanceReport, console: Console) -> int:
    for network, reason in report.skipped.items():
        console.print(f"[yellow]skipped[/yellow] on the {network}-norm network: {reason}")
    broken = {finding.rule for finding in report.findings}
    for rule in [*report.rules, *sorted(broken - set(report.rules))]:
        console.print(f"[red]broken[/red]  {rule}" if rule in broken else f"[green]kept[/green]    {rule}")
        for finding in (f for f in report.findings if f.rule == rule):
            console.print(f"          {finding.network}: {finding.message}", markup=False, soft_wrap=True)
    checked = len(report.networks) - len(report.skipped)
    console.print(f"{name}: {len(broken)} of {len(report.rules)} rules broken, on {checked} networks")
    return 3 if broken else 0
