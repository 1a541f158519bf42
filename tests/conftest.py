"""What several test files share: the command line in this process, small image folders, small suites, runs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from plugins import Replaced, supervisor

import tta_bench.torchvision_repair  # noqa: F401
from tta_bench import cli, suite
from tta_bench.adapter import Adapter
from tta_bench.data.kinds.digits import load_split
from tta_bench.run.runner import TrialResult
from tta_bench.suite import plan

SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared"

DIGITS_SUITE = """\
name: small
data: {kind: digits, max_images: 100}
models:
  - name: resnet_bn
    architecture: resnet18
    options: {num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}
    stem: cifar
    weights: "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
methods: [source, tent]
batch_size: 40
corruptions: [clean, contrast]
severities: [5]
seeds: [0]
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run beside each other; and a run of the test before, in this process, may have set another number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """One image cache for the whole session, and one memory of files' digests; nothing is written to the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def run_cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, cache: pathlib.Path
) -> Callable[..., Outcome]:
    """Call the command line in this process, from ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTA_BENCH_CACHE", str(cache))

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tta-bench", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture
def shown(run_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The output of ``tta-bench``, so many columns wide."""

    def run(*arguments: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        outcome = run_cli(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out

    return run


def item(output: str, head: str) -> str:
    """The item of a list that begins with ``head``, on one line."""
    match = re.search(rf"^  {re.escape(head)}.*\n(?:      .*\n)*", output, re.MULTILINE)
    assert match is not None, f"no {head!r} in\n{output}"
    return " ".join(match[0].split())


@pytest.fixture
def suite_file(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write a suite: the small digits suite with text replaced, ``suite_file(("methods: [source, tent]", "…"), …)``."""

    def write(*replacements: tuple[str, str], text: str = DIGITS_SUITE, name: str = "small.yaml") -> pathlib.Path:
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A clean image folder of 10 classes × 3 real digits, 32×32 PNG."""
    root = tmp_path_factory.mktemp("digits") / "test"
    split = load_split()
    for digit in range(10):
        folder = root / f"digit_{digit}"
        folder.mkdir(parents=True)
        for number in np.flatnonzero(split.test_labels == digit)[:3]:
            Image.fromarray(split.test_images[number]).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real images and source models that CI has beside the checkout."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs the real images and source models of CI (folder 'shared' beside the checkout)")
    return SHARED


@pytest.fixture
def cifar(shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that ``suites/cifar10_c.yaml`` asks for."""
    monkeypatch.setenv("CIFAR10", str(shared / "data" / "cifar10"))
    monkeypatch.setenv("CIFAR10_MODELS", str(shared / "models"))


PARTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "seed0": {"sets": ["seeds=[0]"]},
    "seed1": {"sets": ["seeds=[1]"]},
    "source": {"only": ["method=source"]},
    "tent": {"only": ["method=tent"]},
    "limited": {"limit": 50},
}


def run_locally(
    file: pathlib.Path, out: pathlib.Path, cache: pathlib.Path, code: int = 0, **options: Any
) -> pathlib.Path:
    """Run a suite without Ray, with one thread, for fixtures, which have no ``run_cli``; returns ``out``."""
    from tta_bench.commands import run as sweep

    asked = sweep.RunOptions(str(file), executor="local", cpus_per_trial=1, out=str(out), cache=str(cache), **options)
    assert sweep.run(asked, resume="") == code
    return out


@pytest.fixture(scope="session")
def part_runs(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> pathlib.Path:
    """Runs of one suite and of parts of it, one folder each, and the suite."""
    root = tmp_path_factory.mktemp("runs")
    (root / "small.yaml").write_text(DIGITS_SUITE.replace("seeds: [0]", "seeds: [0, 1]"))
    for name, options in PARTS.items():
        run_locally(root / "small.yaml", root / name, cache, **options)
    return root


@pytest.fixture(scope="session")
def otherwise(part_runs: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """A run of seed 1 with another learning rate under the same label."""
    sets = ["methods=[source, {name: tent, config: {lr: 0.5}}]", "seeds=[1]"]
    return run_locally(part_runs / "small.yaml", part_runs / "otherwise", cache, sets=sets)


@pytest.fixture
def part_copy(part_runs: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """A run's copy that a test may change, in the working directory."""

    def call(name: str, into: str | None = None) -> pathlib.Path:
        return shutil.copytree(part_runs / name, tmp_path / (into or name))

    return call


def clock(*seconds: float) -> SimpleNamespace:
    """Stands in for the module ``time``: the first timed block takes ``seconds[0]``, the next ``seconds[1]``, and so on."""
    readings = iter(np.cumsum([(1.0, took) for took in seconds]).tolist())  # a second passes between two blocks
    return SimpleNamespace(perf_counter=lambda: next(readings))


LONG_S = 300  # of a test, for what another process does: a machine may be busy with much else


def wait_until(
    what: Callable[[], object], process: subprocess.Popen[bytes] | None = None, seconds: float = LONG_S
) -> None:
    """Return once ``what`` holds; fail where ``process`` ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not what():
        if process is not None and process.poll() is not None:
            said = process.stderr.read().decode() if process.stderr else ""
            pytest.fail(f"the process ended with {process.returncode}: {said}")
        assert time.monotonic() < deadline, "it has not happened for too long"
        time.sleep(0.05)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that points Python at other code."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **more}


@pytest.fixture
def run(suite_file: Callable[..., pathlib.Path], cache: pathlib.Path) -> Callable[..., Any]:
    """Run ``cls`` on the small digits suite; text replaced in the suite as ``suite_file`` does."""

    def call(
        cls: type[Adapter], *replacements: tuple[str, str], trial: int = 1, bench: dict[str, Any] | None = None,
        profiles: bool = False,
    ) -> TrialResult:  # fmt: skip
        made = plan.make(suite.load(str(suite_file(*replacements))))
        materials = dataclasses.replace(made.materials, registry=Replaced(source=cls))
        store = bench if bench is not None else {}
        if "bench" not in store:
            store["bench"] = supervisor(materials, cache)
        store["trial"] = dataclasses.replace(made.trials[trial], profiles=profiles)
        result: TrialResult = store["bench"].run(store["trial"])
        if bench is None:
            store["bench"].end_child()
        return result

    return call
