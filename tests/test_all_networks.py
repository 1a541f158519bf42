"""Every family of timm, built on the meta device: what a source model can be. Minutes, so only on request."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench.models import MissingPart, SourceModel
from tta_bench.networks.from_timm import ModelSpec, Timm, build_network

ASKED = "TTA_BENCH_ALL_NETWORKS"
pytestmark = pytest.mark.skipif(not os.environ.get(ASKED), reason=f"builds every family of timm: set {ASKED}=1")


def _families() -> list[tuple[str, str]]:
    """(timm's module, its first network by name)."""
    import timm

    return [(module, names[0]) for module in timm.list_modules() if (names := timm.list_models(module=module))]


@pytest.mark.parametrize(("family", "name"), _families() if os.environ.get(ASKED) else [])
def test_it_is_a_source_model(family: str, name: str) -> None:
    """Logits are of the right shape, come from features and head too, and every classifier takes part in them."""
    spec = ModelSpec(
        name=family, architecture=name, options={"num_classes": 10}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    with torch.device("meta"):
        net = build_network(spec)
        model = SourceModel(net, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Timm(spec))
        x = torch.rand(2, *net.pretrained_cfg["input_size"])  # type: ignore[index,misc]
    reached = list[nn.Module]()
    for head in model.classifiers():
        head.register_forward_pre_hook(lambda module, _: reached.append(module))
    assert model(x).shape == (2, 10)
    assert {*reached} == {*model.classifiers()}
    assert model.head(model.features(x)).shape == (2, 10)
    try:
        stages = f"{len(model.stages())} stages"
    except MissingPart:
        stages = "no stages"
    print(f"{family}: {name}, {stages}, classifiers: {len(model.classifiers())}")  # pytest -rP lists what runs
