"""Records of one trial in several runs: which counts, what of them is refused, and torn files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from merging import changed, keys, record, repredicted
from runs import reseal

from tta_bench.store import results

Cli = Callable[..., Outcome]
Copy = Callable[..., pathlib.Path]


# -- the same key in several runs --------------------------------------------------------------------------------------


def test_equal_results_agree_and_the_first_is_kept(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("whole", "other")
    key = keys(other, "tent")[0]
    with np.load(other / "trials" / f"{key}.npz") as stored:
        arrays = dict(stored)
    arrays["images/confidence"] = arrays["images/confidence"] * (1 + 1e-7)
    np.savez(other / "trials" / f"{key}.npz", **arrays)
    reseal(other / "trials" / f"{key}.json")
    outcome = run_cli("merge", part_runs / "seed0", other, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "4 trials were in several runs and agreed" in outcome.err
    assert f"{part_runs / 'seed0'}: 4 trials\n" in outcome.err
    assert f"{other}: 4 trials\n" in outcome.err
    segments = results.load(pathlib.Path("out")).segments
    assert segments.groupby("seed")["session"].unique().map(list).to_dict() == {0: [0], 1: [1]}


def test_different_predictions_are_refused_and_shown(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("whole", "other")
    key = keys(other, "tent")[0]
    repredicted(other, key, images=3)
    there = {"host": "elsewhere", "device_name": "H100", "torch": "9.9", "threads": 7}
    changed(other, key, environment={**record(other, key)["environment"], **there})
    outcome = run_cli("merge", part_runs / "whole", other, "--out", "out")
    assert outcome.code == 2
    assert outcome.out == ""
    assert not pathlib.Path("out").exists(), "nothing is written"
    assert "1 trial is ok in several runs with different predictions" in outcome.err
    assert "tent · resnet_bn: clean seed 0" in outcome.err
    own = record(part_runs / "whole", key)
    assert f"{part_runs / 'whole'}: host {own['environment']['host']}, device_name " in outcome.err
    error = own["shifts"][0]["error_pct"]
    assert f"host elsewhere, device_name H100, torch 9.9, threads 7, error_pct {error:.3f}" in outcome.err
    assert "3 of 100 predictions differ from the first" in outcome.err
    assert "as the first" not in outcome.err
    assert "--keep" in outcome.err


def test_many_differences_are_counted_and_a_few_shown(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("whole", "other")
    for key in keys(other, "tent") + keys(other, "source"):
        repredicted(other, key, images=1)
    outcome = run_cli("merge", part_runs / "whole", other, part_runs / "seed0", "--out", "out")
    assert "8 trials are ok in several runs" in outcome.err
    assert outcome.err.count("1 of 100 predictions differ") == 5
    assert outcome.err.count("as the first") == 3, "seed 0's, of those that are shown"
    assert "and 3 more" in outcome.err


@pytest.mark.parametrize(("keep", "session"), [("whole", 0), ("other", 1)])
def test_keep_names_the_run_whose_results_win(run_cli: Cli, part_copy: Copy, keep: str, session: int) -> None:
    whole, other = part_copy("whole"), part_copy("whole", "other")
    key = keys(other, "tent")[0]
    repredicted(other, key, images=3)
    outcome = run_cli("merge", whole, other, "--out", "out", "--keep", keep)
    assert outcome.code == 0, outcome.err
    assert f"1 trial differed; {whole if keep == 'whole' else other} is kept" in outcome.err
    assert "7 trials were in several runs and agreed" in outcome.err
    assert record(pathlib.Path("out"), key)["session"] == session
    with np.load(f"out/trials/{key}.npz") as joined, np.load(f"{keep}/trials/{key}.npz") as kept:
        assert np.array_equal(joined["images/predicted"], kept["images/predicted"])


def test_keep_decides_nothing_between_two_other_runs(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("seed0", "other")
    repredicted(other, keys(other, "tent")[0], images=3)
    command = ("merge", part_runs / "whole", other, part_runs / "seed1", "--out", "out", "--keep")
    assert run_cli(*command, part_runs / "seed1").code == 2
    outcome = run_cli(*command, "nobody")
    assert outcome.code == 2
    assert "--keep nobody is none of the runs" in outcome.err
    assert run_cli(*command, other).code == 0


METHOD = {"failure": "method"}
MACHINE = {"failure": "infrastructure"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(("failed", METHOD), ("ok", None), 1), (("skipped", {}), ("ok", None), 1), (("ok", None), ("failed", METHOD), 0),
     (("failed", MACHINE), ("failed", METHOD), 1), (("failed", MACHINE), ("skipped", {}), 1),
     (("failed", METHOD), ("skipped", {}), 0), (("failed", MACHINE), ("failed", MACHINE), 0)],
)  # fmt: skip
def test_ok_beats_failed_and_the_machines_failures_come_last(
    run_cli: Cli, part_copy: Copy, first: tuple[str, Any], second: tuple[str, Any], kept: int
) -> None:
    runs = part_copy("seed0", "a"), part_copy("seed0", "b")
    key = keys(runs[0], "tent")[0]
    for run, (status, facts) in zip(runs, (first, second), strict=True):
        if status != "ok":
            changed(run, key, status=status, facts=facts, reason="for a reason", segments=[], shifts=[])
    outcome = run_cli("merge", *runs, "--out", "out")
    joined = record(pathlib.Path("out"), key)
    assert joined["session"] == kept
    assert joined["status"] == (first, second)[kept][0]
    assert outcome.code == (3 if joined["status"] == "failed" else 0)
    assert ("failed 1 of 4:\n  tent · resnet_bn: 1 (clean seed 0)" in outcome.err) == (joined["status"] == "failed")


# -- torn files --------------------------------------------------------------------------------------------------------


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path, name: bytes) -> None:
    """Damage inside an array, which the zip's checksum shows."""
    content = bytearray(path.read_bytes())
    header = content.index(name)
    content[content.index(b"\n", header) + 5] ^= 0xFF  # numpy's header of the array ends in a line feed
    path.write_bytes(content)


