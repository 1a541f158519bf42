"""``tta-bench check``: the rules that every method keeps, on small networks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from rich.console import Console

from tta_bench.errors import Problem, UsageError
from tta_bench.registry import Registry
from tta_bench.suite.document import parse


def check(name: str, plugins: Iterable[str], values: Iterable[str]) -> int:
    """Run the conformance suite and print a line for each rule; 3 where one is broken, else 0.

    Raises:
        UsageError: the method is unknown or cannot be loaded, or a value is not of the form key=value.
    """
    from tta_bench.testing.conformance import NETWORKS, check_method

    config = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(Problem(f"--config {pair}: not of the form key=value"))
        config[key] = parse(value, f"--config {pair}").data
    registry = Registry(pathlib.Path(file) for file in plugins)
    report = check_method(registry.load(name), config, registry)
    console = Console(highlight=False)
    for network, reason in report.skipped.items():
        console.print(f"[yellow]skipped[/yellow] on the {network}-norm network: {reason}")
    broken = {finding.rule for finding in report.findings}
    for rule in [*report.rules, *sorted(broken - set(report.rules))]:
        console.print(f"[red]broken[/red]  {rule}" if rule in broken else f"[green]kept[/green]    {rule}")
        for finding in (f for f in report.findings if f.rule == rule):
            console.print(f"          {finding.network}: {finding.message}", markup=False, soft_wrap=True)
    ran = len(NETWORKS) - len(report.skipped)
    console.print(f"{name}: {len(broken)} of {len(report.rules)} rules broken, on {ran} networks")
    return 3 if broken else 0
