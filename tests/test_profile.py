"""Profiles: shares of traces made by hand, of real trials, and the command, which leaves results alone."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Outcome
from torch import Tensor
from torch.autograd import grad
from trials import Plain, Runner

from tta_bench.adapter import Adapter
from tta_bench.report.profile import HARNESS, IDLE, KINDS, WAIT, Operation, page, read
from tta_bench.run.profiling import BACKWARD, DATA, FORWARD, METHOD, OPTIMIZER, STEPS

Cli = Callable[..., Outcome]
HOST, ENGINE, STREAM = 100, 101, 7  # threads of the host, and a stream of the GPU


# -- traces made by hand -----------------------------------------------------------------------------------------------


def event(category: str, name: str, start: float, end: float, thread: int = HOST, **arguments: Any) -> dict[str, Any]:
    """From ``start`` to ``end``, milliseconds."""
    return {"ph": "X", "cat": category, "name": name, "ts": 1e3 * start, "dur": 1e3 * (end - start), "pid": 1,
            "tid": thread, "args": arguments}  # fmt: skip


def step(number: int, start: float) -> list[dict[str, Any]]:
    """A step of 100 ms: 10 wait for data, 80 are the method's call, and in that a forward, a backward and an update."""
    spans = [
        (f"ProfilerStep#{number}", 0, 100), (DATA, 2, 12), (METHOD, 15, 95), (FORWARD, 20, 40), (BACKWARD, 45, 75),
        ("Optimizer.step#SGD.step", 80, 88), ("Optimizer.zero_grad#SGD.zero_grad", 88, 90),
    ]  # fmt: skip
    return [event("user_annotation", name, start + first, start + last) for name, first, last in spans]


def packed(*events: dict[str, Any]) -> bytes:
    others = [{"ph": "M", "name": "process_name", "pid": 1}, {"ph": "i", "name": "[memory]", "ts": 0.0, "tid": 0}]
    return gzip.compress(json.dumps({"traceEvents": [*others, *events]}).encode())


def test_each_instant_of_a_step_counts_for_the_innermost_mark() -> None:
    profile = read(packed(*step(4, 100), *step(3, 0)))
    assert profile.steps == 2
    assert profile.gpu is None
    own = {DATA: 10, METHOD: 20, FORWARD: 20, BACKWARD: 30, OPTIMIZER: 10, HARNESS: 10}
    assert profile.host == pytest.approx(own)
    assert sum(profile.host.values()) == pytest.approx(100)


def test_passes_inside_an_optimizer_are_passes() -> None:
    """As in SAM's step, which takes a closure."""
    spans = [("ProfilerStep#3", -1, 50), (METHOD, 0, 50), ("Optimizer.step#SAM.step", 10, 40), (FORWARD, 15, 20),
             (BACKWARD, 20, 35)]  # fmt: skip
    profile = read(packed(*(event("user_annotation", *span) for span in spans)))
    assert profile.host == pytest.approx({METHOD: 20, OPTIMIZER: 10, FORWARD: 5, BACKWARD: 15, HARNESS: 1})


def test_what_follows_the_last_batch_is_no_step() -> None:
    end = [event("user_annotation", "ProfilerStep#4", 100, 900), event("user_annotation", DATA, 100, 900)]
    assert read(packed(*step(3, 0), *end)) == read(packed(*step(3, 0)))
    with pytest.raises(ValueError, match="no complete step"):
        read(packed(*end))


def test_operations_without_what_they_call() -> None:
    operations = [("aten::linear", 20, 40), ("aten::addmm", 25, 35), ("aten::copy_", 25, 27), ("aten::addmm", 50, 60)]
    before = event("cpu_op", "aten::copy_", -50, -1)
    profile = read(packed(before, *step(3, 0), *(event("cpu_op", *operation) for operation in operations)))
    assert profile.longest == [Operation("aten::addmm", 18, 2), Operation("aten::linear", 10, 1), Operation("aten::copy_", 2, 1)]  # fmt: skip


