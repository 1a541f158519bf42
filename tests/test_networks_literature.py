"""Networks of the CIFAR and torchvision literature: sizes, published names of tensors, parts, and files of weights."""

from __future__ import annotations

import copy
import json
import pathlib
import re
import urllib.error
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from networks import SPECS, ready
from pydantic import ValidationError
from torch import Tensor, nn

import tta_bench.torchvision_repair  # noqa: F401  (before torchvision)
from tta_bench.data.geometry import Geometry
from tta_bench.errors import UsageError
from tta_bench.methods.early_norms import frozen_by_structure
from tta_bench.methods.sar import Sar
from tta_bench.methods.tent import Tent
from tta_bench.models import MissingPart, SourceModel, open_network, state_sha256
from tta_bench.networks.checkpoints import seems_to_hold, unwrapped
from tta_bench.networks.from_timm import build_network
from tta_bench.networks.from_torchvision import Torchvision, own_name
from tta_bench.registry import MODELS, installed

from torchvision.models import (  # isort: skip
    ResNet, ResNet50_Weights, SwinTransformer, ViT_B_16_Weights, VisionTransformer, resnet18,
)  # fmt: skip

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL: dict[str, dict[str, Any]] = {
    "wide_resnet": {"depth": 16, "width": 1, **HALF},
    "resnext": {"depth": 20, "cardinality": 2, "base_width": 8},
    "resnet26": {},
}


def config_of(kind: str, **values: Any) -> Any:
    return installed().load(kind, MODELS).Config(name="m", kind=kind, **values)


def random_net(kind: str, **values: Any) -> nn.Module:
    """With random statistics, too."""
    torch.manual_seed(0)
    net: nn.Module = open_network(config_of(kind, weights="none", **SMALL[kind], **values)).architecture().eval()  # type: ignore[attr-defined]
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.2), nn.init.normal_(module.bias, 0, 0.2)
    return net


def saved(path: pathlib.Path, content: Any) -> str:
    torch.save(content, path / "w.pth")
    return str(path / "w.pth")


def model_of(path: pathlib.Path, kind: str) -> SourceModel:
    """A small source model of a kind, through a file of its random weights."""
    return open_network(config_of(kind, weights=saved(path, random_net(kind).state_dict()), **SMALL[kind])).load()


