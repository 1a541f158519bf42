"""``tta-bench data``: what is there, what is still to get, and commands that do mend wrong layouts when they are run."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Outcome
from PIL import Image
from rich.filesize import decimal

from tta_bench.data import DataRequest, headers, open_data, published_sets
from tta_bench.data.decoding import counted
from tta_bench.data.geometry import Geometry, ImageFiles, decode_file
from tta_bench.data.headers import look_at
from tta_bench.data.kinds.imagenet import SETS
from tta_bench.data.labels import imagenet_labels
from tta_bench.data.listing import listing
from tta_bench.errors import UsageError
from tta_bench.registry import DATASETS, installed
from tta_bench.suite import data_alone
from tta_bench.suite.loader import configured, find, shipped

Cli = Callable[..., Outcome]
WNIDS, R = imagenet_labels(), imagenet_labels("imagenet_r")

SUITE = """\
name: looked
data: {data}
models: [{{name: m, architecture: resnet18, weights: "${{NOT_SET}}/m.pth", mean: [0, 0, 0], std: [1, 1, 1]}}]
methods: [source]
corruptions: [{corruptions}]
"""


@pytest.fixture(autouse=True)
def _listed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    listing.cache_clear()
    for name in {name for suite in shipped() for name in variables(suite)}:
        monkeypatch.delenv(name, raising=False)


def variables(suite: str) -> set[str]:
    """The variables in the data of a shipped suite."""
    lines = [line for line in find(suite).read_text().splitlines() if not line.startswith("#")]
    block = re.search(r"^data:.*(?:\n[ ].*)*", "\n".join(lines), re.MULTILINE)
    assert block is not None
    return set(re.findall(r"\$\{(\w+)", block[0]))


@pytest.fixture
def page(run_cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The page of a suite with these data."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(data: str, corruptions: str, *options: object) -> Outcome:
        listing.cache_clear()
        (tmp_path / "looked.yaml").write_text(SUITE.format(data=data, corruptions=corruptions))
        return run_cli("data", tmp_path / "looked.yaml", *options)

    return call


def images(root: pathlib.Path, folders: Iterable[object], count: int = 1, side: int = 256) -> pathlib.Path:
    for folder in folders:
        (root / str(folder)).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (side, side)).save(root / str(folder) / f"{number}.png")
    return root


# -- what is still to get ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_a_machine_without_the_natural_variants_gets_one_page(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = run_cli("data", "imagenet_natural")
    assert outcome.code == 2
    assert outcome.err == ""
    for key in ("source", "imagenet_r", "imagenet_a", "imagenet_sketch", "imagenet_v2"):
        wanted, variable = SETS[key], "IMAGENET_VAL" if key == "source" else key.upper()
        lines = outcome.out[outcome.out.index(f"\n{wanted.title}\n") :].split("\n\n")[0].splitlines()[1:]
        assert f"  suite      {key}: ${{{variable}}}" in lines
        assert f"  absent     the variable {variable} is not set" in lines
        size = decimal(published_sets.SETS[wanted.get].bytes) if wanted.get else wanted.size
        assert size, "a size of each is known"
        assert f"  get        {wanted.address}{'' if wanted.get else f'  ({size})'}" in lines
        assert not wanted.get or f"             tta-bench data get {wanted.get} DIR    # {size}; or by hand:" in lines
        assert f"  layout     {wanted.layout}: {wanted.summary()}" in lines
        assert lines[-1] == f"  then       export {variable}=DIR/{wanted.folder}"
        assert [step for step in wanted.steps if not any(step in line for line in lines)] == []
    assert "tta-bench data get imagenet_v2 DIR    # 3.8 GB; or by hand:" in outcome.out, "of all three variants"
    assert "not ready: ImageNet validation set; ImageNet-R; ImageNet-A; ImageNet-Sketch; ImageNet-V2" in outcome.out
    assert len(outcome.out.splitlines()) < 60


@pytest.mark.parametrize("suite", shipped())
def test_every_shipped_suite_says_which_variables_are_not_set(run_cli: Cli, suite: str) -> None:
    outcome, needed = run_cli("data", suite), variables(suite)
    assert outcome.code == (2 if needed else 0), outcome.err
    assert {name for name in needed if f"the variable {name} is not set" not in outcome.out} == set()
    assert {name for name in needed if f"export {name}=" not in outcome.out} == set()


def test_published_numbers_are_those_of_the_authors() -> None:
    told: Any = configured(DATASETS, {"kind": "imagenet"}, installed())
    published = {key: each.images for key, each in told.published({}).items()}
    assert published == {
        "source": 50_000, "imagenet_c": 50_000, "imagenet_c_bar": 50_000, "imagenet_3dcc": 50_000, "imagenet_r": 30_000,
        "imagenet_a": 7_500, "imagenet_sketch": 50_889, "imagenet_v2": 10_000,
    }  # fmt: skip
    for kind, classes in (("cifar_c", 10), ("cifar_c", 100)):
        config = installed().load(kind, DATASETS).Config  # type: ignore[attr-defined]
        root = config.published({"classes": classes})["root"]
        assert (root.title, root.images, root.classes) == (f"CIFAR-{classes}-C", 10_000, classes)
    config = installed().load("cifar10_1", DATASETS).Config  # type: ignore[attr-defined]
    assert config.published({})["root"].images == {"cifar10_1_v4": 2021, "cifar10_1_v6": 2000}


def test_sets_that_can_be_fetched_have_the_same_names_and_folders() -> None:
    kinds: list[tuple[str, dict[str, int]]] = [
        ("imagenet", {}),
        ("cifar_c", {}),
        ("cifar_c", {"classes": 100}),
        ("cifar10_1", {}),
    ]
    configs: list[Any] = [installed().load(kind, DATASETS).Config for kind, _ in kinds]  # type: ignore[attr-defined]
    stated = [
        each for config, (_, given) in zip(configs, kinds, strict=True) for each in config.published(given).values()
    ]
    named = {each.get: each.folder for each in stated if each.get}
    assert named == {name: published_sets.SETS[name].root for name in named}
    assert set(named) == {name for name, each in published_sets.SETS.items() if each.files}


def test_one_absent_or_broken_place_leaves_the_others_open(
    page: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    images(tmp_path / "r", R[:2])
    (tmp_path / "val").mkdir()
    (tmp_path / "a").mkdir()
    data = "{kind: imagenet, source: val, imagenet_r: r, imagenet_a: a, imagenet_sketch: '${IMAGENET_SKETCH}'}"
    outcome = page(data, "clean, imagenet_r, imagenet_a, imagenet_sketch")
    assert outcome.code == 2
    parts = dict(zip(("val", "r", "a", "sketch"), outcome.out.split("\n\n")[1:], strict=False))
    assert "the folder has no images" in parts["val"]
    assert "found      2 images (imagenet_r); 2 classes" in parts["r"]
    assert "the folder has no images" in parts["a"]
    assert "the variable IMAGENET_SKETCH is not set" in parts["sketch"]
    assert "not ready: ImageNet validation set; ImageNet-A; ImageNet-Sketch" in outcome.out


def test_a_flat_folder_waits_for_its_labels(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (256, 256)).save(tmp_path / "flat" / "a.png")
    outcome = page("{kind: folder, root: flat, labels: gone.csv}", "fog")
    assert outcome.code == 2
    assert "absent     there is no gone.csv" in outcome.out
    assert "not read   another folder or file must be there first" in outcome.out
    assert "wrong" not in outcome.out


def test_what_is_wrong_with_the_suite_is_said_as_by_run(page: Callable[..., Outcome]) -> None:
    outcome = page("{kind: digits}", "fgo")
    assert outcome.code == 2
    assert "did you mean 'fog'?" in outcome.err
    assert "unknown kind of data 'digit'" in page("{kind: digit}", "fog").err


def test_help_tells_of_the_suite(shown: Callable[..., str]) -> None:
    text = shown("data", "--help")
    assert "[OPTIONS] SUITE | COMMAND" in text
    assert {"--set", "--cache", "--limit", "--plugin"} <= set(re.findall(r"^  (--\w+)", text, re.MULTILINE))


# -- what is there -------------------------------------------------------------------------------------------------------


def test_a_page_says_what_was_found_converted_and_left_out(
    page: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    root = images(tmp_path / "r", [*R[:3], WNIDS[0]], count=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 500)).save(root / R[0] / "turned.jpg", exif=exif)
    Image.new("L", (300, 200)).save(root / R[0] / "grey.jpg")
    Image.new("CMYK", (300, 200)).save(root / R[0] / "print.jpg")
    (root / R[1] / ".hidden.png").write_bytes(b"")
    (root / R[1] / "moving.gif").write_bytes(b"")
    outcome = page("{kind: imagenet, imagenet_r: r}", "imagenet_r")
    assert outcome.code == 0, outcome.out
    size = sum(path.stat().st_size for path in root.glob("*/*.[pj]*") if not path.name.startswith("."))
    for line in (
        "  found      11 images (imagenet_r); 4 classes",
        "  unlike     11 images, published 30,000 (imagenet_r)",
        f"  unlike     197 of 200 classes have no folder: {', '.join(map(repr, R[3:6]))} …",
        f"  unlike     1 folders are classes that ImageNet-R does not have: {WNIDS[0]!r}",
        f"  classes    0 is {WNIDS[0]!r}, 1 is {R[0]!r}, 2 is {R[1]!r}, {WNIDS.index(R[2])} is {R[2]!r}, matched by name",
        "  left out   1 .gif, 1 hidden or system entry",
        f"  files      8 PNG, 3 JPEG; {size / 1000:,.1f} kB; 300x200 to 300x500 pixels, 8 of 256x256",
        "  converted  1 CMYK, 1 EXIF orientation ignored, 1 greyscale",
    ):
        assert line in outcome.out.splitlines()
    assert "for 11 images of 224x224 pixels;" in outcome.out
    limited = page("{kind: imagenet, imagenet_r: r}", "imagenet_r", "--limit", 5, "--cache", tmp_path / "other")
    assert "for 5 images of 224x224 pixels" in limited.out
    assert str(tmp_path / "other") in limited.out


def test_a_whole_set_is_as_published(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    for name in ("contrast", "fog"):
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10_000) % 10, 5))
    outcome = page(f"{{kind: cifar_c, root: {tmp_path}}}", "contrast, fog")
    assert outcome.code == 0, outcome.out
    assert "10,000 images under each of 2 shifts; 10 classes, as CIFAR-10-C is published" in outcome.out
    assert "uint8, 32x32 pixels; used as they are, without cache" in outcome.out
    hundred = page(f"{{kind: cifar_c, root: {tmp_path}, classes: 100}}", "fog")
    assert hundred.code == 2
    assert "those of CIFAR-10-C?" in hundred.out


def test_domains_are_known_by_their_names(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        images(tmp_path / "mine" / domain, ["dog", "elk"])
    outcome = page("{kind: domains, root: mine}", "photo, sketch")
    assert outcome.code == 0
    assert "\nPACS\n" in outcome.out
    assert "unlike     2 images, published 1,670 (photo)" in outcome.out
    assert "unlike     2 of 7 classes have images (photo)" in outcome.out
    (tmp_path / "mine" / "photo").rename(tmp_path / "mine" / "photos")
    assert "unlike" not in page("{kind: domains, root: mine}", "photos, sketch").out


def test_a_plugin_states_its_own_published_set(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    images(tmp_path / "pets", ["cat", "dog"])
    (tmp_path / "pets.py").write_text("""
