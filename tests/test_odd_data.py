"""Inputs that people have and that no format's page describes: read right, or refused with what is wrong. Never silently wrong."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from PIL import Image

from tta_bench import suite
from tta_bench.data import DataRequest, Dataset, open_data
from tta_bench.data.base import Found
from tta_bench.data.cache import ImageCache, entry_of
from tta_bench.data.decoding import counted
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import Geometry, decode_file
from tta_bench.data.kinds.cifar_c import read_archive
from tta_bench.data.listing import class_order, listing, order_remark
from tta_bench.errors import UsageError
from tta_bench.registry import DATASETS, installed
from tta_bench.store import schema
from tta_bench.streams import CLEAN, Shift
from tta_bench.suite import plan
from tta_bench.suite.loader import configured

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]
PLAIN = {"preprocess": "none", "strengths": "cifar"}
FOLDER = "{{kind: folder, root: {root}, preprocess: none, strengths: cifar}}"


@pytest.fixture(autouse=True)
def _listed_anew() -> None:
    listing.cache_clear()


def opened(kind: str, shifts: Iterable[Shift] = (), **values: object) -> Dataset:
    """The data set that a suite with these values would have."""
    config: Any = configured(DATASETS, {"kind": kind, **values}, installed())
    return open_data(config, DataRequest(tuple(shifts)), installed())


def refusal(kind: str = "folder", **values: object) -> str:
    """What is said where a data set is refused."""
    with pytest.raises(UsageError) as caught:
        opened(kind, **values)
    return str(caught.value)


def pixels(data: Dataset) -> np.ndarray:
    return data.read(CLEAN, np.arange(len(data.ids)))


@pytest.fixture
def folder(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """A copy of the digits' folder; class folders get other names, and ``write`` writes the images."""

    def call(
        names: Sequence[str] = (), write: Callable[[pathlib.Path, Image.Image], None] | None = None
    ) -> pathlib.Path:
        root = tmp_path / "images"
        shutil.copytree(digit_folder, root)
        for number, name in enumerate(names):
            (root / f"digit_{number}").rename(root / name)
        for path in sorted(root.glob("*/*.png")) if write else ():
            image = Image.open(path).convert("RGB")
            path.unlink()
            write(path, image)  # type: ignore[misc]
        return root

    return call


# -- class folders -------------------------------------------------------------------------------------------------------


def test_numbered_class_folders_are_taken_in_the_order_of_their_numbers(folder: Callable[..., pathlib.Path]) -> None:
    data = opened("folder", root=str(folder([str(number) for number in range(1, 11)])), **PLAIN)
    by_class = {image.split("/")[0]: int(label) for image, label in zip(data.ids, data.labels, strict=True)}
    assert by_class == {str(number): number - 1 for number in range(1, 11)}
    [found] = data.found()
    assert found.classes == tuple(str(number) for number in range(1, 11))
    assert found.lines() == [
        f"{found.folder}: 10 classes, 0 is '1', 9 is '10', in the order of their numbers (as texts: 1, 10, 2, …)"
    ]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [(["0", "10", "2"], ["0", "2", "10"]), (["010", "009", "100"], ["009", "010", "100"]),
     (["n02", "n010", "N03"], ["N03", "n010", "n02"]), (["class_2", "class_10"], ["class_10", "class_2"])],
)  # fmt: skip
def test_numbers_are_ordered_by_value_and_other_names_as_texts(names: list[str], ordered: list[str]) -> None:
    assert class_order(names, "") == tuple(ordered)


def test_an_order_that_may_surprise_is_said() -> None:
    assert "of their texts, not of the numbers in them" in order_remark(("class_10", "class_2"))
    assert "as texts: 0, 1, 10, …" in order_remark(("0", "1", "2", "10"))
    for usual in (("n01440764", "n01443537"), ("0", "1", "2"), ("cat", "dog"), ("001", "010", "100")):
        assert order_remark(usual) == ""


