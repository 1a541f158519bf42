"""Two Ray nodes: what a node must have, and a sweep during which a worker, a node and the driver are lost."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from conftest import LONG_S, Outcome, clean_environment, wait_until
from test_faults import PLUGIN

from tta_bench import registry, suite
from tta_bench.data.cache import ImageCache
from tta_bench.schedule import preflight
from tta_bench.schedule.cluster import Slot
from tta_bench.schedule.preflight import requirements
from tta_bench.store import results
from tta_bench.suite import plan

pytestmark = pytest.mark.faults
Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]
ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_worker_a_node_and_the_driver_are_lost_and_nothing_else(
    suite_file: SuiteFile, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    (tmp_path / "faulty.py").write_text(PLUGIN)
    file = suite_file(("[source, tent]", f"[tent, {{name: marks, config: {{folder: {tmp_path}}}}}]"),
                      ("[clean, contrast]", "[contrast, fog, brightness]"), ("seeds: [0]", "seeds: [0, 1, 2, 3]"))  # fmt: skip
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "cluster_faults.py"),
        str(file),
        "--plugin",
        str(tmp_path / "faulty.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False,
                          env=clean_environment(TTA_BENCH_CACHE=str(cache)))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for said in ("worker killed after", "node removed after", "driver killed after", "equal bit for bit"):
        assert said in done.stdout


PATIENCE_S = 30  # in place of five minutes: enough to start a node in
IMPATIENT = (
    f"from tta_bench import cli; from tta_bench.schedule import pool; pool.PATIENCE_S = {PATIENCE_S}; cli.main()"
)


class Nodes:
    """A Ray cluster on this machine: a head that holds no worker, and at most one node that holds one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address

    def add(self) -> None:
        """Start the node."""
        self._node = self._cluster.add_node(num_cpus=1)

    def remove(self) -> None:
        """Kill the node's processes."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.shutdown()


class Driver:
    """A run on a cluster with less patience, in a process of its own."""

    def __init__(self, nodes: Nodes, options: Sequence[str], folder: pathlib.Path, cache: pathlib.Path):
        command = [sys.executable, "-c", IMPATIENT, "run", *options, "--address", nodes.address]
        self._said = folder / "said"
        with open(self._said, "wb") as stream:
            self._process = subprocess.Popen(command, cwd=folder, env=clean_environment(TTA_BENCH_CACHE=str(cache)),
                                             stdout=subprocess.DEVNULL, stderr=stream)  # fmt: skip

    def said(self) -> str:
        return self._said.read_text()

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Return once ``what`` holds, while the run goes on."""
        wait_until(what, self._process)

    def end(self) -> int:
        """Its exit code."""
        return self._process.wait(timeout=LONG_S)

    def close(self) -> None:
        self._process.kill()  # nothing where it has ended
        self._process.wait()
        print(self.said())  # shown where the test fails


