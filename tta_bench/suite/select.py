"""``--only``: a selection of a plan's trials."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.setting import words

if TYPE_CHECKING:
    from tta_bench.suite.plan import Trial

_AND = re.compile(r",\s*(?=\w+=)")  # a comma before another field; other commas are in values
Values = Mapping[str, set[str]]  # of a trial: field to the values that match it


class Filter:
    """The trials that match any of the ``--only`` expressions; all trials where there are none.

    An expression is ``field=value|value,field=value``, with each field once; a value may hold commas: ``adapt=first 512,
    classes 5``. Clean images have no severity and match any; a trial whose protocol lacks a parameter matches none.

    Args:
        only: the expressions.

    Raises:
        UsageError: an expression is not of that form.
    """

    def __init__(self, only: Iterable[str] = ()):
        self._expressions = {text: _conditions(text) for text in only}

    def allows(self, label: str, method: str, model: str) -> bool:
        """Whether trials of this row can match; used before planning."""
        row = _of_row(label, method, model)
        return not self._expressions or any(
            all(wanted & row[name] for name, wanted in conditions.items() if name in row)
            for conditions in self._expressions.values()
        )

    def select(self, trials: Iterable[Trial]) -> list[Trial]:
        """The matching trials.

        Raises:
            UsageError: a field is unknown, or no trial has a value; the hint has the closest.
        """
        trials = list(trials)
        values = [_of_trial(trial) for trial in trials]
        for text, conditions in self._expressions.items():
            for name, wanted in conditions.items():
                _check(text, name, wanted, values)
        return [trial for trial, of_trial in zip(trials, values, strict=True) if self._matches(of_trial)]

    def _matches(self, values: Values) -> bool:
        return not self._expressions or any(
            all(name in values and (wanted & values[name] or not values[name]) for name, wanted in conditions.items())
            for conditions in self._expressions.values()
        )


def _of_row(label: str, method: str, model: str) -> dict[str, set[str]]:
    return {"method": {label, label.partition("[")[0], method}, "model": {model}}


def _of_trial(trial: Trial) -> Values:
    shifts, setting = trial.stream.shifts, trial.setting
    return {
        **{name: {_spelled(words(name, value))} for name, value in trial.parameters.items()},
        **_of_row(trial.label, trial.method, trial.model),
        "corruption": {shift.name for shift in shifts},
        "severity": {f"{shift.severity:g}" for shift in shifts if shift.severity is not None},
        "seed": {str(trial.seed)},
        "batch_size": {str(setting.batch_size)},
        **{name: {_spelled(str(value)).lower()} for name, value in vars(setting.mode).items()},
        "protocol": {setting.protocol},
    }


def _spelled(value: str) -> str:
    """A value without the spaces after its commas, which are left out as easily as not."""
    return value.replace(", ", ",")


def _conditions(text: str) -> dict[str, set[str]]:
    conditions: dict[str, set[str]] = {}
    for name, wanted in (_condition(text, part) for part in _AND.split(text)):
        if name in conditions:
            both = f"{name}={'|'.join(sorted(conditions[name] | wanted))}"
            raise UsageError(Problem(f"--only {text}: {name!r} is given twice", hint=f"either value: {both}"))
        conditions[name] = wanted
    return conditions


def _condition(text: str, condition: str) -> tuple[str, set[str]]:
    name, equals, values = condition.partition("=")
    if not equals:
        hint = "for example --only method=tent,severity=4|5"
        raise UsageError(Problem(f"--only {text}: {condition!r} is not field=value", hint=hint))
    return name, {_spelled(value) for value in values.split("|")}


def _check(text: str, name: str, wanted: set[str], trials: Iterable[Values]) -> None:
    known = [values[name] for values in trials if name in values]
    if not known:
        fields = sorted({field for values in trials for field in values})
        hint = f"for example --only method=tent,severity=4|5; fields: {', '.join(fields)}"
        raise UsageError(Problem(f"--only {text}: unknown field {name!r}", hint=hint))
    for value in sorted(wanted - set[str]().union(*known)):
        near = near_miss(value, sorted(set[str]().union(*known)))
        raise UsageError(Problem(f"--only {text}: no trial has {name} {value!r}", hint=near))
