"""What makes a finished trial run again, and what does not; results that were edited are not believed."""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, clean_environment
from merging import replanned
from PIL import Image
from runs import reseal

import tta_bench
from tta_bench import suite
from tta_bench.data.base import digest
from tta_bench.data.digests import Digests
from tta_bench.data.images import ArrayImages, listing
from tta_bench.run import metrics
from tta_bench.store import records, results
from tta_bench.suite import plan

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

FOLDER = "{{kind: folder, root: {root}, preprocess: none, strengths: cifar}}"


def planned(file: pathlib.Path, *sets: str) -> dict[tuple[str, str], str]:
    """The key of each (row, shift) of a suite."""
    listing.cache_clear()
    made = plan.make(suite.load(str(file), sets=sets))
    return {(t.label, t.stream.shifts[0].id): t.key for t in made.trials}


def changed(before: dict[Any, str], after: dict[Any, str]) -> set[Any]:
    """What has another key, of what both plan."""
    return {place for place in before.keys() & after.keys() if before[place] != after[place]}


# -- what a key is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["reset", "continual", "{kind: reset, adapt_images: [40, all]}"])
def test_a_key_is_the_digest_of_what_was_asked(suite_file: SuiteFile, protocol: str) -> None:
    protocol = protocol if "{" in protocol else f"{{kind: {protocol}}}"
    file = suite_file(("[source, tent]", "[source, eata, {name: tent, grid: {lr: [0.1, 1.0e-5], steps: [1, 2]}}]"),
                      ("seeds: [0]", f"seeds: [0, 3]\nprotocol: {protocol}"))  # fmt: skip
    made = plan.make(suite.load(str(file)))
    trials, streams = made.trials, made.materials.streams()
    assert [t.key for t in trials] == [digest(t.asked) for t in trials]
    assert len({t.key for t in trials}) == len(trials)
    assert {t.asked["seed"] for t in trials} == {0, 3}
    assert all(t.asked["stream"] == streams.build(t.model, t.stream).sha256 and t.seed == t.stream.seed for t in trials)


# -- images and labels -------------------------------------------------------------------------------------------------


