"""The image cache, copied to a machine without the images: same keys, same results; never other images."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from conftest import DIGITS_SUITE, Outcome, run_locally
from PIL import Image
from runs import result_rows

from tta_bench.data import DataRequest, Dataset, open_data
from tta_bench.data.digests import Digests
from tta_bench.data.images import listing
from tta_bench.data.labels import imagenet_labels
from tta_bench.errors import UsageError
from tta_bench.registry import DATASETS, installed
from tta_bench.suite.loader import configured

WNIDS = imagenet_labels()
SUITE = DIGITS_SUITE.replace(
    "{kind: digits, max_images: 100}", "{kind: folder, root: ROOT, strengths: cifar, preprocess: none}"
)


@pytest.fixture(scope="module")
def prepared(digit_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a suite, its run, and the image cache of that; the images are no longer there."""
    place = tmp_path_factory.mktemp("prepared")
    shutil.copytree(digit_folder, place / "digits")
    (place / "small.yaml").write_text(SUITE.replace("ROOT", str(place / "digits")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(place / "cache"))
        run_locally(place / "small.yaml", place / "run", place / "cache", limit=20)
    shutil.rmtree(place / "digits")
    listing.cache_clear()
    return place


@pytest.fixture
def run(
    run_cli: Callable[..., Outcome], prepared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run the suite on another machine, which has a copy of the cache, or of a part of it."""

    def call(*options: object, keep: str = "*") -> Outcome:
        copied(prepared / "cache", tmp_path / "cache", keep)
        listing.cache_clear()
        monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))  # run_cli has set the session's
        options = (prepared / "small.yaml", "--out", tmp_path / "run", "--executor", "local", *options)
        return run_cli("run", *options)

    return call


def copied(cache: pathlib.Path, target: pathlib.Path, keep: str = "*") -> None:
    target.mkdir()
    for entry in cache.glob(keep):
        (shutil.copytree if entry.is_dir() else shutil.copy)(entry, target / entry.name)


def keys(run: pathlib.Path) -> set[str]:
    return {path.stem for path in (run / "trials").rglob("*.json")}


def test_a_run_without_the_images_is_the_same(
    run: Callable[..., Outcome], prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    outcome = run("--limit", 20)
    assert outcome.code == 0, outcome.err
    assert "preparing images" not in outcome.err
    line = "not on this machine, taken from the image cache as listed on 20"
    assert str(prepared / "digits") in outcome.err.partition(line)[2].splitlines()[0]
    [session] = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [each["remembered"][:2] for each in session["data"]["found"]] == ["20"]
    assert keys(tmp_path / "run") == keys(prepared / "run") != set()
    assert result_rows(tmp_path / "run").equals(result_rows(prepared / "run"))


@pytest.mark.parametrize(
    ("options", "kept", "text"),
    [
        (["--dry-run"], "[0-9a-f]" * 32, "no such folder: "),  # entries, but neither listings nor digests
        (["--dry-run"], "trees.sqlite", "cannot read: No such file or directory"),
        ([], "*.sqlite", "the image is neither here nor in the image cache"),
    ],
)
def test_a_part_of_the_cache_is_refused(options: list[str], kept: str, text: str, run: Callable[..., Outcome]) -> None:
    outcome = run("--limit", 20, *options, keep=kept)
    assert outcome.code == 2
    assert text in outcome.err


def test_other_images_than_those_prepared_are_refused(run: Callable[..., Outcome]) -> None:
    outcome = run("--dry-run")
    assert outcome.code == 2
    assert "cannot read" in outcome.err


def test_images_that_are_there_are_never_those_of_the_cache(
    run: Callable[..., Outcome], prepared: pathlib.Path
) -> None:
    for digit in range(10):  # another set, of the same names
        (prepared / "digits" / f"digit_{digit}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (digit, 0, 0)).save(prepared / "digits" / f"digit_{digit}" / "0.png")
    outcome = run("--limit", 20, "--dry-run")
    shutil.rmtree(prepared / "digits")
    assert outcome.code == 0, outcome.err
    assert "not on this machine" not in outcome.err
    assert "2 shifts to build" in outcome.err


# -- each kind of data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def move(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[pathlib.Path], None]:
    """Begin with an empty cache; ``move(tree)`` removes the tree, and copies the cache alone to another machine."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    listing.cache_clear()

    def call(tree: pathlib.Path) -> None:
        shutil.rmtree(tree)
        listing.cache_clear()
        copied(tmp_path / "cache", tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "cache")
        monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "elsewhere"))

    return call


