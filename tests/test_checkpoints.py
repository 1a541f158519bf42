"""Checkpoints as they lie around: their tensors are read, whatever lies beside them; the rest is one short message."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Outcome
from networks import SPECS
from torch import Tensor, nn

from tta_bench.errors import UsageError
from tta_bench.models import SourceModel, locate_weights, open_network, state_sha256
from tta_bench.networks.from_timm import Timm, build_network
from tta_bench.networks.state_files import read_state

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]


def config_of(path: pathlib.Path, key: str | None = None) -> Timm.Config:
    base = SPECS["batch"]
    return Timm.Config(name="m", architecture=base.architecture, options=base.options, stem=base.stem, weights=str(path),
                       checkpoint_key=key, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_network(SPECS["batch"]).state_dict()


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    def call(content: Any, name: str = "w.pth", **options: Any) -> pathlib.Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return call


def refusal(path: pathlib.Path, key: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        open_network(config_of(path, key)).load()
    text = str(caught.value)
    assert path.name in text
    assert "weights_only" not in text, "torch's advice to load unsafely"
    assert "safe_globals" not in text
    assert len(text) < 600
    return text


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


class Settings(dict[str, Any]):
    """Like the configurations of some training scripts: a dict with attributes."""


class Rows(list[int]):
    """A list of a foreign class."""


class Runs:
    """Unpickled as a pickle of it asks, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.asked = function, arguments

    def __reduce__(self) -> Any:
        return self.asked


def settings() -> Settings:
    made = Settings(lr=0.1, nested=Settings(depth=3))
    made.frozen = True  # type: ignore[attr-defined]
    return made


BESIDE: dict[str, Any] = {
    "a Namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/data")),
    "a NumPy number": np.float64(0.9),
    "a NumPy array": np.arange(3),
    "a configuration": settings(),
    "a default dict": collections.defaultdict(list, {"loss": [1.0]}),
    "a queue": collections.deque([1, 2]),
    "a list of a foreign class": Rows([1, 2]),
    "a date": datetime.datetime(2024, 1, 1),
    "a loss": nn.CrossEntropyLoss(),
    "all": [argparse.Namespace(best=np.float32(1)), settings(), Rows([3])],
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("beside", list(BESIDE))
def test_tensors_are_read_whatever_lies_beside_them(
    saved: Callable[..., pathlib.Path], state: dict[str, Tensor], beside: str, new: bool
) -> None:
    if beside == "a loss" and not new:
        pytest.skip("torch refuses the source text of modules, which such files hold")
    path = saved({"state_dict": state, "beside": BESIDE[beside]}, _use_new_zipfile_serialization=new)
    allowed = torch.serialization.get_safe_globals()
    read = read_state(path)
    assert list(read) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    assert set(torch.serialization.get_safe_globals()) == set(allowed), "nothing stays allowed"


def test_no_code_of_a_pickle_runs(
    saved: Callable[..., pathlib.Path], state: dict[str, Tensor], tmp_path: pathlib.Path
) -> None:
    mark = tmp_path / "mark"
    asked = Runs(eval, f"__import__('pathlib').Path({str(mark)!r}).mkdir()"), Runs(pathlib.Path.mkdir, mark)
    assert list(read_state(saved({"net": state, "args": asked[0]}))) == list(state)
    said = refusal(saved({"net": state, "args": asked[1]}))
    assert "cannot read weights: UnpicklingError: Trying to call reduce for unrecognized function" in said
    said = refusal(saved({"net": state, "args": Runs(os.system, f"mkdir {mark}")}))
    assert "cannot read weights: UnpicklingError: Trying to load unsupported GLOBAL" in said
    assert not mark.exists()


# -- names and keys ------------------------------------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


NESTED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "": lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")},
    "model": lambda state: {"model": prefixed(state, "_orig_mod."), "epoch": 3},
    "net": lambda state: {"net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "model_state_dict": lambda state: {"model_state_dict": prefixed(state, "module._orig_mod."), "step": torch.tensor(3)},
    "state_dict": lambda state: {"state_dict": prefixed(state, "net."), "criterion": {"weight": torch.ones(10)}},
    "network": lambda state: {"network": prefixed(state, "backbone.")},
    "run.weights": lambda state: {"run": {"weights": {n.replace("layer1.", "layer1._orig_mod."): t for n, t in state.items()}}},
}  # fmt: skip


@pytest.mark.parametrize("key", list(NESTED))
def test_the_state_dict_that_fits_is_read_and_its_key_is_said(
    saved: Callable[..., pathlib.Path], state: dict[str, Tensor], key: str
) -> None:
    network = open_network(config_of(saved(NESTED[key](state))))
    model = network.load()
    assert state_sha256(model.net) == state_sha256(build_with(state).net)
    assert network.remark == (f"m: weights are {key!r} in w.pth" if key else "")