from tta_bench.data.kinds.folder import Folder
from tta_bench.data.reference import PublishedSet

class Pets(Folder):
    \"\"\"Pets.\"\"\"
    name = "pets"

    class Config(Folder.Config):
        @classmethod
        def published(cls, given):
            return {"root": PublishedSet("Pets", "https://example.org/pets", "<breed>/<image>", images=7349, classes=37)}
""")
    here = page("{kind: pets, root: pets}", "fog", "--plugin", tmp_path / "pets.py")
    assert "unlike     2 images, published 7,349 (fog-5)" in here.out
    away = page("{kind: pets, root: nowhere}", "fog", "--plugin", tmp_path / "pets.py")
    assert "get        https://example.org/pets" in away.out
    assert "layout     <breed>/<image>: 7,349 images, 37 classes" in away.out
    assert "then       --set data.root=PATH, or in the suite data: {…, root: PATH}" in away.out


def test_a_cache_that_does_not_fit_is_said(
    page: Callable[..., Outcome], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "off        images are decoded on every use" in page("{kind: digits}", "fog", "--cache", "off").out
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    outcome = page("{kind: digits}", "fog")
    assert outcome.code == 2
    assert "0.00 GiB are free" in outcome.out
    assert "hint: choose another disk with --cache DIR" in outcome.out


# -- headers -------------------------------------------------------------------------------------------------------------


def odd_files(root: pathlib.Path) -> list[str]:
    """Images of many modes, and files that are none."""
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3
    for mode, ending in (("RGB", "jpg"), ("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png"),
                         ("1", "png"), ("I;16", "png"), ("F", "tif")):  # fmt: skip
        Image.new(mode, (40, 40)).save(root / f"{mode.replace(';', '')}.{ending}")
    Image.new("RGB", (40, 40)).save(root / "turned.jpg", exif=exif)
    Image.new("RGB", (20, 40)).save(root / "small.png")
    (root / "text.jpg").write_text("<html>")
    (root / "empty.png").write_bytes(b"")
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("geometry", [Geometry(), Geometry(crop=32), Geometry(resize=36, crop=32), Geometry(resize=40)])
def test_headers_say_what_decoding_would_do(tmp_path: pathlib.Path, geometry: Geometry) -> None:
    names, side = odd_files(tmp_path / "odd"), geometry.crop or 40
    refused = []
    with counted() as converted:
        for name in names:
            try:
                decode_file(tmp_path / "odd" / name, geometry, side)
            except UsageError as error:
                refused += error.problems
    look = look_at(ImageFiles(tmp_path / "odd", names, geometry, side), processes=1)
    assert (look.images, look.converted) == (len(names), converted)
    assert [problem.where for problem in look.faults] == [problem.where for problem in refused]
    assert [problem.message for problem in look.faults] == [problem.message for problem in refused]
    assert len(refused) >= 3


def test_several_processes_say_the_same(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageFiles(tmp_path / "odd", odd_files(tmp_path / "odd"), Geometry(crop=32), 32)
    alone, seen = look_at(files, processes=1), list[int]()
    monkeypatch.setattr(headers, "CHUNK", 4)
    monkeypatch.setattr(headers, "FILES_PER_PROCESS", 4)
    assert look_at(files, 2, seen.append) == alone
    assert sum(seen) == len(files.names)


def test_files_that_are_no_images_are_named_and_counted(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    root = images(tmp_path / "r", R[:2], count=3)
    for path in (root / R[0]).iterdir():
        path.write_text("<html>")
    (root / R[1] / "0.png").write_text("<html>")
    outcome = page("{kind: imagenet, imagenet_r: r}", "imagenet_r")
    assert outcome.code == 2
    assert outcome.out.count("wrong      cannot decode image") == 3
    assert f"({root / R[0] / '0.png'})" in outcome.out
    assert f"and 1 more: {root / R[1] / '0.png'}" in outcome.out


# -- wrong layouts, and the commands that mend them ----------------------------------------------------------------------


class Case(NamedTuple):
    """A wrong layout: what makes it in a folder, the suite's data there, what is said, and what precedes the command."""

    make: Callable[[pathlib.Path], object]
    data: str
    shifts: str
    says: str
    before: str