# -- the published networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "parameters"),
    [("wide_resnet", {}, 36_479_194), ("wide_resnet", {"depth": 40, "width": 2}, 2_243_546),
     ("wide_resnet", {"depth": 40, "width": 2, "classes": 100}, 2_255_156), ("resnext", {}, 6_807_882),
     ("resnext", {"classes": 100}, 6_900_132), ("resnet26", {}, 366_938)],
)  # fmt: skip
def test_parameters_are_as_many_as_published(kind: str, values: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        net = open_network(config_of(kind, weights="none", **values)).architecture()  # type: ignore[attr-defined]
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, values.get("classes", 10))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize(("name", "weights"), [("resnet50", "IMAGENET1K_V1"), ("vit_b_16", "IMAGENET1K_V1"), ("swin_b", "IMAGENET1K_V1"),
                                               ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")])  # fmt: skip
def test_torchvisions_networks_are_as_large_as_it_says(name: str, weights: str) -> None:
    network = Torchvision(config_of("torchvision", architecture=name, weights_enum=weights))
    with torch.device("meta"):
        net = network._random()
    assert sum(parameter.numel() for parameter in net.parameters()) == network._published().meta["num_params"]


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_the_names_of_tensors_are_the_published_ones() -> None:
    wide = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{name}" for name in BN)}
    for group in (1, 2, 3):
        for layer in (0, 1):
            block = f"block{group}.layer.{layer}"
            wide |= {
                f"{block}.conv1.weight",
                f"{block}.conv2.weight",
                *(f"{block}.bn{i}.{name}" for i in (1, 2) for name in BN),
            }
        wide |= {f"block{group}.layer.0.convShortcut.weight"} if group > 1 else set()
    assert set(random_net("wide_resnet").state_dict()) == wide
    resnext = {"conv_1_3x3.weight", "classifier.weight", "classifier.bias", *(f"bn_1.{name}" for name in BN)}
    for stage in (1, 2, 3):
        for layer in (0, 1):
            block = f"stage_{stage}.{layer}"
            resnext |= {f"{block}.conv_{part}.weight" for part in ("reduce", "conv", "expand")}
            resnext |= {f"{block}.{norm}.{name}" for norm in ("bn_reduce", "bn", "bn_expand") for name in BN}
        resnext |= {f"stage_{stage}.0.downsample.0.weight", *(f"stage_{stage}.0.downsample.1.{name}" for name in BN)}
    assert set(random_net("resnext").state_dict()) == resnext
    small = {"conv1.weight", "fc.weight", "fc.bias", "bn.weight", "bn.bias"}
    for block in (f"layer{stage}.{layer}" for stage in (1, 2, 3) for layer in range(4)):
        small |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
        small |= {f"{block}.bn{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    assert set(random_net("resnet26").state_dict()) == small


class Reference:
    """The forward passes as the papers describe them, on the tensors of a file."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        tensors = [self.state.get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *tensors) if tensors[0] is not None else F.group_norm(x, 8, *tensors[2:])  # type: ignore[arg-type]

    def classified(self, x: Tensor, name: str) -> Tensor:
        return F.linear(F.avg_pool2d(x, 8).flatten(1), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def wide_resnet(self, x: Tensor) -> Tensor:
        x = self.conv(x, "conv1")
        for group in (1, 2, 3):
            for layer in (0, 1):
                block = f"block{group}.layer.{layer}"
                stride = 2 if group > 1 and layer == 0 else 1
                active = self.norm(x, f"{block}.bn1").relu()
                out = self.norm(self.conv(active, f"{block}.conv1", stride), f"{block}.bn2").relu()
                same = f"{block}.convShortcut.weight" not in self.state
                x = self.conv(out, f"{block}.conv2") + (
                    x if same else self.conv(active, f"{block}.convShortcut", stride)
                )
        return self.classified(self.norm(x, "bn1").relu(), "fc")

    def resnext(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x, "conv_1_3x3"), "bn_1").relu()
        for stage in (1, 2, 3):
            for layer in (0, 1):
                block = f"stage_{stage}.{layer}"
                stride = 2 if stage > 1 and layer == 0 else 1
                out = self.norm(self.conv(x, f"{block}.conv_reduce"), f"{block}.bn_reduce").relu()
                out = self.norm(self.conv(out, f"{block}.conv_conv", stride, groups=2), f"{block}.bn").relu()
                out = self.norm(self.conv(out, f"{block}.conv_expand"), f"{block}.bn_expand")
                if layer == 0:
                    x = self.norm(self.conv(x, f"{block}.downsample.0", stride), f"{block}.downsample.1")
                x = (x + out).relu()
        return self.classified(x, "classifier")

    def resnet26(self, x: Tensor) -> Tensor:
        x = self.conv(x, "conv1")
        for stage in (1, 2, 3):
            for layer in range(4):
                block, first = f"layer{stage}.{layer}", stage > 1 and layer == 0
                out = self.conv(self.norm(x, f"{block}.bn1").relu(), f"{block}.conv1", 2 if first else 1)
                out = self.conv(self.norm(out, f"{block}.bn2").relu(), f"{block}.conv2")
                shortcut = F.avg_pool2d(x, 2) if first else x
                x = out + torch.cat([shortcut, *[shortcut * 0] * (out.shape[1] // x.shape[1] - 1)], 1)
        return self.classified(self.norm(x, "bn").relu(), "fc")


@pytest.mark.parametrize("kind", list(SMALL))
def test_the_forward_pass_is_the_papers(kind: str, tmp_path: pathlib.Path) -> None:
    model = model_of(tmp_path, kind)
    expected = getattr(Reference(model.net.state_dict()), kind)((X - 0.5) / 0.5)
    assert model(X).std() > 0.01
    assert torch.allclose(model(X), expected, atol=1e-5)


# -- files -------------------------------------------------------------------------------------------------------------


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """What lies around: name of the case to the content of the file."""
    half = torch.full((1, 3, 1, 1), 0.5)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {
        "plain": state,
        "DataParallel": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        "net": {"net": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        "mu and sigma": {"mu": half, "sigma": half, **state},
        "normalised in front": {"model": {"normalize.mean": half, "normalize.std": half} | {f"model.{n}": t for n, t in state.items()}},
        "both": {f"module.model.{name}": tensor for name, tensor in state.items()},
        "old": old,
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(SMALL))
def test_checkpoints_load_as_they_lie_around(kind: str, tmp_path: pathlib.Path) -> None:
    net = random_net(kind)
    for case, content in wrapped(net.state_dict()).items():
        model = open_network(config_of(kind, weights=saved(tmp_path, content), **SMALL[kind])).load()
        assert state_sha256(model.net) == state_sha256(net), case


def test_another_spelling_and_an_unused_group_of_wide_resnets_load(tmp_path: pathlib.Path) -> None:
    state = random_net("wide_resnet").state_dict()
    other = {name.replace("convShortcut", "conv_shortcut"): tensor for name, tensor in state.items()}
    other |= {f"sub_{name}": tensor for name, tensor in state.items() if name.startswith("block1.")}
    model = open_network(config_of("wide_resnet", weights=saved(tmp_path, other), **SMALL["wide_resnet"])).load()
    assert state_sha256(model.net) == state_sha256(random_net("wide_resnet"))


def refusal(path: pathlib.Path, kind: str, content: Any, **values: Any) -> str:
    config = config_of(kind, weights=saved(path, content), **SMALL.get(kind, {}) | values)
    with pytest.raises(UsageError) as caught:
        open_network(config).load()
    [problem] = caught.value.problems
    assert problem.where.startswith(("model 'm' (w.pth)", str(path)))
    return str(problem)


@pytest.mark.parametrize("kind", list(SMALL))
def test_what_does_not_fit_is_refused_with_what_the_file_seems_to_hold(kind: str, tmp_path: pathlib.Path) -> None:
    state = random_net(kind).state_dict()
    last = "classifier" if kind == "resnext" else "fc"
    said = refusal(tmp_path, kind, random_net(kind, classes=7).state_dict())
    assert re.search(rf"different shapes {last}.weight: file \(7, \d+\), model \(10, \d+\)", said)
    assert f"(kind: {kind}, " in said
    assert "classes: 7)" in said
    said = refusal(tmp_path, kind, {name: t for name, t in state.items() if not name.startswith(last)})
    assert f"weights do not fit the model: missing {last}.bias, {last}.weight" in said
    assert "unexpected extra" in refusal(tmp_path, kind, {**state, "extra": torch.ones(1)})
    for other in set(SMALL) - {kind}:
        said = refusal(tmp_path, kind, random_net(other).state_dict())
        assert "missing" in said
        assert "unexpected" in said
        assert f"the file seems to hold a {'WideResNet' if other == 'wide_resnet' else 'ResNe'}" in said
        assert f"(kind: {other}, " in said
    with torch.device("meta"):
        foreign = resnet18().state_dict()
    assert "a ResNet of torchvision or timm" in refusal(tmp_path, kind, {n: torch.zeros(1) for n in foreign})
    assert "holds no tensors by name" in refusal(tmp_path, kind, [torch.ones(2)])
    assert "holds no tensors by name" in refusal(tmp_path, kind, {"state_dict": {}})


def test_tensors_of_another_name_are_not_taken_by_their_order(tmp_path: pathlib.Path) -> None:
    """A file for timm's networks may be: the same leaf names and shapes in order."""
    state = {f"other.{name}": tensor for name, tensor in random_net("resnet26").state_dict().items()}
    assert "missing bn.bias" in refusal(tmp_path, "resnet26", state)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "wide_resnet", "depth": 40, "width": 2, "classes": 100, **HALF}, "a WideResNet (kind: wide_resnet, depth: 40, width: 2, classes: 100)"),
        ({"kind": "resnext"}, "a ResNeXt for CIFAR (kind: resnext, depth: 29, cardinality: 4, base_width: 32, classes: 10)"),
        ({"kind": "resnext", "cardinality": 32, "base_width": 4}, "cardinality: 32, base_width: 4, classes: 10)"),
        ({"kind": "resnet26", "width": 2}, "a ResNet-26 for CIFAR with GroupNorm (kind: resnet26, width: 2, classes: 10)"),
        ({"kind": "resnet26", "groups": None}, "with BatchNorm, groups: null"),
    ],
)  # fmt: skip
def test_a_file_tells_its_network(content: dict[str, Any], said: str) -> None:
    with torch.device("meta"):
        state = open_network(config_of(weights="none", **content)).architecture().state_dict()  # type: ignore[attr-defined]
    assert said in seems_to_hold(state)


