"""What a method needs and lacks, known before it runs."""

from __future__ import annotations

import pathlib

import pytest
import torch
from networks import small_model
from trials import Plain, Runner

from tta_bench.adapter import Needs
from tta_bench.methods.norm import Norm
from tta_bench.networks.from_timm import ModelSpec, build_network


def test_a_method_may_decline_before_it_runs(run: Runner) -> None:
    class Declines(Plain):
        needs = Needs(norm_kinds=("layer",))

        def setup(self) -> None:
            raise AssertionError("it was set up")

    result = run(Declines)
    assert (result.status, result.reason) == ("skipped", "the model has no layer normalisation layer")


def test_a_method_that_asks_for_stages_where_there_are_none_is_skipped(run: Runner) -> None:
    class Staged(Plain):
        def setup(self) -> None:
            for layer in range(1, 5):  # as a network without them
                self.model.net.add_module(f"part{layer}", self.model.net._modules.pop(f"layer{layer}"))
            self.model.stages()

    result = run(Staged)
    assert (result.status, result.reason) == ("skipped", "ResNet has neither blocks nor stages")


def test_a_last_batch_of_one_image_is_foreseen_where_maps_are_of_one_pixel(run: Runner, tmp_path: pathlib.Path) -> None:
    small = ("batch_size: 40", "batch_size: 33")  # 100 images: 33, 33, 33, 1
    options = {"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    torch.save(
        build_network(ModelSpec(name="m", architecture="resnet18", options=options)).state_dict(), tmp_path / "w.pth"
    )
    shipped = "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    whole = (("    stem: cifar\n", ""), (shipped, str(tmp_path / "w.pth")))  # 32x32 images are 1x1 maps in the end
    ones = [run(Norm, small), run(Norm, small, *whole), run(Plain, small, *whole), run(Norm, *whole)]
    assert [result.status for result in ones] == ["ok", "skipped", "ok", "ok"]
    assert ones[1].reason.startswith("a batch of the stream has 1 of 33 images: ")


@pytest.mark.parametrize(("min_batch", "status"), [(40, "ok"), (41, "skipped")])
def test_a_batch_size_below_min_batch_is_declined(run: Runner, min_batch: int, status: str) -> None:
    class Needy(Plain):
        needs = Needs(min_batch=min_batch)

    result = run(Needy)
    assert result.status == status
    assert result.reason == ("" if status == "ok" else "batch size 40 is below the 41 that the method needs")


@pytest.mark.parametrize(
    ("needs", "reason"),
    [(Needs(class_token=True), "the model has no class token"), (Needs(linear_head=True), ""), (Needs(packages=("torch",)), ""),
     (Needs(packages=("torch", "tta-none", "tta-no.ne")), "not installed: pip install tta-none tta-no.ne")],
)  # fmt: skip
def test_what_a_method_needs_and_lacks_is_its_reason_to_be_skipped(run: Runner, needs: Needs, reason: str) -> None:
    class Needing(Plain):
        pass

    Needing.needs = needs
    result = run(Needing)
    assert (result.status, result.reason) == ("skipped" if reason else "ok", reason)
    if not reason:
        assert result.facts["needs_packages"] == ",".join(needs.packages)
        assert (result.facts["needs_class_token"], result.facts["needs_linear_head"]) == (False, needs.linear_head)


def test_class_tokens_and_linear_heads_are_recognised() -> None:
    vit, resnet = small_model("layer"), small_model("batch")
    assert [Needs(class_token=True).lacking(m, 8) for m in (vit, resnet)] == [None, "the model has no class token"]
    vit.net.reset_classifier(0)  # type: ignore[operator]
    assert Needs(linear_head=True).lacking(resnet, 8) is None
    assert Needs(linear_head=True).lacking(vit, 8) == "the model's classifier is not a linear layer but Identity"