def packed(root: pathlib.Path, archive: str, make: Callable[[pathlib.Path], object]) -> None:
    """What ``make`` makes, only in an archive in ``root``."""
    make(root)
    made = list(root.iterdir())
    with tarfile.open(root / archive, "w") as file:
        for path in made:
            file.add(path, path.name)
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def tree(root: pathlib.Path) -> pathlib.Path:
    return images(root, WNIDS[:2], side=224)


def arrays(root: pathlib.Path, **changed: np.ndarray) -> None:
    """The arrays of CIFAR-10.1, of ten images; some are others."""
    root.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for part, array in {"data": pixels, "labels": np.arange(10), **changed}.items():
        np.save(root / f"cifar10.1_v6_{part}.npy", array)


FOLDER, NET, C101 = "{kind: folder, root: d}", "{kind: imagenet, imagenet_%s: d}", "{kind: cifar10_1, root: d}"
TREE, DOMAINS = "{kind: imagenet_c, root: d}", "{kind: domains, root: d}"
UP, LAST = "move them up: ", "unpack it: "
CASES = {
    "folder, deeper": Case(lambda d: images(d / "val", "ab"), FOLDER, "fog", "one folder deeper, in 'val'", UP),
    "folder, packed": Case(lambda d: packed(d, "my val.tar", lambda r: images(r, "ab")), FOLDER, "fog",
                           "archives that are not unpacked: 'my val.tar'", LAST),
    "r, deeper": Case(lambda d: images(d / "imagenet-r", R[:2]), NET % "r", "imagenet_r", "deeper, in 'imagenet-r'", UP),
    "r, packed": Case(lambda d: packed(d, "imagenet-r.tar", lambda r: images(r, R[:2])), NET % "r", "imagenet_r",
                      "archives that are not unpacked: 'imagenet-r.tar'", LAST),
    "class names": Case(lambda d: images(d, ["goldfish", "Great_White-Shark", "it's"][:2]), NET % "r", "imagenet_r",
                        "2 of 2 folders match no class: 'Great_White-Shark', 'goldfish'", "all at once: "),
    "class numbers": Case(lambda d: images(d, [1, 2, 999]), NET % "sketch", "imagenet_sketch",
                          "3 of 3 folders match no class: '1', '2', '999'", "all at once: "),
    "v2, packed": Case(lambda d: packed(d, "imagenetv2-matched-frequency.tar.gz",
                                        lambda r: images(r / "imagenetv2-matched-frequency-format-val", [0, 10])),
                       NET % "v2", "imagenet_v2_matched_frequency", "0 folders for imagenet_v2_matched_frequency", LAST),
    "v2, deeper": Case(lambda d: images(d / "v2" / "imagenetv2-threshold0.7-format-val", [0, 10]), NET % "v2",
                       "imagenet_v2_threshold_0.7", "0 folders for imagenet_v2_threshold_0.7", "move it up: "),
    "tree, severities above": Case(lambda d: tree(d / "5" / "fog"), TREE, "fog", "no folder for fog-5", "other way: "),
    "tree, no severities": Case(lambda d: tree(d / "fog"), TREE, "fog", "no folder for fog-5", "of severity 5: "),
    "tree, deeper": Case(lambda d: tree(d / "weather" / "fog" / "5"), TREE, "fog", "no folder for fog-5", UP),
    "tree, others deeper": Case(lambda d: (tree(d / "a" / "snow" / "5"), tree(d / "b" / "fog" / "5")), TREE, "snow, fog",
                                "no folder for snow-5", "move them up: "),
    "tree, packed": Case(lambda d: packed(d, "weather.tar", lambda r: tree(r / "fog" / "5")), TREE, "fog",
                         "no folder for fog-5", LAST),
    "3dcc, packed": Case(lambda d: packed(d, "fog_3d.tar.gz", lambda r: tree(r / "fog_3d" / "5")), NET % "3dcc", "fog_3d",
                         "no folder for fog_3d-5", LAST),
    "c-bar, no severities": Case(lambda d: tree(d / "sparkles"), NET % "c_bar", "sparkles", "no folder for sparkles-5",
                                 "of severity 5: "),
    "domains, deeper": Case(lambda d: images(d / "PACS" / "photo", "ab"), DOMAINS, "photo",
                            "the domains lie one folder deeper, in 'PACS'", UP),
    "domains, packed": Case(lambda d: packed(d, "pacs.tar", lambda r: images(r / "photo", "ab")), DOMAINS, "photo",
                            "archives that are not unpacked: 'pacs.tar'", LAST),
    "arrays, deeper": Case(lambda d: arrays(d / "datasets"), C101, "cifar10_1_v6", "no cifar10.1_v6_data.npy", "it up: "),
    "arrays, packed": Case(lambda d: packed(d, "a.tar", arrays), C101, "cifar10_1_v6", "no cifar10.1_v6_data.npy", LAST),
    "planes first": Case(lambda d: arrays(d, data=np.zeros((10, 3, 32, 32), np.uint8)), C101, "cifar10_1_v6",
                         "images have shape (10, 3, 32, 32), expected (10, 32, 32, 3)", "come first: "),
    "fractions": Case(lambda d: arrays(d, data=np.ones((10, 32, 32, 3))), C101, "cifar10_1_v6", "images are of float64",
                      "in [0, 1]: "),
    "one-hot": Case(lambda d: arrays(d, labels=np.eye(10)), C101, "cifar10_1_v6", "labels have shape (10, 10)", "numbers: "),
    "labels from one": Case(lambda d: arrays(d, labels=np.arange(10) + 1), C101, "cifar10_1_v6", "label 10 of image 9",
                            "subtract 1: "),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_layout_is_named_and_its_command_mends_it(
    page: Callable[..., Outcome], tmp_path: pathlib.Path, name: str
) -> None:
    case, root = CASES[name], tmp_path / "d"
    root.mkdir()
    case.make(root)
    outcome = page(case.data, case.shifts)
    assert outcome.code == 2
    said = outcome.out + outcome.err
    assert case.says in said
    [command] = [
        line.partition(case.before)[2] for line in said.splitlines() if "hint: " in line and case.before in line
    ]
    subprocess.run(["sh", "-ec", command.replace("python -c", f"{sys.executable} -c")], check=True, cwd=tmp_path)
    mended = page(case.data, case.shifts)
    assert mended.code == 0, mended.out + mended.err
    assert "wrong" not in mended.out
    assert "found" in mended.out


@pytest.mark.parametrize(
    ("make", "data", "shifts", "says", "hint"),
    [(lambda d: images(d.parent, [d.name, "other"]), FOLDER, "fog", "1 images lie directly", "name the folder above: {up}"),
     (lambda d: Image.new("RGB", (256, 256)).save(d / "ILSVRC2012_val_00000001.png"), "{kind: imagenet, source: d}", "clean",
      "1 images lie directly", "ImageNet('DIR', 'val')"),
     (lambda d: images(d, [*WNIDS[:2], "made_up", "else", "more"]), NET % "sketch", "imagenet_sketch",
      "3 of 5 folders match no class", "names such as 'n01440764'"),
     (lambda d: images(d, range(3)), NET % "v2", "imagenet_v2_top_images", "0 folders for imagenet_v2_top_images",
      "this is the folder of one variant: name the folder above, {up}"),
     (lambda d: tree(d / "5"), TREE, "fog", "no folder for fog-5", "the folder of one corruption: name the folder above, {up}"),
     (lambda d: images(d, "ab"), DOMAINS, "photo", "it is one domain, not the folder of several", "name the folder above, {up}"),
     (lambda d: arrays(d.parent), C101, "cifar10_1_v6", "no cifar10.1_v6_data.npy", "one folder higher: name that folder, {up}"),
     (lambda d: arrays(d, labels=np.arange(9)), C101, "cifar10_1_v6", "labels have shape (9,), expected (10,)", "again"),
     (lambda d: arrays(d, labels=np.arange(10) / 2), C101, "cifar10_1_v6", "label 0.5 of row 1 is no whole number", "again"),
     (lambda d: (d / "cifar-10-batches-bin.tar.gz").write_bytes(b""), "{kind: cifar10_1, root: ., archive: d}", "clean",
      "no data_batch_*.bin in the archive's folder", "tar -xf {d}/cifar-10-batches-bin.tar.gz -C {d}"),
     (lambda d: (d / "CIFAR-10-C.tar").write_bytes(b""), "{kind: cifar_c, root: d}", "fog", "no labels.npy in the folder",
      "tar -xf {d}/CIFAR-10-C.tar -C {d}")],
)  # fmt: skip
def test_a_wrong_layout_that_no_command_mends_alone_is_named(
    page: Callable[..., Outcome], tmp_path: pathlib.Path, make: Callable[[pathlib.Path], object], data: str, shifts: str,
    says: str, hint: str,
) -> None:  # fmt: skip
    root = tmp_path / "set" / "d"
    root.mkdir(parents=True)
    if data == FOLDER:
        root.rmdir()
    make(root)
    outcome = page(data.replace(": d}", f": {root}}}"), shifts)
    assert outcome.code == 2
    assert says in outcome.out + outcome.err
    assert hint.format(up=root.parent, d=root) in outcome.out + outcome.err


def test_folders_of_imagenet_v2_may_be_wnids(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    images(tmp_path / "d" / "imagenetv2-top-images", [WNIDS[10], WNIDS[2]])
    assert page(NET % "v2", "imagenet_v2_top_images").code == 0
    config: Any = configured(DATASETS, {"kind": "imagenet", "imagenet_v2": str(tmp_path / "d")}, installed())
    wanted = config.shift("imagenet_v2_top_images", 5)
    data = open_data(config, DataRequest((wanted,), None, WNIDS), installed())
    assert data.labels_of(wanted).tolist() == [2, 10]


def test_a_problem_is_with_the_innermost_folder(page: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    images(tmp_path / "d", R[:2])
    (tmp_path / "d" / "a").mkdir()
    page("{kind: imagenet, imagenet_r: d, imagenet_a: d/a}", "imagenet_a")
    found = data_alone.load(str(tmp_path / "looked.yaml"))
    assert {place.key: len(place.problems) for place in found.places} == {"imagenet_r": 0, "imagenet_a": 1}
