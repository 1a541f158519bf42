"""Bad suites: each problem placed, all of them at once, nothing written. Good ones: what they resolve to."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DIGITS_SUITE, Outcome, clean_environment
from PIL import Image

from tta_bench import suite
from tta_bench.errors import UsageError
from tta_bench.streams import CLEAN, Shift

SuiteFile = Callable[..., pathlib.Path]
Cli = Callable[..., Outcome]

FOLDER = "data: {{kind: folder, root: {root}, strengths: cifar, preprocess: none}}"
DIGITS = "data: {kind: digits, max_images: 100}"

BAD = {
    "unknown key": ("severities: [5]", "severties: [5]", "unknown key 'severties' in suite", "did you mean 'severities'?"),
    "duplicate key": ("seeds: [0]", "seeds: [0]\nseeds: [1]", "duplicate key 'seeds'", "first given on line 15"),
    "wrong type": ("batch_size: 40", "batch_size: lots", "batch_size: Input should be a valid integer", ""),
    "bool for a number": ("batch_size: 40", "batch_size: true", "batch_size: Input should be a valid integer", ""),
    "unknown method": ("[source, tent]", "[source, tnet]", "unknown method 'tnet'", "did you mean 'tent'?"),
    "unknown corruption": ("[clean, contrast]", "[clean, contrats]", "unknown corruption 'contrats'", "did you mean 'contrast'?"),
    "severity 6": ("severities: [5]", "severities: [5, 6]", "severities.1: Input should be less than or equal to 5", ""),
    "unknown data kind": ("kind: digits", "kind: digit", "digit", "did you mean 'digits'?"),
    "missing key": ("name: small\n", "", "missing key 'name' in suite", ""),
    "unknown hyperparameter": ("[source, tent]", "[{name: tent, config: {lrr: 0.1}}]", "unknown key 'lrr'", "did you mean 'lr'?"),
    "wrong hyperparameter": ("[source, tent]", "[{name: tent, config: {lr: fast}}]", "lr: Input should be a valid number", ""),
    "unknown optimizer": ("[source, tent]", "[{name: tent, config: {optimizer: sdg}}]", "unknown optimizer 'sdg'", "sgd"),
    "unknown model in per_model": ("[source, tent]", "[{name: tent, per_model: {resnet: {lr: 0.1}}}]", "unknown model 'resnet'", "did you mean 'resnet_bn'?"),
    "label twice": ("[source, tent]", "[tent, tent]", "two methods have the label 'tent'", "label"),
    "unknown protocol": ("batch_size: 40", "batch_size: 40\nprotocol: {kind: rest}", "rest", "did you mean 'reset'?"),
    "part of a batch": ("batch_size: 40", "batch_size: 40\nprotocol: {adapt_images: [40, 50]}", "adapt_images 50 is not a whole number of batches of 40", "for example 80"),
    "no number": ("batch_size: 40", "batch_size: 40\nprotocol: {adapt_images: many}", "give a number of images, or all", ""),
    "nothing left to grade": ("batch_size: 40", "batch_size: 20\nprotocol: {adapt_images: 100}", "adapt_images 100 leaves none of 100 images of segment clean to grade", "more images"),
    "missing data root": (DIGITS, FOLDER.format(root="/nowhere/at/all"), "no such folder: /nowhere/at/all", ""),
    "unset variable": (DIGITS, FOLDER.format(root='"${NOT_SET_ANYWHERE}/x"'), "the variable NOT_SET_ANYWHERE is not set", "export"),
    "class count": ("num_classes: 10", "num_classes: 12", "weights do not fit the model", "number of classes"),
    "image size": ("stem: cifar", "stem: cifar\n    image_size: 224", "takes 224x224 images, digits-C has 32x32", "another model"),
    "missing weights": ("digits_resnet_bn.s", "digits_resnet.s", "no such weights file", ""),
    "missing weights package": ("package:tta_bench.data.kinds/", "package:no_such_package/", "'no_such_package' with the weights", "pip install no-such-package"),
    "unknown preset": ("stem: cifar", "stem: cifar\n    preset: cifar1O", "no method has a preset 'cifar1O'", "did you mean 'cifar10'?"),
    "data without kind": ("kind: digits, ", "", "missing key 'kind' in data", "one of: cifar10_1, cifar_c, digits, domains, folder, imagenet, imagenet_c"),
    "a list is missing": ("severities: [5]", "severities: 5", "severities: Input should be a list", ""),
    "two means": ("mean: [0.3, 0.3, 0.3]", "mean: [0.3, 0.3]", "models.0.mean: item 3 of the list is missing", ""),
    "unknown architecture": ("architecture: resnet18", "architecture: resnet188", "Unknown model (resnet188)", "options"),
    "unknown option": ("layers: [1, 1, 1, 1]", "layerz: [1, 1, 1, 1]", "unexpected keyword argument 'layerz'", "options"),
    "a name that leaves results": ("name: small", 'name: ".."', "name: give at most 100 letters", "the run's folder, results/<name>"),
    "a hidden name": ("name: small", "name: .small", "name: give at most 100 letters", ""),
    "a long name": ("name: small", f"name: {'x' * 101}", "name: give at most 100 letters", ""),
    "blank label": ("[source, tent]", "[{name: tent, label: ' '}]", "label: the label is empty, or begins or ends with a space", ""),
    "empty label": ("[source, tent]", "[{name: tent, label: ''}]", "label: the label is empty", ""),
    "long label": ("[source, tent]", f"[{{name: tent, label: {'x' * 300}}}]", "label: the label is longer than 100 characters", ""),
    "invisible label": ("[source, tent]", '[{name: tent, label: "a\\u202eb"}]', "cannot be shown, U+202E", ""),
    "steps below 1": ("[source, tent]", "[{name: tent, config: {steps: 0}}]", "steps: Input should be greater than or equal to 1", ""),
    "infinite lr": ("[source, tent]", "[{name: tent, config: {lr: .inf}}]", "a number must be finite", ""),
    "infinite lr as text": ("[source, tent]", "[{name: tent, config: {lr: 'inf'}}]", "lr: Input should be a finite number", ""),
    "std 0": ("std: [0.36", "std: [0.0", "is not within (0, 1]", ""),
    "mean 2": ("mean: [0.3", "mean: [2.0", "is not within [0, 1]", ""),
    "stem of a ViT": ("architecture: resnet18\n    options: {num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}",
                      "architecture: vit_tiny_patch16_224\n    options: {num_classes: 10, img_size: 32, patch_size: 8, depth: 1}", "stem: cifar is for ResNets", "leave stem out"),
    "an empty package": ("package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors", "package:", "the package '' with the weights", "package:NAME/FILE"),
    "a module for a package": ("package:tta_bench.data.kinds/weights/", "package:os.path/", "the package 'os.path' with the weights", ""),
    "a home of nobody": (DIGITS, FOLDER.format(root="~nobody-at-all/x"), "no such folder: ~nobody-at-all/x", ""),
    "a long path": (DIGITS, FOLDER.format(root="x" * 5000), "no such folder: xxx", ""),
    "visits without end": ("batch_size: 40", "batch_size: 40\nprotocol: {kind: recurring, visits: 1000000000}", "visits: Input should be less than or equal to 32767", ""),
    "architecture without mean": ("    mean: [0.3, 0.3, 0.3]\n", "", "architecture: requires weights:, mean: and std:", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message_and_writes_nothing(
    case: str, suite_file: SuiteFile, run_cli: Cli, tmp_path: pathlib.Path
) -> None:
    old, new, message, hint = BAD[case]
    file = suite_file((old, new))
    outcome = run_cli("run", file, "--executor", "local", "--out", tmp_path / "out")
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert hint in outcome.err
    assert f"{file}:" in outcome.err, "the place is named"
    assert "1 problem; nothing was run" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()
    assert outcome.out == ""


def test_the_place_is_line_column_and_caret(suite_file: SuiteFile, run_cli: Cli) -> None:
    file = suite_file(("severities: [5]", "severties: [5]"))
    lines = run_cli("run", file).err.splitlines()
    assert lines[0] == f"{file}:14:1: unknown key 'severties' in suite"
    assert lines[1] == "    14 | severties: [5]"
    assert lines[2] == "       | ^^^^^^^^^"
    assert lines[3].startswith("  hint: did you mean 'severities'?")


def test_all_problems_are_told_at_once(suite_file: SuiteFile, run_cli: Cli) -> None:
    file = suite_file(
        ("severities: [5]", "severities: [7]"),
        ("[source, tent]", "[source, tnet]"),
        ("[clean, contrast]", "[clean, contrats]"),
        (DIGITS, FOLDER.format(root="/nowhere/at/all")),
        ("seeds: [0]", "seeds: [0]\ntypo: 1"),
    )
    err = run_cli("run", file).err
    for message in ("less than or equal to 5", "'tnet'", "'contrats'", "/nowhere/at/all", "'typo'"):
        assert message in err
    assert "5 problems; nothing was run" in err


def test_a_folder_without_images(suite_file: SuiteFile, run_cli: Cli, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    outcome = run_cli("run", suite_file((DIGITS, FOLDER.format(root=tmp_path / "empty"))))
    assert outcome.code == 2
    assert "the folder has no images" in outcome.err


def test_a_truncated_jpeg_is_named(suite_file: SuiteFile, run_cli: Cli, tmp_path: pathlib.Path) -> None:
    for digit in range(10):
        path = tmp_path / "images" / str(digit) / "a.jpeg"
        path.parent.mkdir(parents=True)
        noise = np.random.default_rng(digit).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    damaged = tmp_path / "images" / "3" / "a.jpeg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    file = suite_file((DIGITS, FOLDER.format(root=tmp_path / "images")))
    outcome = run_cli("run", file, "--executor", "local", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert outcome.code == 2
    assert f"{damaged}: cannot decode image" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").iterdir()), "no half-made entry is left behind"


def test_weights_that_do_not_fit_name_the_tensors(suite_file: SuiteFile, run_cli: Cli, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1, 3, 3, 3), "other": torch.zeros(2)}, path)
    file = suite_file(("package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors", str(path)))
    outcome = run_cli("run", file)
    assert outcome.code == 2
    for part in (
        "missing",
        "unexpected other",
        "conv1.weight: file (1, 3, 3, 3), model (64, 3, 3, 3)",
        "w.safetensors",
    ):
        assert part in outcome.err


def test_class_counts_that_do_not_match_name_both(suite_file: SuiteFile, run_cli: Cli, digit_folder: pathlib.Path,
                                                  tmp_path: pathlib.Path) -> None:  # fmt: skip
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for folder in sorted(digit_folder.iterdir())[:7]:
        (fewer / folder.name).symlink_to(folder)
    outcome = run_cli("run", suite_file((DIGITS, FOLDER.format(root=fewer))))
    assert outcome.code == 2
    assert "model 'resnet_bn' has 10 classes, CIFAR-10-C (generated) has 7" in outcome.err


@pytest.mark.parametrize("text", [DIGITS_SUITE, None])
def test_an_ambiguous_timm_alias_lists_its_tags(
    text: str | None, suite_file: SuiteFile, run_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    if text is None:  # a shipped suite, spoilt
        monkeypatch.setenv("IMAGENET_C", str(tmp_path))
        monkeypatch.setenv("IMAGENET_VAL", str(tmp_path))
        whole = suite.find("imagenet_c").read_text()
        aliases = [
            (".augreg2_in21k_ft_in1k", ""),
            ("resnet50_gn.a1h_in1k", "resnet50_gn"),
            ("resnet50.tv_in1k", "resnet50"),
        ]
        file = suite_file(*aliases, text=whole)  # all of them: a full tag would be fetched
    else:
        start, end = text.index("    architecture"), text.index("methods:")
        file = suite_file((text[start:end], "    timm: vit_base_patch16_224\n"), text=text)
    outcome = run_cli("run", file)
    assert outcome.code == 2
    assert "'vit_base_patch16_224' does not name its weights" in outcome.err
    assert "vit_base_patch16_224.augreg2_in21k_ft_in1k" in outcome.err


def test_a_plugin_with_a_syntax_error_is_placed(suite_file: SuiteFile, run_cli: Cli, tmp_path: pathlib.Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("x = 1\ndef method(:\n    pass\n")
    outcome = run_cli("run", suite_file(), "--plugin", plugin)
    assert outcome.code == 2
    assert f"{plugin}:2:" in outcome.err
    assert "not valid Python" in outcome.err
    assert "def method(:" in outcome.err


def test_set_replaces_keys_and_dotted_keys(suite_file: SuiteFile) -> None:
    loaded = suite.load(str(suite_file()), sets=["seeds=[1, 2]", "data.max_images=7", "protocol.kind=continual"])
    assert loaded.suite.seeds == [1, 2]
    assert loaded.suite.data.max_images == 7
    assert loaded.suite.protocol[0].config.kind == "continual"


def test_clean_ignores_severities(suite_file: SuiteFile) -> None:
    loaded = suite.load(str(suite_file(("severities: [5]", "severities: [3, 5]"))))
    assert loaded.suite.shifts() == (CLEAN, Shift("contrast", 3), Shift("contrast", 5))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_suite_in_another_encoding_is_one_message(suite_file: SuiteFile, run_cli: Cli, encoding: str) -> None:
    file = suite_file()
    file.write_text(f"{file.read_text()}# gr\xfc\xdfe\n", encoding=encoding)
    outcome = run_cli("run", file)
    assert outcome.code == 2
    assert f"{file}: not UTF-8 text" in outcome.err
    assert "save the file as UTF-8" in outcome.err


def test_a_suite_is_utf_8_whatever_the_locale(suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    file = suite_file(("[source, tent]", "[{name: source, label: größe}]"))
    environment = clean_environment(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    program = "import sys; from tta_bench import suite; print(ascii(suite.load(sys.argv[1]).suite.methods[0].label))"
    process = subprocess.run(
        [sys.executable, "-c", program, str(file)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.stdout == "'gr\\xf6\\xdfe'\n", process.stderr


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-at-all/x", ""])
def test_a_suite_that_cannot_be_is_no_suite(run_cli: Cli, name: str) -> None:
    outcome = run_cli("run", name)
    assert outcome.code == 2
    assert outcome.err.startswith("no such suite: ")
    assert len(outcome.err) < 3200


def test_every_shipped_suite_is_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    variants = ("IMAGENET_R", "IMAGENET_A", "IMAGENET_SKETCH", "IMAGENET_V2")
    for name in ("IMAGENET_C", "IMAGENET_C_5000", "IMAGENET_VAL", *variants, "CIFAR10", "CIFAR10_MODELS", "CIFAR10_C",
                 "CIFAR100_C", "CIFAR10_BINARY", "MODELS"):  # fmt: skip
        monkeypatch.setenv(name, os.fspath(tmp_path))
    for part in ("test", "train"):
        (tmp_path / part).mkdir()
    assert suite.shipped() == [
        "cifar10_c", "digits_c", "digits_protocols", "imagenet_c", "imagenet_c_lite0", "imagenet_natural",
        "methods_cifar10_c", "mgg_ablation", "mgg_curve", "mgg_rates", "protocols_cifar10_c", "streams_cifar10_c",
        "papers/cotta", "papers/cotta_cifar100", "papers/cotta_imagenet", "papers/deyo", "papers/eata", "papers/foa", "papers/foa_imagenet_r", "papers/foa_natural",
        "papers/online_tta", "papers/roid", "papers/roid_cifar10", "papers/roid_correlated", "papers/rotta",
        "papers/rotta_cifar100", "papers/sar", "papers/tent",
    ]  # fmt: skip
    for name in suite.shipped():
        assert suite.load(name).suite.name == name.replace("/", "_")


@pytest.mark.parametrize(
    ("pair", "message"),
    [("seeds=x", "seeds: Input should be a list"), ("seeds=[0,x]", "seeds.1: Input should be a valid integer"),
     ("sedes=[1]", "unknown key 'sedes' in suite"), ("extra.deep=1", "unknown key 'extra' in suite"),
     ("data.max_images=0", "data.max_images: Input should be greater than or equal to 1"),
     ("data.max_image=5", "unknown key 'max_image' in data"),
     ("methods=[source, tnet]", "unknown method 'tnet'"), ("seeds.0=1", "'seeds' is not a mapping"),
     ("models=[]", "models: List should have at least 1 item")],
)  # fmt: skip
def test_a_problem_of_a_set_pair_names_the_pair(
    suite_file: Callable[..., pathlib.Path], pair: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        suite.load(str(suite_file()), sets=[pair])
    [problem] = caught.value.problems
    assert problem.where == f"--set {pair}"
    assert problem.message.startswith(message)
    assert not problem.source


def test_a_problem_with_the_data_of_a_set_pair_names_the_pair(
    suite_file: Callable[..., pathlib.Path], run_cli: Cli
) -> None:
    file = suite_file((DIGITS, FOLDER.format(root=suite_file().parent)))
    outcome = run_cli("run", file, "--set", "data.root=/nowhere")
    assert (outcome.code, outcome.err) == (
        2, "--set data.root=/nowhere: data.root: no such folder: /nowhere\n1 problem; nothing was run\n"
    )  # fmt: skip


def test_a_problem_around_a_set_pair_mentions_the_pair(suite_file: Callable[..., pathlib.Path]) -> None:
    with pytest.raises(UsageError) as caught:
        suite.load(str(suite_file()), sets=["data.kind=folder"])
    [problem] = [p for p in caught.value.problems if "'root'" in p.message]
    assert problem.where.endswith("small.yaml:2:1")
    assert problem.hint == "--set data.kind=folder is part of it"


@pytest.mark.parametrize(
    "pair", ["methods.99999999999999999999.label=x", "methods.².label=x", "a" + ".a" * 60 + "=1", "seeds=[" + "9" * 5000 + "]", "="]
)  # fmt: skip
def test_an_odd_key_of_a_set_pair_is_a_problem_of_the_pair(suite_file: Callable[..., pathlib.Path], pair: str) -> None:
    with pytest.raises(UsageError, match=r"^--set") as caught:
        suite.load(str(suite_file()), sets=[pair])
    assert len(str(caught.value)) < 3200


def test_a_problem_beside_a_set_pair_still_names_its_line(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(("kind: digits, max_images: 100", "kind: digits, max_image: 100"))
    with pytest.raises(UsageError) as caught:
        suite.load(str(file), sets=["data.seed=1", "seeds=[1]"])
    [problem] = caught.value.problems
    assert problem.where.startswith(f"{file}:2:")


def test_a_set_pair_replaces_an_unset_variable(suite_file: Callable[..., pathlib.Path]) -> None:
    file = suite_file(("max_images: 100", "max_images: '${NOT_SET_ANYWHERE}'"))
    with pytest.raises(UsageError, match="NOT_SET_ANYWHERE is not set"):
        suite.load(str(file), sets=["seeds=[1]"])
    assert suite.load(str(file), sets=["data.max_images=5"]).suite.data.max_images == 5
