"""The inputs of ``shared/cases``, each run as a user would: right, or refused with one message; never a traceback."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import clean_environment

pytestmark = pytest.mark.faults

_MOVED = {"tta_bench.data.digits": "tta_bench.data.kinds.digits",
          "package:tta_bench/weights/": "package:tta_bench.data.kinds/weights/"}  # fmt: skip
_NARROW = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def cases(shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The folder that ``make.py`` fills, with the names of modules brought up to date."""
    if not (shared / "cases" / "make.py").is_file():
        pytest.skip("needs the folder 'shared/cases' beside the checkout")
    source = shutil.copytree(shared / "cases", tmp_path_factory.mktemp("source") / "cases")
    for file in (*source.glob("*.yaml"), source / "make.py"):
        text = file.read_text(encoding="utf-8")
        for old, new in _MOVED.items():
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(source / "make.py"), str(out)], env=clean_environment(), check=True)
    yield out
    shutil.rmtree(out)  # 700 MB


def tta_bench(cases: pathlib.Path, folder: pathlib.Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code, and what was printed on both streams."""
    variables = clean_environment(CASES=str(cases), TTA_BENCH_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-m", "tta_bench", *arguments], cwd=folder, env={**variables, **environment},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    text = done.stdout.decode("utf-8", "replace")
    assert "Traceback" not in text, text
    assert "weights_only=False" not in text
    return done.returncode, text


def arrays(name: str) -> list[str]:
    return [
        "--set",
        f'data={{kind: cifar_c, root: "${{CASES}}/{name}", max_images: 200}}',
        "--set",
        "corruptions=[contrast]",
    ]


def weights(name: str) -> list[str]:
    network = "architecture: resnet18, options: {num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}"
    about = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"
    return ["--set", f'models=[{{name: m, {network}, {about}, weights: "${{CASES}}/{name}.pth"}}]']


def data(name: str) -> list[str]:
    return ["--set", f"data.root=${{CASES}}/{name}"]


# case: (exit code, what is said, options)
RUNS: dict[str, tuple[int, str, list[str]]] = {
    "numeric-folders": (0, "0 is '1', 9 is '10', in the order of their numbers", data("numeric-folders")),
    "labels-2d": (0, "base: 1 ok", arrays("labels-2d")),
    "labels-from-one": (2, "labels count from 0: subtract 1", arrays("labels-from-one")),
    "labels-onehot": (2, "one-hot rows become numbers", arrays("labels-onehot")),
    "empty-array": (2, "not a readable array", arrays("empty-array")),
    "grey16": (0, "200 16-bit grey scaled to 8 bits", data("grey16")),
    "huge-image": (2, "5/0003.png: image is too large", data("huge-image")),
    "gifs": (0, "100 .gif", data("gifs")),
    "with-namespace": (0, "m: weights are 'model' in with-namespace.pth", weights("with-namespace")),
    "with-numpy-scalar": (0, "m: weights are 'state_dict' in with-numpy-scalar.pth", weights("with-numpy-scalar")),
    "compiled": (0, "base: 1 ok", weights("compiled")),
    "nested-net": (0, "m: weights are 'net' in nested-net.pth", weights("nested-net")),
    "a-list": (2, "holds no tensors by name, but a list", weights("a-list")),
    "a root that is not there": (2, "--set data.root=/nowhere: data.root: no such folder: /nowhere", ["--set", "data.root=/nowhere"]),
    "a cache that cannot be written": (2, "/proc/x: the image cache cannot be written", ["--cache", "/proc/x"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(RUNS))
def test_a_case_is_right_or_one_message(cases: pathlib.Path, tmp_path: pathlib.Path, case: str) -> None:
    code, said, options = RUNS[case]
    outcome, text = tta_bench(cases, tmp_path, "run", str(cases / "base.yaml"), "--executor", "local", *options)
    assert outcome == code, text
    assert said in text
    if case in ("numeric-folders", "grey16", "gifs"):
        assert float(text.partition("error ")[2].partition(" %")[0]) <= 2.0, text
    if code == 2:
        assert "1 problem; nothing was run" in text


@pytest.mark.parametrize(
    ("case", "said"),
    [("distilled", "distilled: 3 ok"), ("densenet", "densenet: 4 ok"), ("last_batch", "last_batch: 2 skipped, 1 ok")],
)
def test_a_network_runs_or_is_skipped(cases: pathlib.Path, tmp_path: pathlib.Path, case: str, said: str) -> None:
    outcome, text = tta_bench(cases, tmp_path, "run", str(cases / f"{case}.yaml"), "--executor", "local")
    assert outcome == 0, text
    assert said in text


def test_other_data_of_the_same_size_are_run_anew(cases: pathlib.Path, tmp_path: pathlib.Path) -> None:
    root = shutil.copytree(cases / "arrays", tmp_path / "data")
    about = [f'data={{kind: cifar_c, root: "{root}", max_images: 200}}', "corruptions=[contrast]"]
    run = ["run", str(cases / "base.yaml"), "--executor", "local", "--set", about[0], "--set", about[1], "--out", "one"]
    assert tta_bench(cases, tmp_path, *run)[0] == 0
    for name in ("contrast.npy", "labels.npy"):
        shutil.copy(cases / "negative" / name, root / name)
    assert "0 finished, 1 to run" in tta_bench(cases, tmp_path, *run)[1]
    assert tta_bench(cases, tmp_path, *run[:-1], "two")[0] == 0
    shutil.copy(cases / "arrays" / "contrast.npy", root)
    assert tta_bench(cases, tmp_path, *run)[0] == 0
    outcome, text = tta_bench(cases, tmp_path, "report", "one", "two", "--format", "md")
    assert outcome == 2, text
    assert "images" in text


def test_a_utf_8_suite_runs_in_any_locale_and_prints_where_it_can(cases: pathlib.Path, tmp_path: pathlib.Path) -> None:
    outcome, text = tta_bench(cases, tmp_path, "run", str(cases / "utf8.yaml"), "--executor", "local", **_NARROW)
    assert outcome == 0, text
    for narrow in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, _NARROW):
        outcome, text = tta_bench(cases, tmp_path, "report", **narrow)
        assert outcome == 0, text
        assert (tmp_path / os.fsdecode(text.splitlines()[-1]) / "errors.md").read_text(encoding="utf-8")