TEARS: dict[str, Callable[[pathlib.Path], Any]] = {
    "truncated json": lambda path: truncate(path.with_suffix(".json")),
    "json list": lambda path: path.with_suffix(".json").write_text("[]"),
    "truncated npz": lambda path: truncate(path.with_suffix(".npz")),
    "empty npz": lambda path: path.with_suffix(".npz").write_bytes(b""),
    "no npz": lambda path: path.with_suffix(".npz").unlink(),
    "predictions": lambda path: flip(path.with_suffix(".npz"), b"images/predicted.npy"),
    "batches": lambda path: flip(path.with_suffix(".npz"), b"batches/images.npy"),
    "another's": lambda path: changed(path.parent.parent, path.name, key="0" * 64),
    "schema version": lambda path: changed(path.parent.parent, path.name, schema_version=99),
    "unknown session": lambda path: changed(path.parent.parent, path.name, session=7),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_file_does_not_count_and_is_named(
    run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy, tear: str
) -> None:
    torn = part_copy("seed0", "torn")
    key = keys(torn, "tent")[1]
    TEARS[tear](torn / "trials" / key)
    alone = run_cli("merge", torn, part_runs / "seed1", "--out", "alone")
    assert alone.code == 3, alone.err
    assert f"{torn}: 1 torn trial file does not count: {key[:12]}… (" in alone.err
    assert "missing 1 of 8:\n  tent · resnet_bn: 1 (contrast-5 seed 0)\n" in alone.err
    assert not list(pathlib.Path("alone/trials").glob(f"{key}.*"))
    both = run_cli("merge", torn, part_runs / "whole", "--out", "both")
    assert both.code == 0, both.err
    assert record(pathlib.Path("both"), key)["session"] == 1, "the other run's counts"
