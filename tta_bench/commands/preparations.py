"""What ``tta-bench run`` prepares before its trials: pre-trained checkpoints, measured accuracies and cost ratios."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tta_bench import preparation
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.files import read_arrays, write_json
from tta_bench.preparation import Preparation
from tta_bench.run import calibration
from tta_bench.run.accuracy import MeasuredAccuracy, measuring
from tta_bench.run.server import own_server
from tta_bench.schedule import local
from tta_bench.schedule.options import RunOptions, available_cpus
from tta_bench.store import rundir
from tta_bench.suite import LoadedSuite
from tta_bench.suite.calibration import Calibration
from tta_bench.suite.cost_ratios import CostRatio, CostRow
from tta_bench.suite.plan import Trial
from tta_bench.suite.prepare import Accuracies, AccuracyJob, Request, accuracy_jobs, pretrainings
from tta_bench.suite.select import Filter

Say = Callable[[str], None]


def pretrain(
    loaded: LoadedSuite, only: Filter, options: RunOptions, out: pathlib.Path, say: Say
) -> dict[Request, pathlib.Path] | None:
    """Run the pre-trainings that trials need and that are not finished; returns the files of all of them.

    None under ``--dry-run`` if one is not finished: trials cannot be planned then.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = pretrainings(loaded, only.allows)
    preparations = {key: job.preparation(options.image_cache(), device) for key, job in jobs.items()}
    if pending := preparation.waiting(list(preparations.values()), out):
        if options.dry_run:
            further = ["cost ratios"] if any(each.protocol.measures_cost for each in loaded.suite.evaluations()) else []
            names = ", ".join([*(p.name for p in pending), *further])
            say(f"{loaded.suite.name}: preparations to run before trials can be planned: {names}")
            return None
        _finish(pending, out, say)
    return preparation.results(preparations, out)


def measure_accuracies(
    loaded: LoadedSuite, digests: Digests, options: RunOptions, out: pathlib.Path, say: Say
) -> Accuracies | None:
    """Measure the accuracies that streams follow and that are not on file; returns all of them.

    None under ``--dry-run`` if one is to be measured: trials cannot be planned then.
    """
    jobs = accuracy_jobs(loaded, options.limit, digests)
    preparations = {index: _accuracy_preparation(job) for index, job in jobs.items()}
    if pending := preparation.waiting(list(preparations.values()), out):
        if options.dry_run:
            names = ", ".join(p.name for p in pending)
            say(f"{loaded.suite.name}: accuracies to measure before trials can be planned: {names}")
            return None
        for index, each in preparations.items():  # in turn: entries may share a file, and each adds pairs that it needs
            try:
                _finish([each], out, say)
            except UsageError as error:
                raise UsageError([loaded.protocol_problem(index, problem) for problem in error.problems]) from error
    return recorded_accuracies(jobs, [out])


def recorded_accuracies(jobs: Mapping[int, AccuracyJob], runs: Sequence[pathlib.Path]) -> Accuracies:
    """The accuracies in the folders of ``runs``; of a pair that several have, the first run's."""
    preparations = {index: _accuracy_preparation(job) for index, job in jobs.items()}
    matrices: dict[int, dict[str, np.ndarray]] = {}
    for run in runs[::-1]:
        for index, each in preparations.items():
            matrices.setdefault(index, {}).update(_matrices(run / preparation.FOLDER / each.file))
    return {index: {pair: m.tolist() for pair, m in own.items()} for index, own in matrices.items() if own}


def _accuracy_preparation(job: AccuracyJob) -> Preparation:
    def make(out: pathlib.Path, say: Say) -> str:
        final = out.parent.parent / out.name
        known = (_matrices(final) if preparation.is_intact(final) else {}) | _matrices(out)
        with measuring(own_server(), job.network, job.dataset, job.rows, available_cpus()) as measure:
            measured = MeasuredAccuracy(measure, job.dataset, out, say, known)
            job.follow(measured)
        measured.save()
        return f"{len(measured)} pairs of corruptions on {len(job.rows)} images"

    return Preparation(f"accuracy-{job.network.config.name}", job.asked, ".npz", make, lambda file: _lacks(job, file))


def _lacks(job: AccuracyJob, file: pathlib.Path) -> bool:
    """Whether a file lacks a pair that a stream needs."""
    try:
        job.follow(_matrices(file))
    except UsageError:
        return True
    return False


def _matrices(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The matrices in a file; none where there is no file, or it is damaged: then all are measured again."""
    if not file.is_file():
        return {}
    try:
        return read_arrays(file.read_bytes())
    except (OSError, ValueError):
        return {}


def measure_costs(
    calibrations: Sequence[Calibration], selected: Sequence[Trial], options: RunOptions, out: pathlib.Path, say: Say
) -> dict[CostRow, CostRatio]:
    """Measure the cost ratios that the ``selected`` trials need and that are not on file; returns all that are.

    Under ``--dry-run`` those to measure are only listed.
    """
    preparations = {each.row: _cost_preparation(each, options) for each in calibrations}
    needed = {preparations[trial.cost_row].file for trial in selected if trial.cost_row in preparations}
    if pending := [p for p in preparation.waiting(list(preparations.values()), out) if p.file in needed]:
        if options.dry_run:
            say(f"cost ratios to measure before the first trial: {', '.join(p.name for p in pending)}")
        else:
            _finish(pending, out, say)
    return recorded_costs(calibrations, options, [out])


def recorded_costs(
    calibrations: Sequence[Calibration], options: RunOptions, runs: Sequence[pathlib.Path]
) -> dict[CostRow, CostRatio]:
    """The cost ratios in the folders of ``runs``, of which the first that has one counts."""
    preparations = {each.row: _cost_preparation(each, options) for each in calibrations}
    files = {row: file for run in runs[::-1] for row, file in preparation.results(preparations, run).items()}
    return {row: _cost_ratio(file) for row, file in files.items()}


def _cost_ratio(file: pathlib.Path) -> CostRatio:
    """The ratio in a file. It would not be the same if it were measured again, so a damaged one is never replaced."""
    try:
        if not preparation.is_intact(file):
            raise ValueError("it does not match its checksum")
        return CostRatio.read(file)
    except (OSError, ValueError) as error:
        hint = "delete it: the ratio is measured again, and the trials that follow it are run again"
        raise UsageError(Problem("the file is damaged", str(file), hint=hint)) from error


def _finish(pending: Sequence[Preparation], out: pathlib.Path, say: Say) -> None:
    with rundir.locked(out):
        preparation.finish(pending, out, say)


def _cost_preparation(job: Calibration, options: RunOptions) -> Preparation:
    name = f"cost_ratio-{job.trial.method}-{job.trial.model}"
    outdated = functools.partial(_to_repeat, options.retry_failed)
    return Preparation(name, job.trial.asked, ".json", functools.partial(_measure, job, options), outdated)


def _to_repeat(retry_failed: bool, file: pathlib.Path) -> bool:
    """Whether a calibration failed and runs again: after a fault of the infrastructure always, else on request."""
    cost = _cost_ratio(file)
    return cost.status == "failed" and (retry_failed or cost.failure == "infrastructure")


def _measure(job: Calibration, options: RunOptions, out: pathlib.Path, say: Say) -> str:
    content: Mapping[str, Any] = calibration.measurement(local.run_alone(job.materials, job.trial, options))
    write_json(out, {**content, "asked": job.trial.asked})
    return calibration.summary(content)
