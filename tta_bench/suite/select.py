"""``--only``: choosing among a plan's trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.suite.plan import Trial

_FILTERS: dict[str, Callable[[Trial], set[str]]] = {
    "method": lambda t: {t.label, t.label.partition("[")[0], t.method},
    "model": lambda t: {t.model},
    "corruption": lambda t: {shift.name for shift in t.stream.shifts},
    "severity": lambda t: {str(shift.severity or 0) for shift in t.stream.shifts},
    "seed": lambda t: {str(t.seed)},
    "adapt_images": lambda t: {str(t.setting.values()["parameters"].get("adapt_images", "all"))},
}


def select(trials: Iterable[Trial], only: Iterable[str]) -> list[Trial]:
    """The trials that any of the ``--only`` expressions asks for; all where there is none.

    An expression is ``field=value|value,field=value``; ``clean`` has no severity and passes every filter on it.

    Raises:
        UsageError: an unknown field, or a value that no trial has (with the nearest).
    """
    trials = list(trials)
    expressions = [_conditions(text, trials) for text in only]
    return [t for t in trials if not expressions or any(_matches(t, e) for e in expressions)]


def wants(only: Iterable[str], label: str, method: str, model: str) -> bool:
    """Whether the ``--only`` expressions can ask for a trial of this row; used before there are trials."""
    rows = {"method": {label, label.partition("[")[0], method}, "model": {model}}
    expressions = [[condition.partition("=") for condition in text.split(",")] for text in only]
    return not expressions or any(
        all(rows[name] & set(values.split("|")) for name, _, values in expression if name in rows)
        for expression in expressions
    )


def _conditions(text: str, trials: list[Trial]) -> dict[str, set[str]]:
    conditions: dict[str, set[str]] = {}
    for condition in text.split(","):
        name, equals, values = condition.partition("=")
        if not equals or name not in _FILTERS:
            hint = f"for example --only method=tent,severity=4|5; fields: {', '.join(_FILTERS)}"
            raise UsageError(Problem(f"--only {text}: {condition!r} is not field=value", hint=hint))
        known = {value for trial in trials for value in _FILTERS[name](trial)}
        for value in values.split("|"):
            if value not in known:
                raise UsageError(
                    Problem(f"--only {text}: no trial has {name} {value!r}", hint=near_miss(value, sorted(known)))
                )
        conditions[name] = set(values.split("|"))
    return conditions


def _matches(trial: Trial, conditions: Mapping[str, set[str]]) -> bool:
    def holds(name: str, values: set[str]) -> bool:
        found = _FILTERS[name](trial)
        return bool(found & values) or (name == "severity" and found == {"0"})

    return all(holds(name, values) for name, values in conditions.items())