def test_other_networks_are_recognised() -> None:
    import timm

    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
        swin = timm.create_model("swin_tiny_patch4_window7_224").state_dict()
        resnet = timm.create_model("resnet18").state_dict()
    said = {"vit": "timm's Vision Transformer", "swin": "timm's Swin Transformer", "resnet": "a ResNet of torchvision"}
    for state, words in zip((vit, swin, resnet), said.values(), strict=True):
        assert seems_to_hold(state).startswith(words)
    assert "torchvision's Vision Transformer" in seems_to_hold(small_vit().state_dict())
    assert "torchvision's Swin Transformer" in seems_to_hold(small_swin().state_dict())
    assert seems_to_hold({"weight": torch.ones(1)}) == ""


def test_kind_timm_reads_the_same_files(tmp_path: pathlib.Path) -> None:
    spec = SPECS["batch"]
    about = {"architecture": spec.architecture, "options": spec.options, "stem": spec.stem, **HALF}
    state, half = build_network(spec).state_dict(), torch.full((3,), 0.5)
    content = {"normalize.mean": half, "normalize.std": half} | {f"model.{name}": t for name, t in state.items()}
    model = open_network(config_of("timm", weights=saved(tmp_path, content), **about)).load()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
    content["normalize.mean"] = half + 0.1
    assert "normalises images with mean [0.6, 0.6, 0.6]" in refusal(tmp_path, "timm", content, **about)
    assert "kind: wide_resnet" in refusal(tmp_path, "timm", random_net("wide_resnet").state_dict(), **about)