def test_the_only_usable_node_is_lost_and_another_comes_or_none(
    nodes: Nodes, suite_file: SuiteFile, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    (tmp_path / "faulty.py").write_text(PLUGIN)
    file = suite_file(("[source, tent]", f"[{{name: marks, config: {{folder: {tmp_path}}}}}]"),
                      ("[clean, contrast]", "[contrast]"), ("seeds: [0]", f"seeds: {list(range(12))}"))  # fmt: skip
    out, plugin = tmp_path / "out", str(tmp_path / "faulty.py")
    options = [str(file), "--plugin", plugin, "--cpus-per-trial", "1", "--out", str(out)]

    def finished() -> int:
        return len(list((out / "trials").glob("*.json")))

    nodes.add()
    waits = f"no usable node is left; waiting {PATIENCE_S} s for one"
    with contextlib.closing(Driver(nodes, options, tmp_path, cache)) as driver:
        driver.wait_for(lambda: finished() >= 1)
        nodes.remove()
        driver.wait_for(lambda: waits in driver.said())
        before = finished()
        nodes.add()
        driver.wait_for(lambda: finished() > before)
        nodes.remove()
        assert driver.end() == 3, driver.said()
    assert driver.said().count(waits) == 2
    assert "stopped; finished trials are kept. To resume:\n  tta-bench run" in driver.said()
    after = finished()
    assert before < after < 12
    assert results.load(out).counts == {"ok": after, "missing": 12 - after}


@pytest.fixture
def needed(suite_file: SuiteFile, tmp_path: pathlib.Path, digit_folder: pathlib.Path) -> preflight.Requirements:
    data = f'data: {{kind: folder, root: "{digit_folder}", preprocess: none, strengths: cifar}}'
    checkpoint = tmp_path / "phi.safetensors"
    shipped = ROOT / "methods" / "weights" / "digits_c" / "mgg-resnet_bn.safetensors"
    checkpoint.write_bytes(shipped.read_bytes())
    file = suite_file(("data: {kind: digits, max_images: 100}", data), ("batch_size: 40", "batch_size: 30"),
                      ("[source, tent]", f"[{{name: mgg, config: {{objective: entropy, checkpoint: {checkpoint}}}}}]"))  # fmt: skip
    made = plan.make(suite.load(str(file)))
    return requirements(made.materials, made.trials)


def test_a_node_like_the_driver_has_no_problems_and_builds_its_cache(
    needed: preflight.Requirements, tmp_path: pathlib.Path
) -> None:
    received = pickle.loads(pickle.dumps(needed))
    assert preflight.prepare(received, ImageCache(tmp_path / "node")) == []
    assert len(list((tmp_path / "node").glob("*/images.npy"))) == 2


def test_problems_of_a_node_are_named(needed: preflight.Requirements, tmp_path: pathlib.Path) -> None:
    def problems(**changed: object) -> str:
        return "; ".join(preflight.find_problems(dataclasses.replace(needed, **changed)))  # type: ignore[arg-type]

    assert problems() == ""
    assert "imports another tta_bench" in problems(code={**needed.code, "version": "0.0.0"})
    assert "weights of resnet_bn differ" in problems(weights={"resnet_bn": "0" * 64})
    assert "data of CIFAR-10-C (generated) differ from the driver's: clean, contrast-5" in problems(
        data=dict.fromkeys(needed.data, "0")
    )
    (tmp_path / "phi.safetensors").write_bytes(b"other")
    assert "phi.safetensors differs" in problems()
    (tmp_path / "phi.safetensors").unlink()
    assert "phi.safetensors: No such file" in problems()

    def gone() -> object:
        raise OSError("no such folder: /nowhere")

    assert "data: no such folder: /nowhere" in problems(
        materials=dataclasses.replace(needed.materials, reopen={"resnet_bn": gone})
    )


def test_relative_paths_mean_the_same_in_workers(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, digit_folder: pathlib.Path
) -> None:
    """Ray starts workers elsewhere; images, source images and a checkpoint are named from the driver's folder."""
    (tmp_path / "images").symlink_to(digit_folder)
    shutil.copy(ROOT / "methods" / "weights" / "digits_c" / "mgg-resnet_bn.safetensors", tmp_path / "phi.safetensors")
    data = "data: {kind: folder, root: images, source: images, preprocess: none, strengths: cifar}"
    file = suite_file(("data: {kind: digits, max_images: 100}", data), ("batch_size: 40", "batch_size: 30"),
                      ("[source, tent]", "[{name: mgg, config: {checkpoint: phi.safetensors}}]"), ("[clean, contrast]", "[contrast]"))  # fmt: skip
    outcome = run_cli("run", file, "--workers", 1, "--cache", "off", "--out", "elsewhere/run")
    assert outcome.code == 0, outcome.err


def test_a_plugin_file_travels(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from tta_bench.adapter import Adapter\n\nclass Mine(Adapter):\n    name = 'mine'\n"
                    "    def step(self, x):\n        return self.predict(x)\n")  # fmt: skip
    sent = pickle.dumps(registry.plugin_entries(file)[0])
    file.unlink()
    code = f"import pickle; entry = pickle.loads({sent!r}); print(entry.load().__name__, entry.file.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert done.stdout == "Mine mine.py\n", done.stderr


@pytest.mark.parametrize(
    ("slot", "resources", "workers"),
    [(Slot(1, 0), {"CPU": 8}, 8), (Slot(3, 0), {"CPU": 8}, 2), (Slot(1, 1), {"CPU": 64, "GPU": 8}, 8),
     (Slot(1, 0.25), {"CPU": 64, "GPU": 2}, 8), (Slot(1, 0.3), {"CPU": 64, "GPU": 2}, 6),
     (Slot(1, 2), {"CPU": 64, "GPU": 5}, 2), (Slot(16, 1), {"CPU": 64, "GPU": 8}, 4), (Slot(1, 1), {"CPU": 4}, 0),
     (Slot(1, 0.5), {"CPU": 64, "GPU": 1.5}, 3), (Slot(1, 0.5), {"CPU": 64, "GPU": 0.4}, 0)],
)  # fmt: skip
def test_how_many_workers_a_node_holds(slot: Slot, resources: dict[str, float], workers: int) -> None:
    assert slot.fits(resources) == workers
