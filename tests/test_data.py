"""Images: folders, ImageNet-C trees, CIFAR arrays, the digits; geometry; fingerprints; the cache."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from conftest import clean_environment
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from tta_bench.data import DataRequest, Dataset, open_data
from tta_bench.data.cache import CacheEntry, Direct, ImageCache, Images, entry_of
from tta_bench.data.corrupt.corruptions import corrupt, image_seed
from tta_bench.data.corrupt.strengths import Strengths
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import IMAGENET_C_GEOMETRY, IMAGENET_GEOMETRY, Geometry, recompress
from tta_bench.data.images import listing
from tta_bench.data.kinds.cifar_c import read_archive
from tta_bench.data.kinds.digits import load_split
from tta_bench.errors import UsageError
from tta_bench.registry import DATASETS, installed
from tta_bench.streams import CLEAN, COMPOUND, Shift
from tta_bench.suite.loader import configured

CONTRAST = Shift("contrast", 5)
ROWS = np.arange(6, dtype=np.int32)


def opened(kind: str, shifts: Iterable[Shift] = (), **values: object) -> Dataset:
    """The data set that a suite with these values would have."""
    config: Any = configured(DATASETS, {"kind": kind, **values}, installed())
    return open_data(config, DataRequest(tuple(shifts)), installed())


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small ImageNet-C tree and its clean validation folder, from a real photo."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    for wnid in ("n01", "n02"):
        for number in range(2):
            clean = photo.crop((number * 40, 0, number * 40 + 400, 300))
            for folder in ("val", "c/contrast/5", "c/fog/3"):
                path = tmp_path / folder / wnid / f"ILSVRC2012_val_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                (clean if folder == "val" else clean.crop((0, 0, 256, 256))).save(path, quality=95)
    return tmp_path


def test_imagenet_c_is_cropped_and_clean_images_are_resized(tree: pathlib.Path) -> None:
    data = opened("imagenet_c", [CONTRAST], root=str(tree / "c"), source=str(tree / "val"))
    assert (data.num_classes, data.side, data.labels.tolist()) == (2, 224, [0, 0, 1, 1])
    stored = np.asarray(Image.open(tree / "c" / "contrast" / "5" / "n02" / "ILSVRC2012_val_0.JPEG"))
    assert np.array_equal(data.read(CONTRAST, np.array([2]))[0], stored[16:240, 16:240]), "centre crop, no resize"
    clean = Image.open(tree / "val" / "n02" / "ILSVRC2012_val_0.JPEG").resize((341, 256), Image.Resampling.BILINEAR)
    assert np.array_equal(data.read(CLEAN, np.array([2]))[0], np.asarray(clean)[16:240, 58:282])


def test_geometry_is_torchvisions(shared: pathlib.Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    paths = sorted((shared / "data" / "imagenet_sample" / "val").glob("*/*"))[:20]
    for path in paths:
        image = Image.open(path).convert("RGB")
        assert np.array_equal(np.asarray(resize(image)), np.asarray(IMAGENET_GEOMETRY.apply(image)))


def test_a_tree_that_lacks_images_of_a_shift_names_the_first(tree: pathlib.Path) -> None:
    (tree / "c" / "fog" / "3" / "n02" / "ILSVRC2012_val_1.JPEG").unlink()
    listing.cache_clear()
    data = opened("imagenet_c", [CONTRAST], root=str(tree / "c"))
    assert data.missing(CONTRAST) is None
    problem = data.missing(Shift("fog", 3))
    assert problem is not None
    assert "1 of 4 images are missing, the first is n02/ILSVRC2012_val_1.JPEG" in problem.message
    assert "no folder for snow-5" in str(data.missing(Shift("snow", 5)))
    assert "no clean images" in str(data.missing(CLEAN))


def test_fingerprints_do_not_depend_on_where_the_data_lie(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def fingerprint(folder: pathlib.Path) -> object:
        listing.cache_clear()
        data = opened("imagenet_c", [CONTRAST], root=str(folder))
        return data.fingerprint(CONTRAST, np.arange(4), Digests())

    shutil.copytree(tree / "c", tmp_path / "moved")
    before = fingerprint(tree / "c")
    assert fingerprint(tmp_path / "moved") == before
    assert str(tmp_path) not in str(before)
    with open(tree / "c" / "contrast" / "5" / "n01" / "ILSVRC2012_val_0.JPEG", "ab") as stream:
        stream.write(b"x")
    assert fingerprint(tree / "c") != before


def test_digits_are_called_corrupted_and_images_of_a_benchmark_not_its_own(digit_folder: pathlib.Path) -> None:
    assert opened("digits", [CLEAN]).note == "corrupted with the strengths of CIFAR-10-C"
    assert opened("folder", [CLEAN], root=str(digit_folder)).note == "generated, not ImageNet-C"


def test_a_generated_shift_is_identified_by_all_that_makes_it(digit_folder: pathlib.Path) -> None:
    def fingerprint(**options: object) -> object:
        part = {"root": str(digit_folder), "preprocess": "none", "strengths": "cifar", **options}
        return opened("folder", **part).fingerprint(CONTRAST, ROWS, Digests())

    assert fingerprint() == fingerprint()
    for change in ({"seed": 1}, {"strengths": "imagenet"}, {"recompress_jpeg": 85}):
        assert fingerprint(**change) != fingerprint()


def test_recompression_is_a_jpeg_round_trip_of_corrupted_images_only(digit_folder: pathlib.Path) -> None:
    part = {"root": str(digit_folder), "preprocess": "none", "strengths": "cifar"}
    plain = opened("folder", **part)
    pressed = opened("folder", **part, recompress_jpeg=10)
    assert not np.array_equal(plain.read(CONTRAST, ROWS), pressed.read(CONTRAST, ROWS))
    assert np.array_equal(plain.read(CLEAN, ROWS), pressed.read(CLEAN, ROWS))


@pytest.mark.parametrize("strengths", ["cifar", "imagenet"])
def test_a_compound_is_one_corruption_after_another(digit_folder: pathlib.Path, strengths: Strengths) -> None:
    part = {"root": str(digit_folder), "preprocess": "none", "strengths": strengths}
    plain, pressed = opened("folder", **part), opened("folder", **part, recompress_jpeg=85)
    both = Shift.compound(Shift("elastic", 1.5), Shift("gaussian_noise", 2.0))
    made, recompressed, clean = plain.read(both, ROWS), pressed.read(both, ROWS), plain.read(CLEAN, ROWS)
    for row, id in enumerate(plain.ids[:6]):
        first, second = image_seed(id, "elastic_transform", 1.5, 0), image_seed(id, "gaussian_noise", 2, 0)
        once = corrupt(clean[row], "elastic_transform", 1.5, strengths=strengths, seed=first)
        expected = corrupt(once, "gaussian_noise", 2, strengths=strengths, seed=second)
        assert np.array_equal(made[row], expected)
        assert np.array_equal(recompressed[row], recompress(expected, 85)), "once, after both"
    alone = Shift.compound(Shift("contrast", 5.0))
    assert np.array_equal(plain.read(alone, ROWS), plain.read(CONTRAST, ROWS)), "the same image as of the shift alone"


def test_stored_images_show_no_compounds(tree: pathlib.Path, digit_folder: pathlib.Path) -> None:
    problem = opened("imagenet_c", [CONTRAST], root=str(tree / "c")).missing(COMPOUND)
    assert "ImageNet-C has one published corruption at a time" in str(problem)
    assert "such as folder or digits" in str(problem)
    small = opened("folder", root=str(digit_folder), preprocess="none", strengths="cifar")
    assert small.missing(COMPOUND) is None
    large = opened("folder", root=str(tree / "val"), strengths="cifar")
    assert "for 32x32 images" in str(large.missing(COMPOUND))


def test_cifar_arrays_are_read_by_severity(tmp_path: pathlib.Path) -> None:
    images = np.lib.format.open_memmap(tmp_path / "fog.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3))
    images[:, 0, 0, 0] = np.repeat([1, 2, 3, 4, 5], 10_000)
    images[:, 0, 0, 1] = np.tile(np.arange(10_000) % 251, 5)
    images.flush()
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10_000) % 10, 5))
    data = opened("cifar_c", root=str(tmp_path))
    taken = data.read(Shift("fog", 4), np.array([0, 300]))
    assert taken[:, 0, 0, 0].tolist() == [4, 4]
    assert taken[:, 0, 0, 1].tolist() == [0, 49]
    assert data.labels[:12].tolist() == [*range(10), 0, 1]
    assert len(data.labels) == 10_000
    assert isinstance(ImageCache(tmp_path / "unused").images(CacheEntry(data, Shift("fog", 4), ROWS, "")), Images)
    assert not (tmp_path / "unused").exists(), "arrays are mapped where they lie"
    assert "no snow.npy" in str(data.missing(Shift("snow", 1)))
    assert "no clean images" in str(data.missing(CLEAN))


def test_cifars_binary_archive_gives_clean_and_source_images(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], planes.reshape(20, -1)], axis=1)
    (tmp_path / "test_batch.bin").write_bytes(records[:15].tobytes())
    (tmp_path / "data_batch_1.bin").write_bytes(records[15:].tobytes())
    test = read_archive(str(tmp_path), 10, "test")
    assert np.array_equal(test.decode(3), planes[3].transpose(1, 2, 0))
    assert test.labels.tolist() == labels[:15].tolist()
    assert len(read_archive(str(tmp_path), 10, "train").ids) == 5
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UsageError, match="damaged"):
        read_archive(str(tmp_path), 10, "test")


def test_the_digits_split_is_disjoint_and_whole() -> None:
    test = opened("digits")
    source = test.source
    assert source is not None
    assert (len(test.ids), len(source.ids)) == (1000, 797)
    assert not set(test.ids) & set(source.ids)


def test_images_of_another_size_are_named(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(digit_folder, tmp_path / "mixed")
    odd = sorted((tmp_path / "mixed" / "digit_1").iterdir())[0]
    Image.new("RGB", (40, 40)).save(odd)
    data = opened("folder", root=str(tmp_path / "mixed"), preprocess="none", strengths="cifar")
    with pytest.raises(UsageError, match="image is 40x40 pixels, expected 32x32") as caught:
        data.read(CLEAN, np.arange(30))
    assert caught.value.problems[0].where == str(odd)


def test_geometries() -> None:
    image = Image.new("RGB", (300, 400))
    assert Geometry().apply(image).size == (300, 400)
    assert IMAGENET_C_GEOMETRY.apply(image).size == (224, 224)


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def entry() -> CacheEntry:
    rows = np.array([3, 5, 8], dtype=np.int32)
    return entry_of(opened("digits"), CONTRAST, rows, Digests())


def test_a_cached_image_is_the_image_that_was_made(entry: CacheEntry, tmp_path: pathlib.Path) -> None:
    cached = ImageCache(tmp_path).images(entry)
    direct = ImageCache(None).images(entry)
    assert isinstance(cached, Images)
    assert isinstance(direct, Direct)
    index = np.array([8, 3, 8])
    assert np.array_equal(cached.take(index), direct.take(index))
    assert len(cached.pixels) == 3, "only the images that are used"


def test_an_entry_is_made_once(entry: CacheEntry, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ImageCache(tmp_path)
    assert cache.to_build([entry]) == [entry]
    cache.build([entry], processes=1)
    assert cache.to_build([entry]) == []
    monkeypatch.setattr(type(entry.dataset), "read", lambda *_: pytest.fail("decoded again"))
    ImageCache(tmp_path).images(entry)


@pytest.mark.parametrize("damage", ["pixels", "cut", "meta", "no meta", "other shape"])
def test_a_damaged_entry_is_made_again_and_never_used(entry: CacheEntry, tmp_path: pathlib.Path, damage: str) -> None:
    cache = ImageCache(tmp_path)
    cache.build([entry], processes=1)
    good = cache.images(entry).take(entry.rows).copy()
    file, meta = tmp_path / entry.key / "images.npy", tmp_path / entry.key / "meta.json"
    content = file.read_bytes()
    if damage == "pixels":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "meta":
        meta.write_text(meta.read_text()[:10])
    elif damage == "no meta":
        meta.unlink()
    else:
        np.save(file, np.zeros((2, 32, 32, 3), dtype=np.uint8))
    assert cache.to_build([entry]) == [entry]
    cache.build([entry], processes=1)
    assert cache.to_build([entry]) == []
    assert np.array_equal(cache.images(entry).take(entry.rows), good)
    assert [p.name for p in tmp_path.iterdir()] == [entry.key], "nothing else is left behind"


def test_an_entry_is_stale_when_a_file_was_replaced(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def key() -> str:
        listing.cache_clear()
        data = opened("folder", root=str(tmp_path / "copy"), preprocess="none", strengths="cifar")
        return entry_of(data, CONTRAST, ROWS, Digests()).key

    shutil.copytree(digit_folder, tmp_path / "copy")
    before = key()
    first, second = sorted((tmp_path / "copy").glob("digit_0/*"))[:2]
    os.utime(first, (1, 1))
    assert key() == before, "the same content, written again"
    first.write_bytes(second.read_bytes())
    assert key() != before


def _build(root: pathlib.Path, pickled: bytes) -> None:
    ImageCache(root).build([pickle.loads(pickled)], processes=1)


@pytest.mark.faults
def test_processes_may_make_one_entry_at_the_same_time(entry: CacheEntry, tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_build, args=(tmp_path, pickle.dumps(entry))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [entry.key]
    assert ImageCache(tmp_path).to_build([entry]) == []


def test_several_processes_make_the_same_pixels_as_one(tmp_path: pathlib.Path) -> None:
    data = opened("digits")
    rows = np.arange(1000, dtype=np.int32)
    entries = [entry_of(data, Shift("impulse_noise", s), rows, Digests()) for s in (1, 2)]
    for folder, processes in (("one", 1), ("two", 2)):
        ImageCache(tmp_path / folder).build(entries, processes)
    for e in entries:
        one, two = (np.load(tmp_path / f / e.key / "images.npy") for f in ("one", "two"))
        assert np.array_equal(one, two)


def test_decoding_processes_do_not_import_torch() -> None:
    code = "import sys, tta_bench.data.cache; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=False).returncode == 0


def test_the_digits_are_those_of_scikit_learn() -> None:
    given, split = load_digits(), load_split()
    for images, labels, ids in (split[:3], split[3:]):
        np.testing.assert_array_equal(labels, given.target[ids])
        means = images.mean((1, 2, 3)) * 16 / 255  # enlarging keeps them, but for rounding and overshoot
        np.testing.assert_allclose(means, given.images[ids].mean((1, 2)), atol=0.4)
    assert sorted([*split.train_ids, *split.test_ids]) == list(range(1797))
