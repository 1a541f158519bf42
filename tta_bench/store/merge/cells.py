"""The joined plan: all trials of all runs, each cell of the tables once, in the suite's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tta_bench.errors import UsageError
from tta_bench.setting import Setting
from tta_bench.store.merge import words
from tta_bench.store.merge.clashes import Clash, asked_for, difference_of, refusal
from tta_bench.store.merge.inputs import Run, Trial


def unite(inputs: Sequence[Run], winner: Run | None, whole: Run | None) -> tuple[list[Trial], list[str]]:
    """(all trials that a run or the suite planned, each cell of the tables once, in order; what is to be said of them).

    Raises:
        UsageError: runs asked for one cell in different ways, and ``winner`` asked for none of them.
    """
    held: dict[tuple[Any, ...], tuple[Run, Trial]] = {}
    united, dropped, clashes = list[Trial](), list[Trial](), list[Clash]()
    for run in sorted(inputs, key=lambda run: run is not winner):
        for trial in run.trials:
            holders = [held[cell] for cell in _cells(trial) if cell in held]
            others = [(by, holder) for by, holder in holders if holder["key"] != trial["key"]]
            if not holders:
                united.append(trial)
                held |= dict.fromkeys(_cells(trial), (run, trial))
            elif others and any(by is winner for by, _ in others):
                dropped.append(trial)
            elif others:
                [(by, holder), *_] = others
                clashes.append(Clash(trial, by, run, difference_of(asked_for(by, holder), asked_for(run, trial))))
    if clashes:
        raise UsageError(refusal(clashes))
    notes = [f"  {words.count(len(dropped), 'cell was', 'cells were')} asked for differently; "
             f"kept as {winner.given} asked"] if dropped and winner else []  # fmt: skip
    if whole is not None:
        notes += _differently(whole.trials, {cell: trial for cell, (_, trial) in held.items()})
        united += [trial for trial in whole.trials if not any(cell in held for cell in _cells(trial))]
    return _ordered(united, [run.trials for run in ([whole] if whole else []) + list(inputs)]), notes


def _cells(trial: Trial) -> list[tuple[Any, ...]]:
    """The cells of the tables that a trial fills. Several continual streams may begin with the same clean images."""
    severe = {number for number, (_, severity, _) in enumerate(trial["shifts"]) if severity}
    row = trial["label"], trial["model"], trial["setting"], trial["seed"]
    return [
        (*row, trial["segments"][segment][0], trial["shifts"][number][2], visit)
        for segment, number, visit in trial["cells"]
        if number in severe or not severe
    ]


def _differently(whole: Sequence[Trial], held: Mapping[tuple[Any, ...], Trial]) -> list[str]:
    """One line on cells that the runs asked for in another way than the suite does here and now."""
    others = [t for t in whole if any(cell in held and held[cell]["key"] != t["key"] for cell in _cells(t))]
    if not others:
        return []
    counted = words.count(len(others), "trial was", "trials were")
    what = f"  {counted} run with other code, weights, data or hyperparameters than --suite asks for now"
    return [f"{what}: {words.listed(others)}"]


def _ordered(trials: Sequence[Trial], plans: Sequence[Sequence[Trial]]) -> list[Trial]:
    """``trials`` in the order of ``plans``: by method, model, conditions, seed, protocol, severity, shifts and visits."""

    def axis(values: Any) -> dict[Any, int]:
        return _axis([list(dict.fromkeys(value for trial in plan for value in values(trial))) for plan in plans])

    labels, models = axis(lambda t: [t["label"]]), axis(lambda t: [t["model"]])
    conditions = axis(lambda t: [_conditions(t)])
    seeds, counts = axis(lambda t: [t["seed"]]), axis(lambda t: [_images_adapted_on(t)])
    parameters = axis(lambda t: [_parameters(t)])
    severities = axis(lambda t: [severity for _, severity, _ in t["shifts"] if severity])
    visits = axis(_visits)

    def place(trial: Trial) -> tuple[Any, ...]:
        severity = max(severities.get(severity, 0) for _, severity, _ in trial["shifts"])  # clean goes with the first
        row = labels[trial["label"]], models[trial["model"]], conditions[_conditions(trial)]
        protocol = counts[_images_adapted_on(trial)], parameters[_parameters(trial)]
        return *row, seeds[trial["seed"]], *protocol, severity, [visits[visit] for visit in _visits(trial)]

    return sorted(trials, key=place)


def _conditions(trial: Trial) -> str:
    """What a suite varies besides shifts, seeds and the number of images adapted on."""
    return f"{trial['batch_size']} {trial['precision']}"


def _parameters(trial: Trial) -> str:
    """What a suite varies in its protocol besides the number of images adapted on."""
    return Setting.of(trial["setting_values"]).without("adapt_images").told


def _visits(trial: Trial) -> list[str]:
    """The corruptions that a trial meets, in its stream's order, each with how often it was met before."""
    cells = [(trial["shifts"][number][0], visit) for _, number, visit in trial["cells"]]
    return list(dict.fromkeys(f"{corruption} {visit}" for corruption, visit in cells))


def _images_adapted_on(trial: Trial) -> float:
    return float("inf") if trial["adapt_images"] is None else trial["adapt_images"]


def _axis(orders: Sequence[Sequence[Any]]) -> dict[Any, int]:
    """The position of each value, from the order that each run has it in.

    Numbers that ascend in every run ascend. Else the first run's order holds, and what a further run adds goes before the
    next value that is known, or to the end.
    """
    if all(not isinstance(v, str) for order in orders for v in order) and all(sorted(o) == list(o) for o in orders):
        return {value: i for i, value in enumerate(sorted({value for order in orders for value in order}))}
    merged: list[Any] = []
    for order in orders:
        for i, value in enumerate(order):
            if value not in merged:
                later = next((merged.index(v) for v in order[i + 1 :] if v in merged), len(merged))
                merged.insert(later, value)
    return {value: i for i, value in enumerate(merged)}