def test_images_of_equal_size_and_mended_labels_are_other_data(
    suite_file: SuiteFile, digit_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    root = shutil.copytree(digit_folder, tmp_path / "images")
    file = suite_file(("{kind: digits, max_images: 100}", FOLDER.format(root=root)))
    before = planned(file)
    assert planned(file) == before
    first = sorted(root.glob("digit_0/*"))[0]
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert changed(before, planned(file)) == set(before)
    first.write_bytes(content)
    assert planned(file) == before
    first.rename(root / "digit_1" / first.name)  # a mended label
    assert changed(before, planned(file)) == set(before)


def test_only_trials_whose_images_changed_have_another_key(
    suite_file: SuiteFile, digit_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """An ImageNet-C tree: an image of one shift; an array of CIFAR-10-C: one severity, or one label."""
    tree = tmp_path / "tree"
    for corruption in ("contrast", "fog"):
        for image in digit_folder.glob("*/*"):
            place = tree / corruption / "5" / image.parent.name / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(image).resize((224, 224)).save(place)
    file = suite_file(
        ("{kind: digits, max_images: 100}", f"{{kind: imagenet_c, root: {tree}}}"),
        ("[clean, contrast]", "[contrast, fog]"),
    )
    before = planned(file)
    victim = sorted((tree / "fog").rglob("*.png"))[0]
    Image.open(victim).rotate(90).save(victim)
    assert changed(before, planned(file)) == {("source", "fog-5"), ("tent", "fog-5")}


def test_only_the_severity_of_an_array_that_changed_has_another_key(
    suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    for name in ("contrast", "fog"):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, (50_000, 32, 32, 3))
        array.flush()
    labels = np.zeros(50_000, dtype=np.uint8)
    np.save(tmp_path / "labels.npy", labels)
    file = suite_file(
        ("{kind: digits, max_images: 100}", f"{{kind: cifar_c, root: {tmp_path}, max_images: 10000}}"),
        ("[clean, contrast]", "[contrast, fog]"),
        ("severities: [5]", "severities: [4, 5]"),
    )
    before = planned(file)
    array[40_000, 0, 0, 0] = 1  # the first image of severity 5, of fog
    array.flush()
    after = planned(file)
    assert changed(before, after) == {("source", "fog-5"), ("tent", "fog-5")}
    labels[9_999::10_000] = 1  # in each severity
    np.save(tmp_path / "labels.npy", labels)
    assert changed(after, planned(file)) == set(after)


def test_a_fingerprint_holds_the_labels_of_the_images_that_are_used() -> None:
    images, ids = np.zeros((4, 8, 8, 3), dtype=np.uint8), list("abcd")

    def fingerprint(*labels: int) -> Any:
        return ArrayImages(images, np.array(labels), ids, 10).fingerprint(np.array([0, 2]), Digests())

    before = fingerprint(1, 2, 3, 4)
    assert fingerprint(1, 9, 3, 9) == before
    assert fingerprint(1, 2, 9, 4) != before


def test_an_image_that_is_not_used_changes_nothing(
    suite_file: SuiteFile, digit_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    root = shutil.copytree(digit_folder, tmp_path / "images")
    file = suite_file(("{kind: digits, max_images: 100}", FOLDER.format(root=root).replace("}", ", max_images: 5}")))
    made = plan.make(suite.load(str(file)))
    used = {
        str(made.materials.datasets["resnet_bn"].ids[i])
        for i in made.materials.streams().build("resnet_bn", made.trials[0].stream).image
    }
    before = planned(file)
    unused = next(path for path in sorted(root.glob("*/*")) if f"{path.parent.name}/{path.name}" not in used)
    unused.write_bytes(b"")
    assert planned(file) == before


def test_reading_files_is_told_once(
    run_cli: Cli, suite_file: SuiteFile, digit_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("tta_bench.data.digests.SETTLED_S", -1.0)
    root = shutil.copytree(digit_folder, tmp_path / "images")
    file = suite_file(("{kind: digits, max_images: 100}", FOLDER.format(root=root)))
    assert "read 30 image files (0 MiB) in " in run_cli("run", file, "--dry-run", "--executor", "local").err
    assert "image files (" not in run_cli("run", file, "--dry-run", "--executor", "local").err


# -- code and hyperparameters ------------------------------------------------------------------------------------------

_EDITS = """
import json, pathlib, sys
from tta_bench import suite
from tta_bench.data.base import digest
from tta_bench.suite import plan
import tta_bench
root = pathlib.Path(tta_bench.__file__).parent
assert root.parent == pathlib.Path(sys.argv[1]), root

def keys():
    made = plan.make(suite.load(sys.argv[2]))
    return {t.label: t.key for t in made.trials}

def stale(path, edit):
    file = root / path
    text = file.read_text() if file.exists() else ""
    file.write_text(edit(text))
    after = keys()
    file.write_text(text)
    return sorted(label for label in before if before[label] != after[label])

def default(old, new):
    def edit(text):
        assert old in text, old
        return text.replace(old, new)
    return edit

before = keys()
print(json.dumps([
    stale("methods/another.py", lambda text: "raise ImportError"),
    stale("report/render/grids.py", lambda text: text + "# edited"),
    stale("streams.py", lambda text: text + "# edited"),
    stale("methods/sar.py", lambda text: text + "# edited"),
    stale("methods/eta.py", lambda text: text + "# edited"),
    stale("methods/functional.py", lambda text: text + "# edited"),
    stale("methods/tent.py", default("steps: int = Field(1", "steps: int = Field(2")),
    stale("methods/optimizers.py", default("momentum: float = Field(0.9", "momentum: float = Field(0.8")),
]))
"""


@pytest.mark.faults
def test_an_edit_makes_exactly_the_rows_stale_that_it_concerns(suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    """In a copy of the package, laid out as a wheel installs it."""
    checkout, copy = pathlib.Path(tta_bench.__file__).parent, tmp_path / "site"
    shutil.copytree(checkout, copy / "tta_bench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("methods", "suites"):
        origin = importlib.resources.files(f"tta_bench.{name}")
        shutil.copytree(str(origin), copy / "tta_bench" / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = suite_file(("[source, tent]", "[source, norm, tent, eata, sar]"), ("[clean, contrast]", "[contrast]"))
    command = [sys.executable, "-c", _EDITS, str(copy), str(file)]
    environment = clean_environment(PYTHONPATH=str(copy))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [],  # another method's file
        [],  # the report
        [],  # the harness, which numerics_version stands for
        ["sar"],
        ["eata"],  # which is built on ETA
        ["eata", "norm", "sar", "tent"],  # what they share
        ["tent"],  # a changed default
        ["eata", "sar", "tent"],  # a changed default of their optimizer
    ]


def test_a_default_that_is_written_out_is_not_in_what_was_asked(suite_file: SuiteFile) -> None:
    methods = "[{name: tent, config: {lr: 2.5e-4, optimizer_options: {momentum: 0.9}}}, {name: tent, label: other, config: {lr: 0.5, optimizer: adam, optimizer_options: {betas: [0.9, 0.9]}}}]"
    made = plan.make(suite.load(str(suite_file(("[source, tent]", methods), ("[clean, contrast]", "[clean]")))))
    plain, other = (t.asked["method"] for t in made.trials)
    assert plain["config"] == {}
    assert other["config"] == {"lr": 0.5, "optimizer": "adam", "optimizer_options": {"betas": [0.9, 0.9]}}
    assert (plain["optimizer"]["name"], other["optimizer"]["name"]) == ("sgd", "adam")
    assert made.trials[0].config["optimizer_options"]["momentum"] == 0.9, "the row says what ran"


def test_a_key_is_the_digest_of_what_was_asked_and_holds_the_numerics_version(
    suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tta_bench.data.base import digest

    trial = plan.make(suite.load(str(suite_file()))).trials[0]
    assert trial.key == digest(trial.asked)
    assert set(trial.asked) == {"numerics_version", "method", "model", "data", "stream", "batch_size", "seed", "precision"}  # fmt: skip
    monkeypatch.setattr(plan, "NUMERICS_VERSION", 99)
    assert plan.make(suite.load(str(suite_file()))).trials[0].key == digest({**trial.asked, "numerics_version": 99})


# -- results that were edited, or written by another version -----------------------------------------------------------


@pytest.fixture
def edited(part_copy: Callable[..., pathlib.Path]) -> tuple[pathlib.Path, pathlib.Path]:
    """(a finished run, the JSON of its last trial, whose error was edited)."""
    run = part_copy("seed0")
    file = run / "trials" / f"{json.loads((run / 'plan.json').read_text())['trials'][-1]['key']}.json"
    record = json.loads(file.read_text())
    record["shifts"][0]["error_pct"] = 1.0
    file.write_text(json.dumps(record))
    return run, file


def test_an_edited_number_is_named_never_printed_and_run_again(
    run_cli: Cli, suite_file: SuiteFile, edited: tuple[pathlib.Path, pathlib.Path]
) -> None:
    run, file = edited
    damage = f"{file} or the .npz beside it does not match its checksum"
    told = run_cli("report", run, "--format", "md")
    assert f"damaged, and left out: {damage}" in told.err
    assert "seed0 has 1 damaged trials, counted as missing" in told.out
    tent = next(line for line in told.out.splitlines() if line.strip().startswith("tent"))
    assert "1.0" not in tent
    assert results.load(run).segments["status"].tolist() == ["ok", "ok", "ok", "missing"]
    merged = run_cli("merge", run, run.parent.parent / "none", "--out", "merged")
    assert merged.code == 2
    again = run_cli("run", suite_file(), "--executor", "local", "--cpus-per-trial", 1, "--out", run)
    assert f"damaged, counted as not run: {damage}" in again.err
    assert "3 finished, 1 to run" in again.err
    assert results.load(run).segments["status"].tolist() == ["ok"] * 4


@pytest.mark.parametrize("name", ["images/correct", "images/confidence"])
def test_an_edited_prediction_is_damage_too(part_copy: Callable[..., pathlib.Path], name: str) -> None:
    run = part_copy("seed0")
    file = next(iter(sorted((run / "trials").glob("*.npz"))))
    with np.load(file) as arrays:
        content = {key: arrays[key].copy() for key in arrays}
    content[name][0] = not content[name][0]
    np.savez(file, **content)
    assert len(results.load(run).damaged) == 1


def resealed(file: pathlib.Path, table: str, **changes: Any) -> None:
    """Edit the first row of a table in a trial's record, and make its checksum anew."""
    record = json.loads(file.read_text())
    record[table][0] |= changes
    file.write_text(json.dumps(record))
    reseal(file)


@pytest.mark.parametrize(
    ("table", "changes", "says"),
    [("shifts", {"error_pct": 77.5}, "error_pct is 77.5, its predictions give "),
     ("shifts", {"correct": 23}, "correct is 23, its predictions"),
     ("shifts", {"images": 7}, "images is 7, its predictions give 100"),
     ("shifts", {"confidence_mean": 0.5}, "confidence_mean is 0.5"),
     ("shifts", {"ece_pct": 7.5}, "ece_pct is 7.5, its predictions give "),
     ("shifts", {"nll": 0.5}, "nll is 0.5, its predictions give "),
     ("shifts", {"calibration_gaps": [0.0] * 15}, "calibration_gaps is [0.0, "),
     ("segments", {"images": 7}, "images is 7, its predictions give 100"),
     ("segments", {"batches": 4}, "batches is 4, its predictions give 3"),
     ("segments", {"most_predicted_pct": 50.5}, "most_predicted_pct is 50.5, its predictions give ")],
)  # fmt: skip
def test_verify_recomputes_every_number_from_the_predictions(
    run_cli: Cli, part_copy: Callable[..., pathlib.Path], table: str, changes: dict[str, Any], says: str
) -> None:
    run = part_copy("seed0")
    good = run_cli("report", run, "--format", "md", "--verify")
    assert good.code == 0, good.err
    assert "verify: 4 trials recomputed, all numbers follow from their predictions" in good.err
    file = sorted((run / "trials").glob("*.json"))[0]
    resealed(file, table, **changes)
    wrong = run_cli("report", run, "--format", "md", "--verify")
    assert wrong.code == 3
    assert f"{file}: " in wrong.err
    assert says in wrong.err


def test_verify_counts_the_images_of_each_visit_apart(run_cli: Cli, part_copy: Callable[..., pathlib.Path]) -> None:
    """A record whose one segment of 100 images is told as two visits of the same shift."""
    run = part_copy("seed0")
    file = sorted((run / "trials").glob("*.json"))[0]
    arrays = dict(np.load(file.with_suffix(".npz")))
    arrays["images/visit"] = np.repeat(np.array([0, 1], dtype=np.int16), [80, 20])
    np.savez(file.with_suffix(".npz"), **arrays)
    record = json.loads(file.read_text())
    [row] = record["shifts"]
    record["shifts"] = [
        {
            **row,
            **metrics.summary(*(arrays[f"images/{name}"][part] for name in ("correct", "confidence", "nll"))),
            "visit": visit,
        }
        for visit, part in enumerate((slice(80), slice(80, 100)))
    ]
    file.write_text(json.dumps(record))
    reseal(file)
    replanned(run, lambda plan: [trial.update(cells=[[0, 0, 0], [0, 0, 1]]) for trial in plan["trials"]])
    outcome = run_cli("report", run, "--format", "csv", "--verify")
    assert "all numbers follow from their predictions" in outcome.err


def test_verify_compares_keys_with_what_was_asked(run_cli: Cli, part_copy: Callable[..., pathlib.Path]) -> None:
    run = part_copy("seed0")
    file = sorted((run / "trials").glob("*.json"))[0]
    record = json.loads(file.read_text())
    record["asked"]["seed"] = 5
    file.write_text(json.dumps(record))
    reseal(file)
    wrong = run_cli("report", run, "--format", "md", "--verify")
    assert (wrong.code, "its key is not the digest of what was asked" in wrong.err) == (3, True)


@pytest.mark.parametrize("version", [records.SCHEMA_VERSION - 1, records.SCHEMA_VERSION + 1])
@pytest.mark.parametrize("name", ["plan.json", "run.json", "a trial"])
def test_a_run_of_another_version_is_refused_and_left_as_it_is(
    run_cli: Cli, suite_file: SuiteFile, part_copy: Callable[..., pathlib.Path], version: int, name: str
) -> None:
    run = part_copy("seed0")
    file = sorted((run / "trials").glob("*.json"))[0] if name == "a trial" else run / name
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": version}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = run_cli("run", suite_file(), "--executor", "local", "--out", run)
    assert outcome.code == 2
    made_by = "an earlier" if version < records.SCHEMA_VERSION else "a newer"
    advice = "run the suite again with --out DIR" if version < records.SCHEMA_VERSION else "update tta-bench"
    assert f"{file}: written by {made_by} tta-bench (schema version {version}; this one reads" in outcome.err
    assert advice in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
