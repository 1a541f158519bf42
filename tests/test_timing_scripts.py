"""The scripts in benchmarks/ that time whole sweeps, what they read from a run and when they say that runs are equal; and
the one that measures what methods hold."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from networks import ready, small_model
from runs import reseal
from test_training_scripts import script

from tta_bench.methods.source import Source

TRIALS = [(1000.0, 4.0, 7, [300]), (1001.0, 9.0, 8, [200, 100]), (1009.5, 2.0, 7, [])]  # end, seconds, process, images
SPEEDS = [{1.0: 10.0, 0.5: 15.0, 0.25: 10.0}, {1.0: 20.0, 0.5: 60.0, 0.25: 10.0}, {1.0: 15.0, 0.5: 30.0, 0.25: 15.0}]


def sweep_of(images_per_s: float, workers: int = 1) -> Any:
    return script("timing").Sweep(seconds=2.0, trials=3, images=int(2 * images_per_s), workers=workers)


@pytest.fixture
def run_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with the files of :data:`TRIALS`."""
    (tmp_path / "trials").mkdir()
    for number, (end, seconds, pid, images) in enumerate(TRIALS):
        file = tmp_path / "trials" / f"{number}.json"
        where, shifts = {"host": "a", "pid": pid}, [{"images": count} for count in images]
        file.write_text(json.dumps({"facts": {"trial_s": seconds}, "shifts": shifts, "environment": where}))
        os.utime(file, (end, end))
    return tmp_path


def test_a_sweep_lasts_from_the_first_start_to_the_last_end(run_folder: pathlib.Path) -> None:
    found = script("timing").read(run_folder)
    assert (found.seconds, found.trials, found.images, found.workers) == (1009.5 - 992.0, 3, 600, 2)
    assert found.images_per_s == 600 / 17.5


def test_scaling_takes_its_seconds_from_there(run_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = script("scaling")
    monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: None)
    assert scaling.sweep(2, 100, run_folder) == 17.5


def test_shares_begin_with_the_unpacked_run() -> None:
    packing = script("packing")
    assert packing.shares("1,0.5,0.25") == [1.0, 0.5, 0.25]
    assert packing.shares("1") == [1.0]
    for wrong in ("0.5,1", "0.5", "1,2", "1,0", "1,1", "1,-0.5", "", "1,half"):
        with pytest.raises(argparse.ArgumentTypeError, match=repr(wrong)):
            packing.shares(wrong)


def test_a_line_says_how_much_faster_and_whether_equal() -> None:
    line, one = script("packing").line, sweep_of(1000.0)
    assert line(1.0, one, one, []) == "share 1: 1 worker, 3 trials, 2,000 images in 2.0 s, 1,000 images/s"
    packed = line(0.25, sweep_of(2500.0, workers=4), one, [])
    assert packed.startswith(
        "share 0.25: 4 workers, 3 trials, 5,000 images in 2.0 s, 2,500 images/s, 2.50 times unpacked"
    )
    assert packed.endswith("; results equal bit for bit")
    assert line(1.0, one, one, ["column error_pct", "x"]).endswith(
        "1.00 times unpacked; DIFFERENT: column error_pct, x"
    )


def test_medians_are_of_the_rounds_ratios() -> None:
    rounds = [{share: sweep_of(speed) for share, speed in speeds.items()} for speeds in SPEEDS]
    assert script("packing").medians(rounds) == [
        "share 1: 15 images/s, 1.00 times unpacked (medians of 3)",
        "share 0.5: 30 images/s, 2.00 times unpacked (medians of 3)",
        "share 0.25: 10 images/s, 1.00 times unpacked (medians of 3)",
    ]


@pytest.fixture
def local_sweep(run_cli: Callable[..., Any], suite_file: Callable[..., pathlib.Path]) -> Callable[..., Any]:
    """In place of ``packing.sweep``: a run in this process, whatever the share."""
    suite = suite_file(("methods: [source, tent]", "methods: [source]"), ("batch_size: 40", "batch_size: 100"))

    def sweep(_suite: str, _share: float, further: Sequence[str], out: pathlib.Path) -> Any:
        assert run_cli("run", suite, "--executor", "local", "--out", out, *further).code == 0
        return script("timing").read(out)

    return sweep