@pytest.mark.parametrize(
    ("names", "says"),
    [(["0", "1", "extra"], "classes have numbers, such as '0', but for 'extra'"),
     (["cat", "dog", "7"], "classes have names, such as 'cat', but for '7'"),
     (["1", "01"], "classes '01' and '1' have the same number")],
)  # fmt: skip
def test_an_unclear_order_of_classes_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        class_order(names, "")


def test_hidden_and_system_entries_are_no_classes_and_no_images(folder: Callable[..., pathlib.Path]) -> None:
    root = folder()
    before = opened("folder", root=str(root), **PLAIN)
    for name in (".ipynb_checkpoints", ".git", "__MACOSX"):
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(b"")
    for name in ("._0.png", "Thumbs.db", "desktop.ini"):
        (root / "digit_0" / name).write_bytes(b"")
    (root / ".DS_Store").write_bytes(b"")
    listing.cache_clear()
    after = opened("folder", root=str(root), **PLAIN)
    assert (after.ids, after.labels.tolist()) == (before.ids, before.labels.tolist())
    assert after.found()[0].left_out == {"hidden or system entry": 7}


def test_what_is_left_out_is_counted_by_kind(folder: Callable[..., pathlib.Path]) -> None:
    root = folder()
    image = next((root / "digit_3").iterdir())
    image.rename(image.with_suffix(".gif"))
    (root / "digit_0" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "digit_0" / "linked.png").symlink_to(next((root / "digit_1").iterdir()))
    (root / "digit_0" / "more").mkdir()
    (root / "README").write_text("")
    (root / "digit_0" / "x.\udcff\n").write_text("")
    (root / "beside.png").write_bytes(b"")
    data = opened("folder", root=str(root), **PLAIN)
    assert len(data.ids) == 30, "30, one less, and a link to one of them"
    assert data.found()[0].lines()[1] == (
        f"{root}: 6 of 36 files left out: 1 .gif, 1 dangling link, 2 files with odd endings or none, "
        "1 folder inside a class folder, 1 image outside the class folders"
    )


def test_names_that_cannot_be_printed_are_shown_escaped() -> None:
    lines = Found("/data/a\udcff\n", 3, ("b\udcff", "c"), {".gif": 1}).lines()
    assert lines[0] == r"'/data/a\udcff\n': 2 classes, 0 is 'b\udcff', 1 is 'c'"
    assert all(line.isprintable() for line in lines)


def test_a_class_folder_without_images_is_named(folder: Callable[..., pathlib.Path]) -> None:
    root = folder()
    (root / "digit_3_old").mkdir()
    for image in (root / "digit_5").iterdir():
        image.rename(image.with_suffix(".gif"))
    said = refusal(root=str(root), **PLAIN)
    assert "2 of 11 class folders have no images: 'digit_3_old', 'digit_5' (3 .gif)" in said


