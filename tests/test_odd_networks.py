"""Networks that are not built as most: two classifiers, no stages, maps of one pixel. Known before anything runs, or right."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Outcome

from tta_bench import load_results
from tta_bench.networks.from_timm import ModelSpec, build_network

Cli = Callable[..., Outcome]
NETWORKS: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2},
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2, 2]},
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
}
SUITE = """\
name: odd
data: {{kind: digits, max_images: {images}}}
models:
  - {{name: m, architecture: {architecture}, options: {options}, weights: w.pth, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
methods: [source, norm, tent, sar]
batch_size: 20
corruptions: [contrast]
severities: [3]
"""


@pytest.mark.parametrize(
    ("architecture", "images", "statuses", "reason"),
    [("deit_tiny_distilled_patch16_224", 41, ["ok", "skipped", "ok", "ok"], "has no batch normalisation layer"),
     ("densenet121", 40, ["ok", "ok", "ok", "ok"], ""),
     ("resnet18", 41, ["ok", "skipped", "skipped", "skipped"], "a batch of the stream has 1 of 20 images")],
)  # fmt: skip
def test_odd_networks_run_with_right_counts_or_are_skipped_with_the_reason(
    run_cli: Cli, tmp_path: pathlib.Path, architecture: str, images: int, statuses: list[str], reason: str
) -> None:
    options = {"num_classes": 10, **NETWORKS[architecture]}
    torch.manual_seed(0)
    torch.save(build_network(ModelSpec(name="m", architecture=architecture, options=options)).state_dict(), "w.pth")
    (tmp_path / "odd.yaml").write_text(
        SUITE.format(architecture=architecture, options=options, images=images), encoding="utf-8"
    )
    outcome = run_cli("run", "odd.yaml", "--executor", "local", "--cpus-per-trial", 1)
    assert outcome.code == 0, outcome.err
    rows = load_results("results/odd", table="segments").set_index("label")
    assert rows["status"].to_dict() == dict(zip(("source", "norm", "tent", "sar"), statuses, strict=True))
    ran = rows[rows["status"] == "ok"]
    assert ran["images_forwarded"].drop("sar", errors="ignore").eq(images).all(), "both classifiers count an image once"
    assert ran["images_backwarded"].drop("sar", errors="ignore").to_dict() == {
        label: images if label == "tent" else 0 for label in ran.index if label != "sar"
    }
    assert all(reason in said for said in rows["reason"].dropna() if said)
