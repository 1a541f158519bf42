"""How a merge speaks of trials: their rows and places, and lists that say how many there are but show a few."""

from __future__ import annotations

from collections.abc import Sequence

from tta_bench.store.merge.inputs import Trial

SHOWN = 5  # of any list of trials or files; how many there are is always said
_ROWS = 12


def grouped(status: str, those: Sequence[Trial], total: int) -> list[str]:
    """``missing 3 of 12:``, then a line for each method and model."""
    if not those:
        return []
    rows: dict[str, list[Trial]] = {}
    for trial in those:
        rows.setdefault(row(trial), []).append(trial)
    lines = [f"  {row}: {len(of_row)} ({capped([place(t) for t in of_row])})" for row, of_row in rows.items()]
    more = [f"  and {len(lines) - _ROWS} more rows"] if len(lines) > _ROWS else []
    return [f"{status} {len(those)} of {total}:", *lines[:_ROWS], *more]


def row(trial: Trial) -> str:
    """``tent · resnet_bn``"""
    return f"{trial['label']} · {trial['model']}"


def place(trial: Trial) -> str:
    """Where in its row: ``contrast-5 seed 0``, or ``contrast-5 visit 1 seed 0`` where it was met before."""
    names = [name for _, _, name in trial["shifts"]]
    shifts = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    _, earlier, _ = trial["segments"][0]
    visit = f" visit {earlier}" if earlier else ""
    adapted = "" if trial["adapt_images"] is None else f" adapt_images {trial['adapt_images']}"
    return f"{shifts}{visit}{adapted} seed {trial['seed']}"


def listed(trials: Sequence[Trial]) -> str:
    """Rows and places of the first trials."""
    return capped([f"{row(t)} {place(t)}" for t in trials])


def capped(texts: Sequence[str]) -> str:
    """The first ``SHOWN`` texts, with an ellipsis where there are more."""
    return ", ".join([*texts[:SHOWN], *(["…"] if len(texts) > SHOWN else [])])


def count(number: int, one: str, many: str) -> str:
    """``number`` with the noun that goes with it."""
    return f"{number} {one if number == 1 else many}"