def test_a_folder_that_cannot_be_read_is_named(
    folder: Callable[..., pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = folder(), os.scandir

    def denied(path: pathlib.Path) -> Any:
        if pathlib.Path(path).name == "digit_4":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert f"{root / 'digit_4'}: the folder cannot be read: Permission denied" in refusal(root=str(root), **PLAIN)


def test_the_start_of_a_run_and_its_file_say_classes_and_what_was_left_out(
    run_cli: Cli, suite_file: SuiteFile, folder: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Numbered folders, half of the images GIFs, the rest 16-bit grey: the error is that of the plain images."""

    def written(path: pathlib.Path, image: Image.Image) -> None:
        image.save(path.with_suffix(".gif"))
        Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 257).save(path)

    root = folder([str(number) for number in range(1, 11)], written)
    replaced = ("{kind: digits, max_images: 100}", FOLDER.format(root=root)), ("[clean, contrast]", "[clean]")
    file = suite_file(*replaced, ("[source, tent]", "[source]"))
    lines = [f"  {root}: 10 classes, 0 is '1', 9 is '10', in the order of their numbers (as texts: 1, 10, 2, …)",
             f"  {root}: 30 of 60 files left out: 30 .gif"]  # fmt: skip
    dry = run_cli("run", file, "--executor", "local", "--dry-run")
    assert [line for line in dry.err.splitlines() if str(root) in line] == lines
    outcome = run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert re.search(r"prepared 30 images in [\d.]+ s: [\d,]+ images a second", outcome.err)
    assert "images converted: 30 16-bit grey scaled to 8 bits" in outcome.err
    assert "clean · seed 0: error 0.0 %" in outcome.err
    [session] = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    classes = [str(number) for number in range(1, 11)]
    found = {"folder": str(root), "images": 30, "classes": classes, "left_out": {".gif": 30}, "numbers": [],
             "remembered": ""}  # fmt: skip
    assert session["data"] == {"found": [found], "converted": {"16-bit grey scaled to 8 bits": 30}}


# -- layouts ---------------------------------------------------------------------------------------------------------------


def test_a_folder_above_or_below_the_classes_is_recognised(folder: Callable[..., pathlib.Path]) -> None:
    root = folder()
    shutil.move(root, root.parent / "all" / "val")
    above = refusal(root=str(root.parent / "all"), **PLAIN)
    assert "the class folders lie one folder deeper, in 'val'" in above
    assert f"hint: name that folder: {root.parent / 'all' / 'val'}" in above
    below = refusal(root=str(root.parent / "all" / "val" / "digit_0"), **PLAIN)
    assert "3 images lie directly in the folder" in below
    assert f"name the folder above: {root.parent / 'all' / 'val'}" in below


def test_a_flat_folder_is_told_of_labels(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(digit_folder.glob("*/*.png")), flat / "ILSVRC2012_val_00000001.png")
    said = refusal(root=str(flat))
    assert "1 images lie directly in the folder" in said
    assert "hint: give their labels: data: {…, labels: FILE}" in said


@pytest.mark.parametrize(
    ("archives", "command"),
    [(["val.tar.gz"], "tar -xf {root}/val.tar.gz -C {root}"), (["my images.zip"], "unzip '{root}/my images.zip' -d {root}"),
     (["n01.tar", "n02.tar"], "cd {root} && for f in *.tar; do mkdir")],
)  # fmt: skip
def test_archives_left_packed_are_named_with_the_command(
    tmp_path: pathlib.Path, archives: list[str], command: str
) -> None:
    for name in archives:
        (tmp_path / name).write_bytes(b"")
    said = refusal(root=str(tmp_path))
    assert "archives that are not unpacked" in said
    assert command.format(root=tmp_path) in said


def test_a_folder_without_images_says_what_it_holds(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.gif").write_bytes(b"")
    said = refusal(root=str(tmp_path))
    assert "the folder has no images (1 folders, 1 .gif)" in said
    assert "images ending in .bmp" in said


# -- labels from a file ----------------------------------------------------------------------------------------------------


@pytest.fixture
def flat(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """All digits in one folder: ``0_0.png`` is the first of class 0."""
    root = tmp_path / "flat"
    root.mkdir()
    for folder in sorted(digit_folder.iterdir()):
        for number, image in enumerate(sorted(folder.iterdir())):
            shutil.copy(image, root / f"{folder.name[-1]}_{number}.png")
    return root


TRUE = [digit for digit in range(10) for _ in range(3)]
NAMES = sorted(f"{digit}_{number}.png" for digit in range(10) for number in range(3))
ROWS = [f"{name},{label}" for name, label in zip(NAMES, TRUE, strict=True)]


def labelled(flat: pathlib.Path, lines: Iterable[object], name: str = "labels.csv", **values: object) -> Dataset:
    (flat.parent / name).write_text("\n".join(map(str, lines)) + "\n")
    return opened("folder", root=str(flat), labels=str(flat.parent / name), **PLAIN, **values)


@pytest.mark.parametrize(
    ("lines", "values"),
    [(TRUE, {}), ([label + 1 for label in TRUE], {}), (ROWS, {}), (["image,label", *ROWS[::-1]], {}),
     ([row.replace(".png", "") for row in ROWS], {}), ([row.replace(",", " ") for row in ROWS], {}),
     ([row.replace(",", "\t") for row in ROWS], {}), ([f"{name},n{label:03}" for name, label in zip(NAMES, TRUE, strict=True)], {}),
     ([f"n{label:03}" for label in TRUE], {}), (TRUE, {"labels_from": 0}), (TRUE, {"classes": 10})],
)  # fmt: skip
def test_labels_from_a_file_are_those_of_the_class_folders(
    flat: pathlib.Path, digit_folder: pathlib.Path, lines: list[object], values: dict[str, object]
) -> None:
    data = labelled(flat, lines, **values)
    assert list(data.ids) == NAMES
    assert (data.labels.tolist(), data.num_classes) == (TRUE, 10)
    assert np.array_equal(pixels(data), pixels(opened("folder", root=str(digit_folder), **PLAIN)))


def test_labels_without_some_classes_need_their_number(flat: pathlib.Path) -> None:
    some = [label + 3 for label in TRUE]
    assert labelled(flat, some, labels_from=1, classes=20).labels.tolist() == [label + 2 for label in TRUE]
    assert labelled(flat, some, labels_from=0).num_classes == 13
    assert labelled(flat, [label + 11 for label in TRUE], classes=20).labels.max() == 19, (
        "20 shows that they count from 1"
    )


@pytest.mark.parametrize(
    ("lines", "values", "says"),
    [(TRUE[:-1], {}, "29 labels for 30 images"),
     ([label + 3 for label in TRUE], {}, "numbers from 3 to 12, 10 different ones, do not tell"),
     ([label + 1 for label in TRUE], {"classes": 20}, "numbers from 1 to 10, 10 different ones, do not tell"),
     (TRUE, {"labels_from": 1}, "label 0 is no class"),
     (TRUE, {"labels_from": 0, "classes": 5}, "label 9 is no class"),
     ([-1, *TRUE[1:]], {}, "numbers from -1 to 9"),
     (ROWS[:-1], {}, "1 of 30 images have no label, the first is '9_2.png'"),
     ([*ROWS, ROWS[0]], {}, "line 31 gives image '0_0.png' a second label"),
     ([*ROWS, "other.png,1"], {}, "line 31 names 'other.png', which is no image of the folder"),
     (["picture,label", *ROWS], {}, "line 1 names 'picture'"),
     ([*ROWS[:-1], "9_2.png,9,1"], {}, "line 30 has 3 columns"),
     ([*ROWS[:-1], "9_2.png,nine"], {}, "classes have numbers, such as '0', but for 'nine'"),
     ([490, 361, 171, 822, 297, *TRUE[5:]], {}, "development kit are not in the order of the networks' classes"),
     ([], {}, "the file has no labels")],
)  # fmt: skip
def test_labels_that_leave_a_doubt_are_refused(
    flat: pathlib.Path, lines: list[object], values: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        labelled(flat, lines, **values)


def test_the_development_kits_numbers_are_known_by_their_files_name_too(flat: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="give the classes' names"):
        labelled(flat, [label + 1 for label in TRUE], name="ILSVRC2012_validation_ground_truth.txt")


def test_labels_belong_to_a_flat_folder(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "labels.txt").write_text("0\n")
    said = refusal(root=str(digit_folder), labels=str(tmp_path / "labels.txt"))
    assert "no images lie directly in the folder (10 folders)" in said


def test_a_mended_label_in_the_file_is_other_data(flat: pathlib.Path) -> None:
    def key(lines: list[int]) -> str:
        data = labelled(flat, lines)
        return entry_of(data, CLEAN, np.arange(30), Digests()).key

    assert key(TRUE) == key(TRUE)
    assert key([1, *TRUE[1:]]) != key(TRUE)


# -- images ----------------------------------------------------------------------------------------------------------------


def decoded(path: pathlib.Path) -> tuple[np.ndarray, dict[str, int]]:
    with counted() as converted:
        return decode_file(path, Geometry(), None), dict(converted)


def test_sixteen_bit_grey_is_scaled_to_eight_bits(tmp_path: pathlib.Path) -> None:
    values = np.array([[0, 257, 128 * 257 + 60, 65_535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        image, converted = decoded(tmp_path / name)
        assert image.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]
        assert converted == {"16-bit grey scaled to 8 bits": 1}


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_an_agreed_scale_are_refused(tmp_path: pathlib.Path, dtype: type, mode: str) -> None:
    Image.fromarray(np.ones((2, 2), dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=f"a.tif: image has pixels of mode {mode}"):
        decoded(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "ending", "kind"),
    [("L", "png", "greyscale"), ("1", "png", "black-and-white"), ("LA", "png", "greyscale, alpha channel dropped"),
     ("RGBA", "png", "alpha channel dropped"), ("P", "png", "palette"), ("CMYK", "jpg", "CMYK"), ("RGB", "png", "")],
)  # fmt: skip
def test_other_modes_are_converted_as_the_published_loader_does_and_counted(
    tmp_path: pathlib.Path, mode: str, ending: str, kind: str
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    path = tmp_path / f"a.{ending}"
    (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    taken, converted = decoded(path)
    assert np.array_equal(taken, expected)
    assert converted == ({kind: 1} if kind else {})
    if mode == "RGBA":
        assert np.array_equal(taken, np.asarray(image)[:, :, :3]), "the colours below the alpha channel"


def test_an_exif_orientation_is_ignored_and_counted(tmp_path: pathlib.Path) -> None:
    image, exif = Image.new("RGB", (8, 4), (9, 9, 9)), Image.Exif()
    exif[0x0112] = 6  # turn it
    image.save(tmp_path / "a.jpg", exif=exif)
    taken, converted = decoded(tmp_path / "a.jpg")
    assert taken.shape == (4, 8, 3)
    assert converted == {"EXIF orientation ignored": 1}


def announcing(side: int) -> bytes:
    """A PNG of so many pixels, of which 100 bytes follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 10_000])  # which Pillow refuses, and warns of
def test_an_image_that_announces_too_many_pixels_is_named(
    run_cli: Cli, suite_file: SuiteFile, folder: Callable[..., pathlib.Path], side: int
) -> None:
    root = folder()
    victim = sorted((root / "digit_5").iterdir())[1]
    victim.write_bytes(announcing(side))
    file = suite_file(("{kind: digits, max_images: 100}", FOLDER.format(root=root)), ("[clean, contrast]", "[clean]"))
    outcome = run_cli("run", file, "--executor", "local")
    assert outcome.code == 2
    assert f"{victim}: image is too large: " in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_image_is_named_first_or_last(folder: Callable[..., pathlib.Path], content: bytes | None) -> None:
    root = folder()
    images = sorted(root.glob("*/*"))
    for victim in (images[-1], images[0]):
        victim.write_bytes(victim.read_bytes()[:150] if content is None else content)
        with pytest.raises(UsageError, match="cannot decode image") as caught:
            pixels(opened("folder", root=str(root), **PLAIN))
        assert caught.value.problems[0].where == str(victim)


def test_conversions_are_kept_with_the_cached_images(
    folder: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    root = folder(write=lambda path, image: image.convert("P" if path.parent.name == "digit_0" else "L").save(path))
    data = opened("folder", root=str(root), **PLAIN)
    entries = [
        entry_of(data, shift, np.arange(30, dtype=np.int32), Digests()) for shift in (CLEAN, Shift("contrast", 1))
    ]
    cache = ImageCache(tmp_path / "cache")
    assert cache.converted(entries) == {}
    cache.build(entries, processes=1)
    assert ImageCache(tmp_path / "cache").converted(entries) == {"palette": 3, "greyscale": 27}
    assert ImageCache(None).converted(entries) == {}


def test_images_that_are_smaller_than_an_unresized_crop_are_refused(tmp_path: pathlib.Path) -> None:
    """Tiny-ImageNet-C in place of ImageNet-C: black borders would be added."""
    path = tmp_path / "fog" / "1" / "n01" / "a.JPEG"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(path)
    data = opened("imagenet_c", [Shift("fog", 1)], root=str(tmp_path))
    with pytest.raises(UsageError, match="image is 64x64 pixels, smaller than its crop of 224x224"):
        data.read(Shift("fog", 1), np.array([0]))


# -- arrays of CIFAR -------------------------------------------------------------------------------------------------------

CONTRAST = Shift("contrast", 3)
DIGITS = np.tile(np.arange(10_000) % 10, 5)


@pytest.fixture
def arrays(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    def call(
        labels: np.ndarray = DIGITS, shape: tuple[int, ...] = (50_000, 32, 32, 3), dtype: str = "u1"
    ) -> pathlib.Path:
        np.lib.format.open_memmap(tmp_path / "contrast.npy", "w+", np.dtype(dtype), shape)
        np.save(tmp_path / "labels.npy", labels)
        return tmp_path

    return call


@pytest.mark.parametrize(
    "labels", [DIGITS[:, None], DIGITS.astype(np.float64), DIGITS.astype(np.uint8)], ids=["column", "float", "uint8"]
)
def test_labels_in_another_form_are_read(arrays: Callable[..., pathlib.Path], labels: np.ndarray) -> None:
    data = opened("cifar_c", root=str(arrays(labels)))
    assert (data.labels.dtype, data.labels.tolist()) == (np.dtype(np.int64), DIGITS[:10_000].tolist())
    assert data.missing(CONTRAST) is None


def changed(row: int, value: float) -> np.ndarray:
    labels = DIGITS.astype(np.float64 if isinstance(value, float) else np.int64)
    labels[row::10_000] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.eye(10, dtype=np.uint8)[DIGITS], "shape (50000, 10), expected (50000,): the number of a class in each row"),
     (DIGITS + 1, "label 10 of image 9 is no class: 10 classes are 0 to 9"),
     (changed(7, -1), "label -1 of image 7 is no class"), (changed(7, 0.5), "label 0.5 of row 7 is no whole number"),
     (changed(7, float("nan")), "label nan of row 7 is no whole number"),
     (DIGITS.astype(bool), "labels must be an array of whole numbers, not bool"),
     (DIGITS[:10_000], "array has 10,000 rows, expected 50,000 (five severities)"),
     (np.roll(DIGITS, -5) * (np.arange(50_000) < 30_000), "the labels of severity 4 are not those of severity 1"),
     (np.int64(3), "array is none of rows")],
    ids=["one-hot", "from one", "negative", "fraction", "nan", "bool", "one severity", "unlike", "number"],
)  # fmt: skip
def test_labels_that_are_no_classes_are_refused_while_planning(
    arrays: Callable[..., pathlib.Path], labels: np.ndarray, says: str
) -> None:
    said = refusal("cifar_c", root=str(arrays(labels)))
    assert f"{arrays(labels) / 'labels.npy'}: " in said
    assert says in said


