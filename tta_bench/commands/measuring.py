"""What ``tta-bench run`` measures of a plan's rows: their cost in several modes, and the share of a GPU that they need."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from tta_bench import preparation
from tta_bench.commands.comparison import Comparison, Outcome
from tta_bench.data.digests import Digests
from tta_bench.errors import Stopped
from tta_bench.files import write_json
from tta_bench.precision import Mode
from tta_bench.preparation import Preparation
from tta_bench.run.measurement import measured
from tta_bench.run.runner import TrialResult
from tta_bench.schedule import local, scheduler
from tta_bench.schedule.options import RunOptions, available_cpus
from tta_bench.schedule.packing import Card, card, share_of_gpu, trials_at_once
from tta_bench.store import rundir
from tta_bench.streams import Shift
from tta_bench.suite import measuring
from tta_bench.suite.measuring import Row
from tta_bench.suite.plan import Materials, Trial

_AUTO = "--gpus-per-trial auto"


class Held(NamedTuple):
    """Memory that a trial held, MiB, or None and why it was not measured. Attributes: row: in words; kind: of fault."""

    row: str
    held_mib: float | None
    reason: str = ""
    kind: str = ""


class Measuring:
    """Measures rows of a plan, one trial at a time on this machine.

    Args:
        materials: of the plan.
        shift: of the images that are measured on, where its labels fit a row's network.
        digests: of image files.
        options: of the run.
        say: prints a line.
    """

    def __init__(
        self, materials: Materials, shift: Shift, digests: Digests, options: RunOptions, say: Callable[[str], None]
    ):
        self._materials, self._shift, self._digests = materials, shift, digests
        self._options, self._say = options, say

    # -- modes compared ------------------------------------------------------------------------------------------------

    def compare(self, trials: Sequence[Trial]) -> int:
        """Measure the rows of ``trials`` in several modes and print a table; no result is stored.

        Returns:
            Exit code 3 if a row failed in a mode of its own.
        """
        gpus, own = torch.cuda.device_count(), list(dict.fromkeys(trial.mode for trial in trials))
        rows = {row: [t for t in found if t.mode == found[0].mode] for row, found in measuring.by_row(trials).items()}
        modes = measuring.compared_modes(own, compiles=gpus > 0)
        self._say(f"measuring {len(rows)} rows in {len(modes)} modes: {'; '.join(mode.text for mode in modes)}")
        outcomes: dict[Row, dict[Mode, Outcome]] = {row: {} for row in rows}
        jobs = self._jobs(trials, modes)
        self._make_images(jobs)
        for job in jobs:
            outcome = outcomes[job.row][job.trial.mode] = self._outcome(job)
            told = outcome if isinstance(outcome, str) else f"{outcome.images_per_s:,.0f} images/s"
            self._say(f"  {job.row.text}, {job.trial.mode.text}: {told}")
        slots = scheduler.slots(self._options)
        print(Comparison(rows, outcomes, min(slots, gpus or slots), card()).text())
        failed = [str(each[mode]).startswith("failed") for each in outcomes.values() for mode in own]
        return 3 if any(failed) else 0

    def _jobs(self, trials: Sequence[Trial], modes: Sequence[Mode]) -> list[measuring.MeasuringTrial]:
        return list(measuring.measurings(self._materials, trials, modes, self._shift, self._digests))

    def _make_images(self, jobs: Sequence[measuring.MeasuringTrial]) -> None:
        """Put the images of measuring trials into the cache, from which those of a run come."""
        cache = self._options.image_cache()
        cached = [(job, shift) for job in jobs for shift in job.trial.stream.cached]
        entries = [job.materials.cache_entry(job.trial.model, job.trial.stream, shift) for job, shift in cached]
        cache.build(cache.to_build(list({entry.key: entry for entry in entries}.values())), available_cpus())

    def _outcome(self, job: measuring.MeasuringTrial) -> Outcome:
        result = self._run(job)
        return measured(result, job.warmup) if result.status == "ok" else f"{result.status}: {result.reason}"

    def _run(self, job: measuring.MeasuringTrial) -> TrialResult:
        try:
            return local.run_alone(job.materials, job.trial, self._options)
        except Stopped as stopped:  # its process has ended; other rows are measured all the same
            return TrialResult(job.trial.key, "failed", stopped.problem.message, facts={"failure": "infrastructure"})

    # -- memory --------------------------------------------------------------------------------------------------------

    def packed(self, trials: Sequence[Trial], out: pathlib.Path) -> RunOptions:
        """The options with a number in the place of ``--gpus-per-trial auto``.

        The memory of each row of ``trials`` that is not on file in the run's folder ``out`` is measured; under
        ``--dry-run`` it is only told that it will be.
        """
        if self._options.gpus_per_trial != "auto":
            return self._options
        share = self._share(trials, out)
        return replace(self._options, gpus_per_trial=share)

    def _share(self, trials: Sequence[Trial], out: pathlib.Path) -> float:
        options = self._options
        if options.executor == "local":
            self._say(f"{_AUTO}: with --executor local one trial at a time has the whole device")
            return 1.0
        found = card()
        if found is None:
            where = "trials get a whole GPU each" if options.address else "trials share its CPU cores as ever"
            self._say(f"{_AUTO}: this machine has no GPU to measure on; {where}")
            return 1.0
        jobs = self._jobs(trials, list(dict.fromkeys(trial.mode for trial in trials)))
        preparations = {job.trial.key: self._preparation(job, found) for job in jobs}
        if pending := preparation.waiting(list(preparations.values()), out):
            if options.dry_run:
                self._say(f"{_AUTO}: memory of {len(pending)} rows to measure first; until then a whole GPU each")
                return 1.0
            self._make_images(jobs)
            with rundir.locked(out):
                preparation.finish(pending, out, self._say)
        files = preparation.results(preparations, out)
        share, why = chosen_share([_read(file) for file in files.values()], found)
        self._say(f"{_AUTO}: {share:g}, {trials_at_once(share)} trials on a GPU: {why}")
        return share

    def _preparation(self, job: measuring.MeasuringTrial, found: Card) -> Preparation:
        asked = {**job.trial.asked, "device": found.name}
        name = f"memory-{job.trial.method}-{job.trial.model}"
        return Preparation(name, asked, ".json", functools.partial(self._measure_memory, job), _to_repeat)

    def _measure_memory(self, job: measuring.MeasuringTrial, out: pathlib.Path, say: Callable[[str], None]) -> str:
        result = self._run(job)
        kind = str(result.facts.get("failure", ""))
        held = Held(f"{job.row.text}, {job.trial.mode.text}", result.facts.get("device_held_mib"), result.reason, kind)
        write_json(out, held._asdict())
        return held.reason if held.held_mib is None else f"{held.held_mib:,.0f} MiB"


def _read(file: pathlib.Path) -> Held:
    return Held(**json.loads(file.read_text(encoding="utf-8")))


def _to_repeat(file: pathlib.Path) -> bool:
    """Whether memory has to be measured again: after a fault of the machine, or where the file is damaged."""
    try:
        return _read(file).kind == "infrastructure"
    except (ValueError, TypeError):
        return True


def chosen_share(measured: Sequence[Held], found: Card) -> tuple[float, str]:
    """(share of a GPU that each trial gets, why): that of the row which holds most, since any worker may get any trial.

    A row that was skipped, or whose method failed, does not count; one that failed for another reason needs a whole GPU.
    """
    unknown = [held for held in measured if held.held_mib is None and held.kind not in ("", "method")]
    if unknown:
        return 1.0, f"that of {unknown[0].row} is not known: {unknown[0].reason}"
    known = [held for held in measured if held.held_mib is not None]
    if not known:
        return 1.0, "no row was measured"
    largest = max(known, key=lambda held: held.held_mib or 0.0)
    assert largest.held_mib is not None
    why = f"{largest.row} held {largest.held_mib:,.0f} of the {found.memory_mib:,.0f} MiB of {found.name}"
    return share_of_gpu(largest.held_mib, found.memory_mib), why