def gpu_step() -> list[dict[str, Any]]:
    """One step: the GPU copies the batch, then runs a forward kernel, two backward ones at once, and an update."""
    launches = [(1, HOST, 13), (2, HOST, 21), (3, ENGINE, 46), (4, ENGINE, 50), (5, HOST, 81)]
    work = [("gpu_memcpy", "Memcpy HtoD", 14, 18, 1), ("kernel", "gemm", 30, 50, 2), ("kernel", "gemm", 50, 70, 3),
            ("kernel", "reduce", 60, 75, 4), ("kernel", "sgd", 98, 120, 5)]  # fmt: skip
    return [
        *step(3, 0),
        *(event("cuda_runtime", "cudaLaunchKernel", at, at + 0.1, thread, correlation=c) for c, thread, at in launches),
        *(event(kind, name, start, end, STREAM, correlation=c) for kind, name, start, end, c in work),
        *(event("gpu_user_annotation", name, 30, 120, STREAM) for name in (METHOD, FORWARD)),
        event("cuda_runtime", "cudaStreamSynchronize", 76, 79),  # .item() in the method's own code
        event("cuda_runtime", "cudaEventSynchronize", 96, 99),  # the harness
    ]


def test_a_gpu_s_time_counts_for_what_launched_it() -> None:
    """Also from the threads of autograd, and while the host is elsewhere; kernels that overlap count once."""
    profile = read(packed(*gpu_step()))
    assert profile.gpu == pytest.approx({HARNESS: 4, FORWARD: 20, BACKWARD: 25, OPTIMIZER: 2, IDLE: 49})
    assert profile.host == pytest.approx(
        {DATA: 10, METHOD: 17, FORWARD: 20, BACKWARD: 30, OPTIMIZER: 10, HARNESS: 7, WAIT: 6}
    )
    assert profile.waits == 1
    assert profile.longest[0] == Operation("gemm", 40, 2)


def test_the_page_of_a_gpu() -> None:
    text = page(read(packed(*gpu_step())), "tent · vit", ["On a card."])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| a step | host: ms | share | GPU: ms | share |" in rows
    assert "| backward passes | 30.00 | 30.0 % | 25.00 | 25.0 % |" in rows
    assert "| waiting for the GPU | 6.00 | 6.0 % | – | – |" in rows
    assert "| idle | – | – | 49.00 | 49.0 % |" in rows
    assert "| together | 100.00 | 100 % | 100.00 | 100 % |" in rows
    assert "waited for the GPU 1.0 times a step" in text


# -- trials ------------------------------------------------------------------------------------------------------------

SMALL = ("batch_size: 40", "batch_size: 5")  # 20 batches