def test_a_prefix_is_dropped_only_where_all_tensors_have_it() -> None:
    state = {"model.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrapped(state) == state
    assert set(unwrapped({"model.a": torch.ones(1), "mu": torch.ones(3)})) == {"a", "mu"}
    assert set(unwrapped({"mu": torch.ones(3)})) == {"mu"}


# -- normalisation -----------------------------------------------------------------------------------------------------


def test_images_are_normalised_as_published(tmp_path: pathlib.Path) -> None:
    def normalisation(kind: str, **values: Any) -> tuple[Any, Any]:
        return open_network(config_of(kind, weights="none", **values)).normalisation(nn.Identity())

    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation("wide_resnet") == ((0, 0, 0), (1, 1, 1)), "RobustBench's Standard takes images as they are"
    assert normalisation("wide_resnet", depth=40, width=2) == half
    assert normalisation("resnext") == normalisation("resnet26") == half
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert normalisation("wide_resnet", **own) == (own["mean"], own["std"])
    model = model_of(tmp_path, "resnext")
    assert torch.equal(model(X), model.net((X - 0.5) / 0.5))
    with pytest.raises(ValidationError, match="give mean: and std:, which are known only of 28-10 and 40-2"):
        config_of("wide_resnet", weights="none", depth=16, width=4)
    with pytest.raises(ValidationError, match="mean: and std: together"):
        config_of("resnext", weights="none", mean=own["mean"])


def test_a_file_with_another_normalisation_than_the_suites_is_refused(tmp_path: pathlib.Path) -> None:
    values = {**SMALL["wide_resnet"], "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    state = {
        "mu": torch.tensor([0.5, 0.5, 0.4]),
        "sigma": torch.tensor([0.5]),
        **random_net("wide_resnet").state_dict(),
    }
    said = refusal(tmp_path, "wide_resnet", state, **values)
    assert "the weights' file normalises images with mean [0.5, 0.5, 0.4]" in said
    assert "write mean: [0.5, 0.5, 0.4] and std: [0.5, 0.5, 0.5]" in said


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [("wide_resnet", {"depth": 27}, "6n \\+ 4"), ("resnext", {"depth": 28}, "9n \\+ 2"), ("resnet26", {"groups": 5}, "must divide"),
     ("resnet26", {"depth": 20}, "depth"), ("torchvision", {"architecture": "resnet50"}, "give weights_enum:"),
     ("torchvision", {"architecture": "resnet50", "weights": "w.pth", "mean": (0, 0, 0)}, "with mean: and std:")],
)  # fmt: skip
def test_configs_that_cannot_be_are_refused(kind: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config_of(kind, **({} if kind == "torchvision" else {"weights": "none"}), **values)


# -- torchvision -------------------------------------------------------------------------------------------------------

TORCHVISION = Torchvision(config_of("torchvision", architecture="resnet50", weights_enum="IMAGENET1K_V1"))


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    nn.init.normal_(net.heads.head.weight)
    return net.eval()


def small_swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5).eval()