def test_the_hint_knows_labels_from_one_and_those_of_the_other_cifar(arrays: Callable[..., pathlib.Path]) -> None:
    assert "labels count from 0: subtract 1" in refusal("cifar_c", root=str(arrays(DIGITS + 1)))
    assert "those of CIFAR-10-C?" in refusal("cifar_c", root=str(arrays()), classes=100)


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [((50_000, 3, 32, 32), "u1", "images have shape (50000, 3, 32, 32), expected (50000, 32, 32, 3)\n  hint: its planes"),
     ((50_000, 64, 64, 3), "u1", "images have shape (50000, 64, 64, 3)"), ((50_000, 32, 32), "u1", "shape (50000, 32, 32)"),
     ((10_000, 32, 32, 3), "u1", "array has 10,000 rows"), ((50_000, 32, 32, 3), "f4", "images are of float32"),
     ((50_000, 32, 32, 3), "i8", "images are of int64, expected uint8 from 0 to 255")],
)  # fmt: skip
def test_arrays_of_other_images_are_refused(
    arrays: Callable[..., pathlib.Path], shape: tuple[int, ...], dtype: str, says: str
) -> None:
    root = arrays(shape=shape, dtype=dtype)
    problem = opened("cifar_c", root=str(root)).missing(CONTRAST)
    assert problem is not None
    assert problem.where == str(root / "contrast.npy")
    assert says in str(problem)


