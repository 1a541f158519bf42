"""No method touches another, the harness or the labels; whatever it does is a row of its own."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from conftest import run_locally

PLUGIN = pathlib.Path(__file__).parent / "poison.py"
HONEST = ("source", "norm", "tent")
CHANGED = {
    "patched-batchnorm": "torch.nn.modules.batchnorm.BatchNorm2d.forward",
    "patched-linear": "torch.nn.modules.linear.Linear.forward",
    "patched-softmax": "torch.Tensor.softmax, torch.nn.functional.softmax",
    "patched-harness": "tta_bench.optimizers.stats, tta_bench.run.metrics.grade",
    "no-gradients": "torch.is_grad_enabled()",
    "default-dtype": "torch.get_default_dtype(), torch.Storage",
    "threads": "torch.get_num_threads(), running threads",
    "working-directory": "os.getcwd()",
    "environment": "os.environ",
    "hook": "torch: hooks on all modules or optimizers",
    "remembers": "Remembers.trials",
    "seeds": None,
}
pytestmark = pytest.mark.faults
FAILS = {
    "exits": "SystemExit: 0",
    "interrupts": "KeyboardInterrupt: ",
    "hard-exit": "the method's process exited with code 0",
    "crash": "the method's process was killed by SIGSEGV",
    "killed": "the method's process was killed (SIGKILL), most likely because the machine ran out of memory",
    "no-text": "Unprintable: (no text: ValueError)",
    "wild-names": "TypeError: stats() has the name 'größe µ': names must consist of letters, digits and underscores",
    "odd-facts": "the method reported invalid values: checkpoint is PosixPath('/a/file'), no str",
    "no-numbers": "TypeError: stats() must return numbers or 0-dim tensors; 'state' is 'fine'",
    "wild-text": None,
}


def suite_text(methods: list[str]) -> str:
    from conftest import DIGITS_SUITE

    text = DIGITS_SUITE.replace("[source, tent]", json.dumps(methods)).replace("seeds: [0]", "seeds: [0, 1]")
    return text.replace("max_images: 100", "max_images: 80").replace("[clean, contrast]", "[contrast]")


Row = Mapping[str, Any]


def rows(run: pathlib.Path) -> dict[tuple[str, int], Row]:
    """Records of the trials that were run, by label and seed."""
    places = {t["key"]: (t["label"], t["seed"]) for t in json.loads((run / "plan.json").read_text())["trials"]}
    return {places[file.stem]: json.loads(file.read_text()) for file in (run / "trials").glob("*.json")}


def results(run: pathlib.Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """What the honest methods predicted."""
    found = {}
    for place, row in rows(run).items():
        if place[0] in HONEST:
            with np.load(run / "trials" / f"{row['key']}.npz") as arrays:
                found[place] = {name: arrays[name] for name in arrays.files if not name.endswith("_ms")}
    return found


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> pathlib.Path:
    """A run of every method there is, the poisonous ones before, between and after the honest ones."""
    root = tmp_path_factory.mktemp("poisoned")
    methods = [*CHANGED, "source", *FAILS, "norm", "tent"]
    (root / "suite.yaml").write_text(suite_text(methods))
    return run_locally(root / "suite.yaml", root / "run", cache, code=3, plugins=[str(PLUGIN)])


@pytest.fixture(scope="module")
def honest(
    tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("honest")
    (root / "suite.yaml").write_text(suite_text(list(HONEST)))
    return results(run_locally(root / "suite.yaml", root / "run", cache))


def assert_equal(some: Mapping[Any, Mapping[str, np.ndarray]], others: Mapping[Any, Mapping[str, np.ndarray]]) -> None:
    assert len(some) == len(HONEST) * 2
    for place, arrays in others.items():
        assert arrays.keys() == some[place].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(some[place][name], array, err_msg=f"{place} {name}")


def test_honest_methods_compute_the_same_beside_poisonous_ones(poisoned: pathlib.Path, honest: Any) -> None:
    assert_equal(results(poisoned), honest)


def test_so_they_do_on_ray(
    run_cli: Callable[..., Any], tmp_path: pathlib.Path, poisoned: pathlib.Path, honest: Any
) -> None:
    (tmp_path / "suite.yaml").write_text((poisoned.parent / "suite.yaml").read_text())
    outcome = run_cli("run", tmp_path / "suite.yaml", "--plugin", PLUGIN, "--out", tmp_path / "run")
    assert outcome.code == 3
    assert_equal(results(tmp_path / "run"), honest)
    reasons = {place: row["reason"] for place, row in rows(poisoned).items() if place[0] != "killed"}
    assert reasons == {place: row["reason"] for place, row in rows(tmp_path / "run").items() if place[0] != "killed"}


@pytest.mark.parametrize("method", CHANGED)
def test_a_row_says_what_its_method_changed(poisoned: pathlib.Path, method: str) -> None:
    for seed in (0, 1):
        row = rows(poisoned)[method, seed]
        changes = row["facts"].get("global_changes")
        assert row["status"] == "ok"
        assert changes == CHANGED[method] or changes.endswith(f".{CHANGED[method]}")


@pytest.mark.parametrize("method", FAILS)
def test_a_method_that_ends_itself_or_says_nonsense_is_a_failed_row(poisoned: pathlib.Path, method: str) -> None:
    for seed in (0, 1):
        row = rows(poisoned)[method, seed]
        assert row["status"] == "failed"
        assert row["reason"].startswith(FAILS[method] or "")


def test_a_trial_does_not_depend_on_what_its_method_did_before(poisoned: pathlib.Path) -> None:
    """``remembers`` turns the sign of its scores with every trial that it has counted: of its own, once."""
    errors = {place: row["shifts"][0]["error_pct"] for place, row in rows(poisoned).items() if row["shifts"]}
    assert errors["source", 0] < 90
    assert errors["source", 1] < 90
    assert errors["remembers", 0] > 95
    assert errors["remembers", 1] > 95, "with two trials counted these are the source model's predictions"


def test_a_wild_text_is_shortened_and_its_escapes_are_shown(poisoned: pathlib.Path) -> None:
    row = rows(poisoned)["wild-text", 0]
    assert row["reason"].startswith("ValueError: \\x1b[31mred\\x00 \\ud800 long long")
    assert row["reason"].endswith("long end")
    assert len(row["reason"]) < 11_000 > len(row["traceback"])
    log = (poisoned / "logs" / f"{row['key']}.log").read_text()
    assert "characters omitted: see the log" in log
    assert len(log) > 500_000


def test_a_process_serves_one_method_model_and_precision(poisoned: pathlib.Path) -> None:
    pids = {place: row["environment"]["pid"] for place, row in rows(poisoned).items()}
    assert pids["source", 0] == pids["source", 1], "an honest method keeps its process"
    assert pids["no-gradients", 0] != pids["no-gradients", 1], "another is given a new one"
    assert len({pids[label, 0] for label in (*HONEST, *CHANGED, "exits")}) == len(HONEST) + len(CHANGED) + 1


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("no-gradients", "batch: changes torch.is_grad_enabled()"),
        ("hard-exit", "broken  hard-exit ends its process, exit code 0"),
    ],
)
def test_check_names_what_a_method_does_to_its_process(run_cli: Callable[..., Any], method: str, said: str) -> None:
    outcome = run_cli("check", method, "--plugin", PLUGIN)
    assert (outcome.code, said in outcome.out) == (3, True), outcome


def test_a_method_that_hangs_has_its_time_without_ray(run_cli: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    (tmp_path / "suite.yaml").write_text(suite_text(["hangs", "source"]))
    arguments = ("--plugin", PLUGIN, "--executor", "local", "--timeout", 5, "--only", "seed=0")
    outcome = run_cli("run", tmp_path / "suite.yaml", *arguments, "--out", tmp_path / "run")
    assert outcome.code == 3
    found = rows(tmp_path / "run")
    assert found["hangs", 0]["reason"] == "no result after 5 s (--timeout)"
    assert found["hangs", 0]["facts"]["failure"] == "timeout"
    assert found["source", 0]["status"] == "ok"