def small_resnet() -> ResNet:
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()


def torchvision_model(make: Callable[[], nn.Module]) -> SourceModel:
    return SourceModel(make().requires_grad_(False), (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), TORCHVISION)


@pytest.mark.parametrize(
    ("make", "stages", "width", "transformer"),
    [(small_resnet, 4, 512, False), (small_vit, 4, 16, True), (small_swin, 2, 16, False)],
)
def test_torchvisions_networks_have_their_parts(
    make: Callable[[], nn.Module], stages: int, width: int, transformer: bool
) -> None:
    model = torchvision_model(make)
    assert torch.equal(model(X), model.net(model.normalise(X)))
    assert torch.equal(model.head(model.features(X)), model(X))
    logits, embeddings = model.embeddings(X)
    assert embeddings.shape == (4, width)
    assert torch.equal(model.classifier()(embeddings), logits)
    assert model.num_classes == 5
    logits, outputs = model.stage_features(X)
    assert len(outputs) == len(model.stages()) == stages
    assert outputs[-1].shape == (4, width)
    assert (model.is_transformer, model.has_class_token) == (transformer, transformer)


def test_the_class_token_of_torchvisions_vit_is_found_after_each_block() -> None:
    model = torchvision_model(small_vit)
    logits, tokens = model.token_features(X)
    assert [token.shape for token in tokens] == [(4, 16)] * 4
    assert torch.allclose(model.net.heads(model.net.encoder.ln(tokens[-1])), logits, atol=1e-6)  # type: ignore[operator,union-attr]
    with pytest.raises(MissingPart, match="SwinTransformer has no class token"):
        torchvision_model(small_swin).token_features(X)


def test_stages_of_torchvisions_swin_are_averaged_over_positions() -> None:
    model = torchvision_model(small_swin)
    maps = model.net.features[:4](model.normalise(X))  # type: ignore[index]
    assert maps.shape == (4, 4, 4, 16)
    assert torch.allclose(model.stage_features(X)[1][-1], maps.mean((1, 2)), atol=1e-6)


def test_mggs_features_run_on_torchvisions_vit() -> None:
    from tta_bench.methods.alignment import following_norms

    model = torchvision_model(small_vit)
    encoder: Any = model.net.encoder
    assert following_norms(model) == [encoder.layers[i].ln_1 for i in (1, 2, 3)] + [encoder.ln]