@pytest.mark.parametrize("size", [0, 5, 100, 1000])
@pytest.mark.parametrize("name", ["contrast.npy", "labels.npy"])
def test_a_broken_download_is_one_message_that_names_the_file(
    run_cli: Cli, suite_file: SuiteFile, arrays: Callable[..., pathlib.Path], name: str, size: int
) -> None:
    root = arrays()
    os.truncate(root / name, size)
    file = suite_file(("{kind: digits, max_images: 100}", f"{{kind: cifar_c, root: {root}}}"),
                      ("[clean, contrast]", "[contrast]"))  # fmt: skip
    outcome = run_cli("run", file, "--executor", "local", "--dry-run")
    assert outcome.code == 2
    assert f"({root / name})" in outcome.err
    assert f"({size:,} bytes)" in outcome.err
    assert "1 problem; nothing was run" in outcome.err


def test_other_images_of_the_same_size_are_other_trials(
    suite_file: SuiteFile, arrays: Callable[..., pathlib.Path]
) -> None:
    root = arrays()
    file = suite_file(("{kind: digits, max_images: 100}", f"{{kind: cifar_c, root: {root}, max_images: 20}}"),
                      ("[clean, contrast]", "[contrast]"))  # fmt: skip

    def keys() -> list[str]:
        return [trial.key for trial in plan.make(suite.load(str(file))).trials]

    before = keys()
    images = np.load(root / "contrast.npy", mmap_mode="r+")
    images[:] = 255
    images.flush()
    negative = keys()
    np.save(root / "labels.npy", 9 - DIGITS)
    assert not {*before} & {*negative}
    assert not {*before, *negative} & {*keys()}