def test_differences_are_named(local_sweep: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    differences, one, two = script("packing").differences, tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        local_sweep("", 1.0, [], run)
    assert differences(one, two) == []

    file = next((two / "trials").glob("*.npz"))
    arrays = dict(np.load(file))
    arrays["images/confidence"] = np.nextafter(arrays["images/confidence"], np.float32(2))
    np.savez(file, **arrays)
    reseal(file.with_suffix(".json"))
    assert differences(one, two) == ["predictions of 1 of 2 trials"]

    record = json.loads(file.with_suffix(".json").read_text())
    record["shifts"][0]["correct"] += 1
    record["segments"][0]["stat_new"] = 0.5
    file.with_suffix(".json").write_text(json.dumps(record))
    reseal(file.with_suffix(".json"))
    assert differences(one, two) == ["column stat_new", "column correct", "predictions of 1 of 2 trials"]


@pytest.mark.parametrize("same", [True, False])
def test_every_run_is_compared_with_the_unpacked_one(
    same: bool, local_sweep: Callable[..., Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, said = script("packing"), []

    def sweep(suite: str, share: float, further: Sequence[str], out: pathlib.Path) -> Any:
        return local_sweep(suite, share, further if same or share == 1 else ["--set", "seeds=[1]"], out)

    monkeypatch.setattr(packing, "sweep", sweep)
    monkeypatch.setattr("builtins.print", lambda text, **_: said.append(text))  # run_cli takes what is printed
    arguments = argparse.Namespace(suite="", shares=[1.0, 0.5], rounds=1)
    assert packing.measure(arguments, [], tmp_path) is same
    lines = [text for text in said if str(text).startswith("share")]
    assert [line.split(":")[0] for line in lines] == ["share 1", "share 0.5"]
    assert ("equal bit for bit" in lines[1]) is same
    assert ("DIFFERENT: column seed" in lines[1]) is not same


def test_without_a_gpu_packing_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["packing.py", "digits_c", "--shares", "1,0.5", "--limit", "100"])
    with pytest.raises(SystemExit) as caught:
        script("packing").main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "packing.py measures trials that share a GPU, and this machine has none\n"


def test_further_options_go_to_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    packing, asked = script("packing"), {}

    def measure(arguments: argparse.Namespace, further: Sequence[str], _folder: pathlib.Path) -> bool:
        asked.update(suite=arguments.suite, shares=arguments.shares, further=further)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(packing, "measure", measure)
    monkeypatch.setattr(
        sys, "argv", ["packing.py", "digits_c", "--shares", "1,0.1", "--set", "seeds=[1]", "--limit", "9"]
    )
    with pytest.raises(SystemExit) as caught:
        packing.main()
    assert caught.value.code == 1  # results were not equal
    assert asked == {"suite": "digits_c", "shares": [1.0, 0.1], "further": ["--set", "seeds=[1]", "--limit", "9"]}


@pytest.mark.faults
def test_a_run_that_fails_ends_the_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script("packing").sweep("no_such_suite", 1.0, [], tmp_path / "run")
    assert caught.value.code == 2
    message = capfd.readouterr().err
    assert "no_such_suite" in message
    assert message.endswith("the run with share 1 ended with exit code 2\n")


def test_what_an_adapter_holds_is_counted_once_and_without_its_network() -> None:
    """A view counts as all of the memory that it keeps alive."""
    held_bytes, adapter = script("method_memory").held_bytes, ready(Source, small_model("batch"))
    assert held_bytes(adapter) == 0
    images: Any = torch.zeros(10, 3)
    adapter.memory = {"a": [images[0], images[1]], "b": (images,)}  # type: ignore[attr-defined]
    adapter.parameters = [*adapter.model.parameters()]  # type: ignore[attr-defined]
    assert held_bytes(adapter) == 10 * 3 * 4
    adapter.teacher = torch.nn.BatchNorm2d(5)  # type: ignore[attr-defined]
    assert held_bytes(adapter) == 10 * 3 * 4 + 4 * 5 * 4 + 8  # weight, bias, mean, variance; a count of batches


def test_a_line_of_memory_follows_each_fifth_of_the_stream() -> None:
    title, *lines = script("method_memory").measure("t3a", images=320, classes=30)
    assert title == "t3a: 320 images of 30 classes in batches of 64"
    assert [line.split()[0] for line in lines] == ["64", "128", "192", "256", "320"]
    assert all("resident" in line for line in lines)
    held = [float(line.partition("held")[2].split()[0]) for line in lines]
    assert 0 < held[0] < held[-1], "supports are added"
    assert [line.split(", ")[0].split()[-2] for line in lines] == ["supports"] * 5


def test_precisions_are_compared_shift_by_shift() -> None:
    errors = {("fog", "float32"): 10.0, ("fog", "tf32"): 10.5, ("fog", "bfloat16"): 9.0,
              ("snow", "float32"): 20.0, ("snow", "tf32"): 20.0, ("snow", "bfloat16"): 22.0,
              ("frost", "float32"): 30.0, ("frost", "tf32"): 90.0}  # fmt: skip
    same = {"label": "tent", "model": "net", "protocol": "reset", "status": "ok"}
    rows = [{**same, "shift": shift, "precision": name, "error_pct": e} for (shift, name), e in errors.items()]
    rows.append({**same, "shift": "frost", "precision": "bfloat16", "error_pct": None, "status": "failed"})
    [row] = script("precision_errors").differences(pd.DataFrame(rows)).to_dict("records")
    assert row == {
        ("tf32", "mean"): 0.25, ("tf32", "largest"): 0.5,
        ("bfloat16", "mean"): 0.5, ("bfloat16", "largest"): 2.0, ("shifts", ""): 2,
    }  # fmt: skip


@pytest.mark.parametrize("precisions", [["tf32", "bfloat16"], ["float32"]])
def test_precisions_without_anything_to_compare_are_refused(precisions: list[str]) -> None:
    same = {"label": "tent", "model": "net", "protocol": "reset", "status": "ok", "shift": "fog", "error_pct": 1.0}
    rows = pd.DataFrame([{**same, "precision": name} for name in precisions])
    with pytest.raises(SystemExit, match=r"precision=\[float32, …\]"):
        script("precision_errors").differences(rows)


def test_what_differs_between_processes_is_said_in_numbers() -> None:
    compared, first = script("repeatability").compared, torch.eye(4)[[2, 0, 0, 1]]
    assert compared(first, first.clone()) == "equal bit for bit"
    second = first.clone()
    second[0, 1] = 1.5
    assert compared(first, second) == "largest difference 1.5, same class 75.00%"
    assert compared("needs a class token", "needs a class token") == "needs a class token"