def test_preprocessing_is_that_of_the_weights() -> None:
    assert TORCHVISION.normalisation(nn.Identity()) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert TORCHVISION.geometry(nn.Identity()) == Geometry(256, 224, "bilinear")
    assert TORCHVISION.image_size(nn.Identity()) == 224
    assert TORCHVISION.tag == "torchvision/resnet50.IMAGENET1K_V1"
    second = Torchvision(
        config_of("torchvision", architecture="resnet50", weights_enum="IMAGENET1K_V2", mean=(0, 0, 0), image_size=32)
    )
    assert second.geometry(nn.Identity()) == Geometry(232, 224, "bilinear")
    assert second.normalisation(nn.Identity())[0] == (0, 0, 0)
    assert second.image_size(nn.Identity()) == 32
    swag = Torchvision(config_of("torchvision", architecture="vit_b_16", weights_enum="IMAGENET1K_SWAG_E2E_V1"))
    assert swag.geometry(nn.Identity()) == Geometry(384, 384, "bicubic")
    own = Torchvision(config_of("torchvision", architecture="vit_b_16", weights="w.pth", **HALF))
    assert (own.geometry(small_vit()), own.image_size(small_vit()), own.image_size(small_resnet())) == (None, 32, None)
    assert own.tag == "torchvision/vit_b_16"


def test_published_weights_are_fetched_with_their_hash_and_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    state = resnet18().state_dict()

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        asked.append((url, options))
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    model = open_network(config_of("torchvision", architecture="resnet18", weights_enum="IMAGENET1K_V1")).load()
    [(url, options)] = asked
    assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert options["check_hash"] is True
    assert options["weights_only"] is True
    assert torch.equal(model.net.state_dict()["fc.weight"], state["fc.weight"])
    assert model.num_classes == 1000


def test_weights_that_cannot_be_fetched_say_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UsageError, match=r"weights cannot be fetched: URLError.*\n.*give a local file"):
        open_network(config_of("torchvision", architecture="resnet18", weights_enum="IMAGENET1K_V1")).load()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architecture": "resnet5"}, "torchvision has no classifier 'resnet5'\n  hint: did you mean 'resnet50'"),
        ({"weights_enum": "IMAGENET1K_V3"}, "torchvision has no weights_enum 'IMAGENET1K_V3' of resnet18"),
        ({"weights_enum": "DEFAULT"}, "DEFAULT does not name weights"),
        ({"options": {"classes": 10}}, "torchvision cannot build it: TypeError"),
        ({"options": {"weights": "DEFAULT"}}, "torchvision cannot build it: TypeError"),
        ({"architecture": "alexnet"}, "kind torchvision has ResNets, ViTs and Swin Transformers, and alexnet is none"),
    ],
)
def test_what_torchvision_lacks_is_refused(values: dict[str, Any], said: str) -> None:
    config = config_of("torchvision", **{"architecture": "resnet18", "weights_enum": "IMAGENET1K_V1", **values})
    with torch.device("meta"), pytest.raises(UsageError) as caught:
        open_network(config).load()
    assert said in str(caught.value)


def test_older_names_in_torchvisions_vit_files_are_read_as_torchvision_reads_them() -> None:
    net, old = small_vit(), {}
    for name, tensor in net.state_dict().items():
        old[name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")] = tensor
    assert len(set(old) - set(net.state_dict())) == 16
    assert {own_name(name) for name in old} == set(net.state_dict())
    net.load_state_dict(dict(old))
    assert all(own_name(name) == name for name in [*net.state_dict(), *small_swin().state_dict()])


def test_a_file_of_torchvisions_loads_with_older_names_and_is_refused_where_it_does_not_fit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Torchvision, "_random", lambda self: small_vit())
    torch.manual_seed(1)
    state = {name: torch.randn_like(tensor) for name, tensor in small_vit().state_dict().items()}
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t for name, t in state.items()
    }
    config = config_of("torchvision", architecture="vit_b_16", weights=saved(tmp_path, old), **HALF)
    loaded = open_network(config).load().net.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    said = refusal(tmp_path, "torchvision", random_net("resnet26").state_dict(), architecture="vit_b_16", **HALF)
    assert "kind: resnet26" in said


# -- methods -----------------------------------------------------------------------------------------------------------