class Sleeping(Plain):
    def step(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().step(x)


class Adapting(Adapter):
    """A gradient by ``torch.autograd.grad``, imported as a name, and an optimizer."""

    def setup(self) -> None:
        self.head = self.model.classifier().requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=0.0)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        parameters = [*self.head.parameters()]
        for parameter, gradient in zip(parameters, grad(logits.logsumexp(1).mean(), parameters), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return logits.detach()


def test_a_method_that_does_not_adapt(run: Runner) -> None:
    result = run(Sleeping, SMALL, trial=0, profiles=True)
    assert result.status == "profiled"
    assert (result.shifts, result.segments) == ([], [])
    profile = read(result.trace)
    assert profile.steps == STEPS
    assert set(profile.host) == {FORWARD, METHOD, DATA, HARNESS}
    assert profile.host[METHOD] >= 50
    assert all(share > 0 for share in profile.host.values())


def test_a_method_that_adapts_has_every_share(run: Runner) -> None:
    profile = read(run(Adapting, SMALL, trial=0, profiles=True).trace)
    assert set(profile.host) == {*KINDS} - {WAIT, IDLE}
    names = [operation.name for operation in profile.longest]
    assert "aten::mkldnn_convolution" in names


def test_a_stream_may_end_before_the_last_step(run: Runner) -> None:
    profile = read(run(Plain, ("batch_size: 40", "batch_size: 20"), trial=0, profiles=True).trace)
    assert profile.steps == 2, "of 5 batches 3 warm up"


def test_a_trial_after_a_profile_has_a_process_without_marks(run: Runner) -> None:
    store: dict[str, Any] = {}
    first = run(Plain, SMALL, trial=0, bench=store, profiles=True)
    with pytest.raises(ProcessLookupError):
        os.kill(first.environment["pid"], 0)
    second = run(Plain, SMALL, trial=0, bench=store)
    store["bench"].end_child()
    assert (second.status, second.trace) == ("ok", b"")


# -- the command -------------------------------------------------------------------------------------------------------


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of a run that hold its results."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if "profiles" not in path.parts}


def test_profiles_beside_results(run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    folder, small = tmp_path / "out", suite_file(SMALL, ("tent]", "{name: tent, label: 'tent[a, b]'}]"))
    options = ["--executor", "local", "--cpus-per-trial", 1, "--out", folder]
    assert run_cli("run", small, *options, "--only", "method=source").code == 0
    before = files(folder)  # those of one row; the other has not run
    outcome = run_cli("run", small, "--profile", *options)
    assert outcome.code == 0, outcome.err
    assert files(folder) == before
    [source, tent] = sorted((folder / "profiles").glob("*.json.gz"))
    assert source.name.startswith("source-resnet_bn-")
    assert tent.name.startswith("tent-a-b-resnet_bn-")
    assert {BACKWARD, OPTIMIZER} <= set(read(tent.read_bytes()).host)
    assert not {BACKWARD, OPTIMIZER} & set(read(source.read_bytes()).host)
    text = tent.with_name(tent.name.replace(".json.gz", ".md")).read_text()
    assert "10 steps with batches of 5, after 3 for warm-up; float32" in text
    assert f"`{tent.name}`" in text
    for words in ("Profile: tent[a, b] · resnet_bn · clean", "backward passes", "waiting for data", "together"):
        assert words in outcome.out
    assert outcome.out.splitlines()[-1] == str(folder)


@pytest.mark.faults
def test_profiles_on_ray(run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    outcome = run_cli("run", suite_file(SMALL), "--profile", "--only", "method=tent", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    [trace] = (tmp_path / "out" / "profiles").glob("*.json.gz")
    assert read(trace.read_bytes()).steps == STEPS


def test_a_trial_that_fails_says_why(
    run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "broken.py").write_text(
        "from tta_bench.adapter import Adapter\n\nclass Broken(Adapter):\n    name = 'broken'\n"
        "    def step(self, x):\n        raise ValueError('it broke')\n"
    )
    small = suite_file(SMALL, ("[source, tent]", "[broken]"))
    outcome = run_cli("run", small, "--profile", "--executor", "local", "--cpus-per-trial", 1, "--plugin", "broken.py",
                      "--out", tmp_path / "out")  # fmt: skip
    assert outcome.code == 3
    assert "failed broken · resnet_bn" in outcome.err
    assert 'broken.py", line 6, in step' in outcome.err
    assert not list((tmp_path / "out").glob("*/*"))


@pytest.mark.parametrize(
    ("replaced", "options", "message"),
    [
        (("tent]", "tent]"), [], "has 3 batches; the first 3 warm up and are not profiled"),
        (("[source, tent]", str([{"name": "tent", "label": f"t{i}"} for i in range(9)])), [], "9 methods × source models are selected; at most 8"),
        (SMALL, ["--retry-failed"], "--profile runs no trial anew"),
    ],
)  # fmt: skip
def test_what_is_refused(
    run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, replaced: tuple[str, str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    outcome = run_cli(
        "run", suite_file(replaced), "--profile", "--executor", "local", "--out", tmp_path / "out", *options
    )
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_first_trial_of_each_row(
    run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    outcome = run_cli("run", suite_file(SMALL), "--profile", "--dry-run", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert outcome.err.endswith(
        "profiles of\n  source · resnet_bn · clean · seed 0\n  tent · resnet_bn · clean · seed 0\n"
    )
    assert not (tmp_path / "out").exists()
