"""The scripts in benchmarks/ that train source models, the weights that ship, and the digits held out from them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import json
import pathlib
import sys
import tarfile
import threading
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tta_bench.data.kinds.cifar_c import read_archive
from tta_bench.data.kinds.digits import load_split
from tta_bench.errors import UsageError
from tta_bench.models import load_weights
from tta_bench.networks.from_timm import ModelSpec, build_network, load
from tta_bench.networks.state_files import read_state

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHIVE = "cifar-10-binary.tar.gz"


@functools.cache
def script(name: str) -> ModuleType:
    """The module of ``benchmarks/<name>.py``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as when the script is run
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def records(count: int, seed: int) -> np.ndarray:
    """uint8 (count, 3073): labels 0..9 in turn, then random planes R, G, B."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)[:, None]
    return np.concatenate([labels, rng.integers(0, 256, (count, 3072), dtype=np.uint8)], axis=1)


@pytest.fixture
def tiny_archive(tmp_path: pathlib.Path) -> pathlib.Path:
    """A .tar.gz in the published binary form, with 64 training and 20 test images."""
    folder = tmp_path / "made" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    records(32, 0).tofile(folder / "data_batch_1.bin")
    records(32, 1).tofile(folder / "data_batch_2.bin")
    records(20, 2).tofile(folder / "test_batch.bin")
    path = tmp_path / ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[str]:
    """The address of a web server for ``tmp_path``."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_the_published_archive_is_what_is_downloaded() -> None:
    cifar = script("train_cifar10")
    assert cifar.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert cifar.MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


def test_archive_is_unpacked_once_and_read(tiny_archive: pathlib.Path) -> None:
    folder = script("train_cifar10").archive_folder(tiny_archive)
    assert sorted(p.name for p in folder.iterdir()) == ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]
    tiny_archive.write_bytes(b"")  # never read again
    assert script("train_cifar10").archive_folder(tiny_archive) == folder
    assert script("train_cifar10").archive_folder(folder) == folder
    assert script("train_cifar10").archive_folder(folder.parent) == folder
    images = read_archive(str(folder), 10, "train")
    expected = records(32, 1)[3, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(images.decode(35), expected)
    assert list(images.labels[:11]) == [*range(10), 0]


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_damaged_archive_is_named_and_leaves_nothing(tiny_archive: pathlib.Path, content: bytes | None) -> None:
    whole = tiny_archive.read_bytes()
    tiny_archive.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UsageError, match=ARCHIVE) as caught:
        script("train_cifar10").archive_folder(tiny_archive)
    assert "cannot unpack" in str(caught.value)
    assert sorted(p.name for p in tiny_archive.parent.iterdir()) == [ARCHIVE, "made"]