def every_model(path: pathlib.Path) -> dict[str, SourceModel]:
    makers = {"torchvision resnet": small_resnet, "torchvision vit": small_vit, "torchvision swin": small_swin}
    return {kind: model_of(path, kind) for kind in SMALL} | {
        name: torchvision_model(make) for name, make in makers.items()
    }


def test_features_embeddings_and_stages_of_every_kind(tmp_path: pathlib.Path) -> None:
    for kind, model in every_model(tmp_path).items():
        assert torch.equal(model.head(model.features(X)), model(X)), kind
        logits, embeddings = model.embeddings(X)
        assert torch.equal(model.classifier()(embeddings), logits), kind
        outputs = model.stage_features(X)[1]
        assert [out.shape[0] for out in outputs] == [4] * len(model.stages()), kind
        assert all(out.dim() == 2 for out in outputs), kind


LATE = {  # module names that ``frozen: structure`` freezes begin with one of these
    "wide_resnet": ("block3", "bn1", "fc"), "resnext": ("stage_3", "classifier"), "resnet26": ("layer3", "bn", "fc"),
    "torchvision resnet": ("layer4", "avgpool", "fc"), "torchvision vit": ("encoder.layers.encoder_layer_3", "encoder.ln", "heads"),
    "torchvision swin": ("features.3", "norm", "permute", "avgpool", "flatten", "head"),
}  # fmt: skip


def test_tent_and_sar_adapt_every_kind(tmp_path: pathlib.Path) -> None:
    models = every_model(tmp_path)
    assert set(models) == set(LATE)
    for kind, model in models.items():
        frozen = frozen_by_structure(model)
        assert {name for name, m in model.net.named_modules() if m in frozen} == {
            name for name, _ in model.net.named_modules() if name.startswith(LATE[kind])
        }, kind
        before = model.net.state_dict()
        for cls, config in ((Tent, {}), (Sar, {"frozen": "structure", "entropy_margin": 10.0})):
            adapter = ready(cls, copy.deepcopy(model), lr=0.01, **config)
            for _ in range(2):
                assert adapter.step(X).isfinite().all(), kind
            changed = {n for n, p in adapter.model.net.named_parameters() if not torch.equal(p, before[n])}
            late = {name for name in changed if name.startswith(LATE[kind])}
            norms = {f"{n}.{p}" for n, m in model.net.named_modules() if model.norm_kind(m) for p in ("weight", "bias")}
            assert changed, kind
            assert changed <= norms, kind
            assert bool(late) == (cls is Tent), (kind, late)


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text()


def test_the_pages_suite_lines_are_configs_of_their_kinds() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    models = yaml.safe_load(block)["models"]
    for values in models:
        assert installed().load(values["kind"], MODELS).Config(**values).kind == values["kind"]
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert (
        rows
        == {entry.name for entry in installed().entries(MODELS)}
        == {"timm", *(values["kind"] for values in models)}
    )
    assert "(models.md)" in (pathlib.Path(__file__).resolve().parent.parent / "docs" / "plugins.md").read_text()


def test_the_page_knows_which_of_timms_weights_are_torchvisions() -> None:
    import timm

    for tag, weights in (("tv", ResNet50_Weights.IMAGENET1K_V1), ("tv2", ResNet50_Weights.IMAGENET1K_V2)):
        assert timm.get_pretrained_cfg(f"resnet50.{tag}_in1k").url == weights.url
    assert ViT_B_16_Weights.IMAGENET1K_V1.url.rpartition("/")[2] in PAGE