def images(root: pathlib.Path, folders: Iterable[object], side: int = 256) -> pathlib.Path:
    for number, folder in enumerate(folders):
        place = root / str(folder) / "0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (side, side), (number * 20, 0, 60)).save(place)
    return root


def facts(data: dict[str, object], names: Iterable[str]) -> list[Any]:
    """What keys and grading take from a data set."""
    config: Any = configured(DATASETS, data, installed())
    shifts = tuple(config.shift(name, 5) for name in names)
    known = WNIDS if data["kind"] == "imagenet" else None
    opened: Dataset = open_data(config, DataRequest(shifts, None, known), installed())
    assert [opened.missing(shift) for shift in shifts] == [None] * len(shifts)
    rows = [np.arange(len(opened.labels_of(shift)), dtype=np.int32) for shift in shifts]
    return [
        (shift.id, opened.fingerprint(shift, mine, Digests()), opened.labels_of(shift).tolist(), opened.mask_of(shift),
         opened.side, opened.num_classes)
        for shift, mine in zip(shifts, rows, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("linked", [False, True])
def test_trees_that_share_imagenets_classes(linked: bool, move: Callable[..., None], tmp_path: pathlib.Path) -> None:
    raw, some = tmp_path / "raw", [WNIDS[number] for number in (0, 4, 10)]
    images(raw / "val", some)
    images(raw / "r", some[1:])
    images(raw / "c" / "fog" / "5", some, 224)
    for name in ("imagenetv2-matched-frequency-format-val", "imagenetv2-top-images-format-val"):
        images(raw / "v2" / name, [0, 2, 10])
    root = raw
    if linked:
        root = tmp_path / "link"
        root.symlink_to(raw)
    data: dict[str, object] = {"kind": "imagenet", "source": str(root / "val"), "imagenet_r": str(root / "r"),
                               "imagenet_c": str(root / "c"), "imagenet_v2": str(root / "v2")}  # fmt: skip
    names = ("clean", "imagenet_r", "imagenet_v2_top_images", "fog")
    tree: dict[str, object] = {"kind": "imagenet_c", "root": str(root / "c"), "source": str(root / "val")}
    before = [facts(data, names), facts(tree, ["clean", "fog"])]
    root.unlink() if linked else None
    move(raw)
    assert [facts(data, names), facts(tree, ["clean", "fog"])] == before
    with pytest.raises(UsageError, match=r"no folder for snow-5"):
        facts(tree, ["snow"])


def test_domains(move: Callable[..., None], tmp_path: pathlib.Path) -> None:
    raw = tmp_path / "pacs"
    images(raw / "art", ["cat", "dog"])
    images(raw / "photo", ["dog", "elk"])
    data: dict[str, object] = {"kind": "domains", "root": str(raw), "preprocess": "none"}
    before = facts(data, ["photo"])  # art has no part in it, but its classes count
    assert before[0][2] == [1, 2]
    move(raw)
    assert facts(data, ["photo"]) == before
    with pytest.raises(UsageError, match="the folder cannot be read"):
        facts(data, ["art"])


def test_arrays_are_copied_themselves(move: Callable[..., None], tmp_path: pathlib.Path) -> None:
    raw = tmp_path / "arrays"
    raw.mkdir()
    for version in ("v4", "v6"):
        np.save(raw / f"cifar10.1_{version}_data.npy", np.arange(10 * 3072, dtype=np.uint8).reshape(10, 32, 32, 3))
        np.save(raw / f"cifar10.1_{version}_labels.npy", np.arange(10))
    before = facts({"kind": "cifar10_1", "root": str(raw)}, ["cifar10_1_v6"])
    shutil.copytree(raw, tmp_path / "copied")
    move(raw)
    assert facts({"kind": "cifar10_1", "root": str(tmp_path / "copied")}, ["cifar10_1_v6"]) == before