def test_an_archive_of_other_images_is_refused(arrays: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    records = np.zeros((20, 3073), dtype=np.uint8)
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("test_batch.bin", "data_batch_1.bin"):
        (archive / name).write_bytes(records.tobytes())
    said = refusal("cifar_c", root=str(arrays()), archive=str(archive))
    assert "the labels of the archive's test images are not those of labels.npy" in said
    records[3, 0] = 10
    (archive / "test_batch.bin").write_bytes(records.tobytes())
    with pytest.raises(UsageError, match="label 10 of image 3 is no class"):
        read_archive(str(archive), 10, "test")


# -- ImageNet-C's tree -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for shift in ("contrast", "fog", "snow"):
        for image in ("n01/a.JPEG", "n01/b.JPEG", "n02/c.JPEG", "n02/d.JPEG"):
            path = tmp_path / "c" / shift / "1" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return tmp_path / "c"


SHIFTS = [Shift(name, 1) for name in ("contrast", "fog", "snow")]


@pytest.mark.parametrize("incomplete", [0, 1, 2])
def test_an_incomplete_corruption_is_named_and_no_other(tree: pathlib.Path, incomplete: int) -> None:
    (tree / SHIFTS[incomplete].name / "1" / "n02" / "d.JPEG").unlink()
    data = opened("imagenet_c", SHIFTS, root=str(tree))
    problems = [data.missing(shift) for shift in SHIFTS]
    [problem] = [each for each in problems if each]
    assert problems.index(problem) == incomplete
    assert "1 of 4 images are missing, the first is n02/d.JPEG" in problem.message
    assert problem.where == str(tree / SHIFTS[incomplete].name / "1")
    if incomplete == 0:
        assert problem.hint.startswith("fog-1 has them")


def test_the_same_images_in_all_corruptions_are_a_subset(tree: pathlib.Path) -> None:
    for shift in SHIFTS:
        (tree / shift.name / "1" / "n02" / "d.JPEG").unlink()
    data = opened("imagenet_c", SHIFTS, root=str(tree))
    assert [data.missing(shift) for shift in SHIFTS] == [None] * 3
    assert len(data.ids) == 3


def test_what_any_corruption_leaves_out_is_found(tree: pathlib.Path) -> None:
    (tree / "fog" / "1" / "n01" / "x.gif").write_bytes(b"")
    first, second = opened("imagenet_c", SHIFTS, root=str(tree)).found()
    assert (first.images, first.classes, first.left_out) == (4, ("n01", "n02"), {})
    assert second == Found(str(tree / "fog" / "1"), 4, (), {".gif": 1})


@pytest.mark.parametrize("cause", ["archive", "by archive", "above", "below"])
def test_a_tree_in_another_place_is_mended(tree: pathlib.Path, cause: str) -> None:
    root, shift = tree, SHIFTS[0]
    if cause == "archive":
        (root / "digital.tar").write_bytes(b"")
        shutil.rmtree(root / "contrast")
        wanted = f"unpack it: tar -xf {root}/digital.tar -C {root}"
    elif cause == "by archive":
        (root / "digital").mkdir()
        (root / "contrast").rename(root / "digital" / "contrast")
        wanted = f"corruptions lie in digital: name that folder if all do, or move them up: mv {root}/digital/* {root}"
    elif cause == "above":
        root, wanted = tree.parent, "corruptions lie in c: name that folder if all do"
    else:
        root, wanted = tree / "contrast", f"this is the folder of one corruption: name the folder above, {tree}"
    with pytest.raises(UsageError) as caught:
        opened("imagenet_c", [shift], root=str(root))
    assert wanted in str(caught.value)


# -- every kind of data, every model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "says"),
    [("test.labels + 1", "label 10 of image"), ("test.labels / 1", "labels must be an array of whole numbers, not float64"),
     ("test.labels[:, None]", "labels have shape (1000, 1)"), ("test.labels[1:]", "999 labels for 1000 images")],
)  # fmt: skip
def test_labels_of_any_kind_of_data_are_checked(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, labels: str, says: str
) -> None:
    (tmp_path / "odd.py").write_text(f"""
from tta_bench.data.kinds.digits import Digits

class Odd(Digits):
    \"\"\"Digits with odd labels.\"\"\"
    name = "odd"

    def __init__(self, config, request):
        super().__init__(config, request)
        test = self
        self.labels = {labels}
""")
    file = suite_file(("kind: digits", "kind: odd"))
    outcome = run_cli("run", file, "--executor", "local", "--dry-run", "--plugin", tmp_path / "odd.py")
    assert outcome.code == 2
    assert says in outcome.err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("mean: [0.3, 0.3, 0.3]", "mean: [123.7, 116.3, 103.5]", "mean [123.7, 116.3, 103.5] is not within [0, 1]"),
     ("std: [0.36, 0.36, 0.36]", "std: [58.4, 57.1, 57.4]", "std [58.4, 57.1, 57.4] is not within (0, 1]"),
     ("std: [0.36, 0.36, 0.36]", "std: [0.36, 0, 0.36]", "std [0.36, 0.0, 0.36] is not within (0, 1]"),
     ("mean: [0.3, 0.3, 0.3]", "mean: [-0.3, 0.3, 0.3]", "mean [-0.3, 0.3, 0.3] is not within [0, 1]")],
)  # fmt: skip
def test_normalisation_on_another_scale_is_refused(
    run_cli: Cli, suite_file: SuiteFile, old: str, new: str, says: str
) -> None:
    outcome = run_cli("run", suite_file((old, new)), "--executor", "local", "--dry-run")
    assert outcome.code == 2
    assert says in outcome.err
    assert ("Divide them by 255?" in outcome.err) == (max(map(float, new[new.index("[") + 1 : -1].split(","))) > 1)


@pytest.mark.parametrize("value", [-0.1, 100.5, -9900.0, float("nan")])
def test_no_error_below_nought_or_above_a_hundred_per_cent_is_recorded(value: float) -> None:
    said = [*schema.fact_faults(schema.Shift, {"error_pct": value})]
    assert said == [f"error_pct is {value!r}, not between 0 and 100"]
    assert [*schema.fact_faults(schema.Shift, {"error_pct": 100.0, "error_after_pct": None})] == []