def test_published_rows_are_compared_with_torchvisions_own_network() -> None:
    from types import SimpleNamespace

    from tta_bench.report.matching import _model

    def reasons(model: str, weights: str, tag: str, name: str = "mine", **about: Any) -> list[str] | None:
        ours: Any = SimpleNamespace(about={"tag": tag, **about}, row=SimpleNamespace(model=name))
        number: Any = SimpleNamespace(model=model, weights=weights, preprocessing="")
        return _model(number, ours)

    r50 = "torchvision ResNet50 IMAGENET1K_V1"
    assert reasons("R50-BN", r50, "torchvision/resnet50.IMAGENET1K_V1") == []
    assert reasons("R50-BN", r50, "resnet50.tv_in1k") == []
    assert reasons("R50-BN", r50, "torchvision/resnet50.IMAGENET1K_V2") == [f"other weights, published {r50}"]
    assert reasons("tv-ViT-B16", "", "torchvision/vit_b_16.IMAGENET1K_V1") == ["published weights not stated"]
    assert reasons("WRN-28-10", "", "WRN-28-10") == ["published weights not stated"]
    assert reasons("WRN-28-10", "", "WRN-28-10", "WRN-28-10") == []
    assert reasons("WRN-28-10", "", "WRN-40-2") is None
    assert reasons("RN26-GN", "", "ResNet-26-GN", options={"groups": 4}) is None


# -- a suite -----------------------------------------------------------------------------------------------------------

SUITE = """\
name: literature
data: {kind: digits, max_images: 20}
models:
  - {name: wrn, kind: wide_resnet, depth: 10, width: 1, weights: wrn.pth, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  - {name: resnext, kind: resnext, depth: 11, weights: resnext.pth}
  - {name: rn26, kind: resnet26, weights: rn26.pth}
  - {name: rn26_4, kind: resnet26, weights: rn26.pth, groups: 4}
  - {name: tv, kind: torchvision, architecture: resnet18, weights: tv.pth, options: {num_classes: 10}, mean: [0, 0, 0], std: [1, 1, 1]}
methods: [{name: tent, config: {lr: 1.0e-3}}]
batch_size: 10
corruptions: [clean]
seeds: [0]
"""


def test_a_suite_with_each_kind_runs(run_cli: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    nets = {
        "wrn": open_network(config_of("wide_resnet", weights="", depth=10, width=1, **HALF)).architecture(),  # type: ignore[attr-defined]
        "resnext": open_network(config_of("resnext", weights="", depth=11)).architecture(),  # type: ignore[attr-defined]
        "rn26": random_net("resnet26"), "tv": resnet18(num_classes=10),
    }  # fmt: skip
    for name, net in nets.items():
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
    (tmp_path / "s.yaml").write_text(SUITE)
    planned = run_cli("run", "s.yaml", "--dry-run")
    assert planned.code == 0, planned.err
    assert re.search(r"5 trials", planned.out + planned.err)
    done = run_cli("run", "s.yaml", "--out", "out", "--executor", "local", "--only", "model=wrn|tv")
    assert done.code == 0, done.err
    assert "2 ok" in done.err
    document = json.loads((tmp_path / "out" / "plan.json").read_text())
    about = document["models"]
    tags = {
        "wrn": "WRN-10-1",
        "resnext": "ResNeXt-11-4x32d",
        "rn26": "ResNet-26-GN",
        "rn26_4": "ResNet-26-GN",
        "tv": "torchvision/resnet18",
    }
    assert {name: model["tag"] for name, model in about.items()} == tags
    assert {name: model.get("options") for name, model in about.items()} == {
        "wrn": None, "resnext": None, "rn26": None, "rn26_4": {"groups": 4}, "tv": {"num_classes": 10},
    }  # fmt: skip
    assert about["resnext"]["mean"] == [0.5, 0.5, 0.5]
    assert len({trial["key"] for trial in document["trials"]}) == 5
    assert str(tmp_path) not in json.dumps(about), "weights are known by content, not by their place"


def test_a_file_that_does_not_fit_is_shown_at_its_line(run_cli: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    torch.save(random_net("resnet26").state_dict(), tmp_path / "wrn.pth")
    [head, *rest] = SUITE.partition("  - {name: resnext")[0::2]
    (tmp_path / "s.yaml").write_text(head + "methods:" + rest[0].partition("methods:")[2])
    refused = run_cli("run", "s.yaml", "--dry-run")
    assert refused.code == 2
    assert re.search(r"s\.yaml:4:\d+: weights do not fit the model: missing", refused.err)
    assert "kind: resnet26, width: 1, classes: 10" in refused.err