def test_missing_archive_exits_2_with_a_hint(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = script("train_cifar10").main(["--archive", str(tmp_path / "none.tar.gz"), "--out", str(tmp_path)])
    assert code == 2
    message = capsys.readouterr().err
    assert "no such archive" in message
    assert "--download" in message


def test_neither_out_nor_export_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script("train_cifar10").main(["--archive", str(tmp_path)])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_download_checks_and_keeps_the_archive(tiny_archive: pathlib.Path, server: str, tmp_path: pathlib.Path) -> None:
    cifar, md5 = script("train_cifar10"), hashlib.md5(tiny_archive.read_bytes()).hexdigest()
    path = cifar.download(tmp_path / "to", f"{server}/{ARCHIVE}", md5)
    assert path.read_bytes() == tiny_archive.read_bytes()
    assert cifar.download(tmp_path / "to", "http://127.0.0.1:9/" + ARCHIVE, md5) == path  # there already: not fetched


def test_md5_mismatch_names_both_sums(tiny_archive: pathlib.Path, server: str, tmp_path: pathlib.Path) -> None:
    cifar, found = script("train_cifar10"), hashlib.md5(tiny_archive.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="published is") as caught:
        cifar.download(tmp_path / "to", f"{server}/{ARCHIVE}")
    assert found in str(caught.value)
    assert cifar.MD5 in str(caught.value)
    assert not list((tmp_path / "to").iterdir())


def test_failed_download_names_the_address(server: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"cannot download.*404") as caught:
        script("train_cifar10").download(tmp_path / "to", f"{server}/nothing.tar.gz")
    assert f"{server}/nothing.tar.gz" in str(caught.value)


def test_export_writes_image_folders(tiny_archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert script("train_cifar10").main(["--archive", str(tiny_archive), "--export", str(tmp_path / "images")]) == 0
    files = sorted((tmp_path / "images").rglob("*.*"))
    assert len(files) == 64 + 20
    with Image.open(tmp_path / "images" / "test" / "cat" / "00013.png") as image:
        assert np.array_equal(np.asarray(image), records(20, 2)[13, 1:].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["resnet18_bn", "vit_tiny"])
def test_one_epoch_writes_weights_that_fit(name: str, tiny_archive: pathlib.Path, tmp_path: pathlib.Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    cifar = script("train_cifar10")
    options = ["--model", name, "--epochs", "1", "--limit-train", "48"]
    assert cifar.main(["--archive", str(tiny_archive), "--out", str(tmp_path / "out"), *options]) == 0
    assert f"cifar10_{name}: epoch 1/1, test " in capsys.readouterr().out
    path = tmp_path / "out" / f"cifar10_{name}.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    state = read_state(path)
    assert {v.dtype for v in state.values()} <= {torch.float16, torch.int64}
    assert all(v.isfinite().all() for v in state.values())
    build_network(cifar.RECIPES[name].spec).load_state_dict(state, strict=True)


def test_groupnorm_model_has_no_batchnorm() -> None:
    net = build_network(script("train_cifar10").RECIPES["resnet18_gn"].spec)
    kinds = {type(m).__name__ for m in net.modules()}
    assert any("GroupNorm" in kind for kind in kinds)
    assert not any("BatchNorm" in kind for kind in kinds)


def test_crops_and_flips_come_from_the_padded_image() -> None:
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1  # padding is 0, nothing else is
    out = script("train_cifar10").crop_and_flip(x, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    for image, source in zip(out, padded, strict=True):
        windows = [source[:, r : r + 32, c : c + 32] for r in range(9) for c in range(9)]
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(2)) for w in windows)


def test_mixed_targets_match_the_pixels() -> None:
    x = torch.eye(8).view(8, 8, 1, 1).expand(8, 8, 32, 32)  # image i is 1 in channel i, so a mean is a share
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mixed, targets = script("train_cifar10").mix(x, torch.eye(8), generator)
        assert torch.allclose(mixed.mean(dim=(2, 3)), targets, atol=1e-5)


def test_digits_parts_are_disjoint_and_whole() -> None:
    split = load_split()
    assert not set(split.train_ids) & set(split.test_ids)
    assert sorted([*split.train_ids, *split.test_ids]) == list(range(1797))
    assert (split.train_images.shape, split.test_images.shape) == ((797, 32, 32, 3), (1000, 32, 32, 3))
    assert {a.dtype for a in split} == {np.dtype(np.uint8), np.dtype(np.int64)}
    assert np.array_equal(load_split().test_images, split.test_images)
    train, test = ({row.tobytes() for row in part} for part in (split.train_images, split.test_images))
    assert not train & test


@pytest.mark.parametrize(("name", "least_pct"), [("digits_resnet_bn", 98.0), ("digits_vit_ln", 98.0)])
def test_shipped_weights_load_strictly_and_classify(name: str, least_pct: float) -> None:
    digits, split = script("train_digits"), load_split()
    recipe = next(r for r in digits.RECIPES if r.spec.name == name)
    path = digits.WEIGHTS / f"{name}.safetensors"
    build_network(recipe.spec).load_state_dict(read_state(path), strict=True)
    images, labels = digits.as_tensor(split.test_images), torch.tensor(split.test_labels)
    assert digits.accuracy_pct(recipe.spec, path, images, labels) >= least_pct


def test_the_groupnorm_network_of_the_pinned_runs_classifies() -> None:
    digits, split = script("train_digits"), load_split()
    [recipe] = digits.UNSHIPPED
    path = ROOT / "tests" / "pinned" / f"{recipe.spec.name}.safetensors"
    images, labels = digits.as_tensor(split.test_images), torch.tensor(split.test_labels)
    assert digits.accuracy_pct(recipe.spec, path, images, labels) >= 98.0
    assert path.stat().st_size < 5e5


def test_shipped_weights_say_how_to_use_them() -> None:
    digits = script("train_digits")
    for recipe in digits.RECIPES:
        path = digits.WEIGHTS / f"{recipe.spec.name}.safetensors"
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["source_model"])
        assert about["options"] == recipe.spec.options
        assert (tuple(about["mean"]), tuple(about["std"])) == (recipe.spec.mean, recipe.spec.std)
        model = load(
            ModelSpec(name="from-metadata", weights=f"package:tta_bench.data.kinds/weights/{path.name}", **about)
        )
        assert model.num_classes == 10


def test_shipped_weights_are_small() -> None:
    sizes = [p.stat().st_size for p in (ROOT / "tta_bench" / "data" / "kinds" / "weights").glob("digits_*.safetensors")]
    assert len(sizes) == 2
    assert sum(sizes) < 1.5e6


def test_digits_training_repeats_its_bytes(tmp_path: pathlib.Path) -> None:
    digits = script("train_digits")
    torch.use_deterministic_algorithms(True)
    recipe = dataclasses.replace(digits.RECIPES[1], epochs=1, batch_size=32)
    images, labels = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    for run in ("first", "second"):
        digits.write_weights(digits.train(recipe, images, labels, seed=0), recipe.spec, tmp_path / f"{run}.safetensors")
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    load_weights(build_network(recipe.spec), read_state(tmp_path / "first.safetensors"), "first")