def build_with(state: dict[str, Tensor]) -> SourceModel:
    net = build_network(SPECS["batch"])
    net.load_state_dict(state)
    return SourceModel(net, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("student", "teacher"), ("net", "ema")],
)
def test_averaged_weights_beside_others_are_a_choice(
    saved: Callable[..., pathlib.Path], state: dict[str, Tensor], first: str, second: str
) -> None:
    path = saved({first: state, second: prefixed(other(state), "module.")})
    said = refusal(path)
    assert f"the weights of 2 keys of the file fit: {first!r}, {second!r}" in said
    assert f"choose one of them, as checkpoint_key: {first}" in said
    chosen = open_network(config_of(path, second)).load()
    assert state_sha256(chosen.net) == state_sha256(build_with(other(state)).net)
    said = refusal(path, "emma")
    assert "checkpoint_key: the file has no state dict 'emma'\n  hint: " in said
    assert f"known: {first}, {second}" in said


def test_the_same_weights_twice_are_no_choice(saved: Callable[..., pathlib.Path], state: dict[str, Tensor]) -> None:
    model = open_network(config_of(saved({"model": state, "ema": dict(state)}))).load()
    assert state_sha256(model.net) == state_sha256(build_with(state).net)


def test_where_nothing_fits_the_largest_is_named(saved: Callable[..., pathlib.Path], state: dict[str, Tensor]) -> None:
    fewer = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    said = refusal(saved({"ema": {"a": torch.ones(1)}, "model": fewer}))
    assert "model 'm' (w.pth), 'model' in it: weights do not fit the model: missing fc.bias, fc.weight" in said


def test_the_start_of_a_run_says_which_weights_are_read(
    run_cli: Cli, suite_file: SuiteFile, saved: Callable[..., pathlib.Path]
) -> None:
    shipped = "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    own = safetensors.torch.load_file(locate_weights(shipped))
    path = saved({"model": {name: tensor * 2 for name, tensor in own.items()}, "model_ema": own}, "both.pth")
    file = suite_file((shipped, str(path)))
    refused = run_cli("run", file, "--dry-run")
    assert refused.code == 2
    assert "small.yaml:8:14: the weights of 2 keys of the file fit: 'model', 'model_ema'" in refused.err
    file = suite_file((f'weights: "{shipped}"', f"weights: {path}\n    checkpoint_key: model_ema"))
    outcome = run_cli("run", file, "--executor", "local", "--only", "method=source")
    assert outcome.code == 0, outcome.err
    assert "resnet_bn: weights are 'model_ema' in both.pth" in outcome.err


# -- no weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "held"),
    [([1, 2, 3], "a list"), (torch.ones(3, 4), "one tensor of shape (3, 4)"), (None, "None"), ({}, "an empty dict"),
     ({"epoch": 3, "lr": 0.1}, "a dict with 'epoch', 'lr'"), ({"w": np.ones(2)}, "a dict with 'w'"),
     (nn.Linear(2, 2), "an object of the class torch.nn.modules.linear.Linear")],
)  # fmt: skip
def test_a_file_without_a_state_dict_says_what_it_holds(
    saved: Callable[..., pathlib.Path], content: Any, held: str
) -> None:
    said = refusal(saved(content))
    assert f"the file of weights holds no tensors by name, but {held}\n  hint: save the network's state_dict()" in said


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 44730637\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "the file is empty\n  hint: download it again"), (POINTER, "a pointer of git-LFS, not what it points to"),
     (b"\n <!DOCTYPE html><html>Not found", "a web page, as a failed download leaves"),
     (b"see the drive folder\n", "a text that begins 'see the drive folder"), (b"PK\x03\x04" + bytes(50), "cut short (54 bytes)"),
     (b"\x89HDF\r\n\x1a\n" + bytes(20), "cannot read weights: ")],
)  # fmt: skip
def test_what_a_failed_download_leaves_is_recognised(tmp_path: pathlib.Path, content: bytes, what: str) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert what in refusal(tmp_path / name)


def test_the_content_decides_and_not_the_ending(tmp_path: pathlib.Path, state: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    assert set(read_state(tmp_path / "w.pth")) == set(state)
    assert set(read_state(tmp_path / "w.safetensors")) == set(state)


def test_a_file_that_is_cut_short_is_refused_at_any_length(tmp_path: pathlib.Path, state: dict[str, Tensor]) -> None:
    for name in ("w.pth", "w.safetensors", "old.pth"):
        path = tmp_path / name
        if name == "w.safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=name == "w.pth")
        whole = path.read_bytes()
        for length in (1, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert "cannot read weights: " in refusal(path), (name, length)


def test_a_decompression_bomb_is_named(tmp_path: pathlib.Path, saved: Callable[..., pathlib.Path]) -> None:
    with zipfile.ZipFile(saved({"a": torch.zeros(1)})) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(1 << 24) if name.endswith("/0") else content)
    assert "announces 16,777," in refusal(path)
    assert "a decompression bomb" in refusal(path)


def test_another_archive_or_pickle_says_what_it_is(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(2), b=np.ones(2))
    assert "an archive of a.npy, b.npy, which torch did not save" in refusal(tmp_path / "w.npz")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pth")
    assert "an archive of TorchScript" in refusal(tmp_path / "script.pth")
    (tmp_path / "numpy.pkl").write_bytes(pickle.dumps({"w": np.ones(3)}, 2))
    assert "cannot read weights: " in refusal(tmp_path / "numpy.pkl")
