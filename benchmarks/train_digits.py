"""Train the two small source models of the digits demo and write ``tta_bench/data/kinds/weights/digits_*.safetensors``.

    python benchmarks/train_digits.py            # trains both, a few minutes on one core
    python benchmarks/train_digits.py --check    # trains nothing: clean accuracy of the files that are there
    python benchmarks/train_digits.py --model digits_resnet_gn --out tests/pinned    # the GroupNorm ResNet of a test

They see the 797 training digits only, shifted, turned and scaled a little, and no corruption. The same thread count
gives the same bytes.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import as_tensor, lr_factor, make_optimizer, write_weights

from tta_bench.data.kinds.digits import load_split
from tta_bench.models import SourceModel, load_weights
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.networks.state_files import read_state

WEIGHTS = pathlib.Path(__file__).resolve().parent.parent / "tta_bench" / "data" / "kinds" / "weights"
MEAN = (0.3, 0.3, 0.3)  # of the training digits, rounded; a suite repeats both
STD = (0.36, 0.36, 0.36)


@dataclass(frozen=True)
class Recipe:
    """How one source model is trained.

    Attributes:
        spec: the network.
        optimizer: "sgd" (Nesterov, momentum 0.9) or "adamw".
        lr: the highest learning rate; it rises over the first twentieth and then falls along a cosine.
        weight_decay: of the weights with two dimensions and more.
        epochs: passes over the 797 images.
        batch_size: images per step.
    """

    spec: ModelSpec
    optimizer: str
    lr: float
    weight_decay: float
    epochs: int
    batch_size: int = 64


RECIPES = (
    Recipe(
        ModelSpec(
            name="digits_resnet_bn", architecture="resnet18", stem="cifar", mean=MEAN, std=STD,
            options={"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
        ),
        "sgd", lr=0.1, weight_decay=5e-4, epochs=40,
    ),
    Recipe(
        ModelSpec(
            name="digits_vit_ln", architecture="vit_tiny_patch16_224", mean=MEAN, std=STD,
            options={"num_classes": 10, "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
        ),
        "adamw", lr=2e-3, weight_decay=0.05, epochs=80,
    ),
)  # fmt: skip
UNSHIPPED = (
    Recipe(
        ModelSpec(
            name="digits_resnet_gn", architecture="resnet18", mean=MEAN, std=STD,
            options={"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [32, 32, 64, 64], "norm_layer": "groupnorm",
                     "output_stride": 8},  # maps of 8x8 and then 4x4, so that a group has some values to normalise
        ),
        "adamw", lr=3e-3, weight_decay=0.05, epochs=60,
    ),
)  # fmt: skip


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, 3, H, W) turned by up to 10°, scaled by 0.9–1.1 and shifted by up to 2 pixels, black outside."""
    turn, zoom, right, down = (torch.rand(4, len(x), generator=generator) * 2 - 1).unbind()
    angle, scale = turn * math.radians(10), 1 + 0.1 * zoom
    shift = torch.stack([right, down], dim=1) * (2 * 2 / x.shape[-1])  # the grid spans −1..1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rotation = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    grid = F.affine_grid(torch.cat([rotation, shift.unsqueeze(2)], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train(recipe: Recipe, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """The trained network, in eval mode, from images (N, 3, 32, 32) in [0, 1] and labels (N,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # timm draws the initial weights from the global generator
        net = build_network(recipe.spec)
    model = SourceModel(net, MEAN, STD).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(net, recipe.optimizer, recipe.lr, recipe.weight_decay)
    steps = recipe.epochs * (len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(recipe.batch_size)[: len(images) // recipe.batch_size]:
            loss = F.cross_entropy(model(moved(images[batch], generator)), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy_pct(spec: ModelSpec, path: pathlib.Path, images: Tensor, labels: Tensor) -> float:
    """Per cent correct of the weights in ``path``, loaded strictly and cast to float32."""
    net = build_network(spec)
    load_weights(net, read_state(path), spec.name)
    model = SourceModel(net.float(), MEAN, STD).eval()
    with torch.inference_mode():
        correct = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(100), labels.split(100), strict=True)]
    return 100 * float(sum(correct)) / len(labels)


def main(argv: list[str] | None = None) -> None:
    """Train, or check, the models; one line for each."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--model", default="all", choices=["all", *(r.spec.name for r in (*RECIPES, *UNSHIPPED))])
    parser.add_argument("--check", action="store_true", help="train nothing, report the accuracy of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; the last bits depend on it")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    split = load_split()
    test, test_labels = as_tensor(split.test_images), torch.tensor(split.test_labels)
    for recipe in RECIPES if args.model == "all" else [r for r in (*RECIPES, *UNSHIPPED) if r.spec.name == args.model]:
        path, start = args.out / f"{recipe.spec.name}.safetensors", time.perf_counter()
        if not args.check:
            net = train(recipe, as_tensor(split.train_images), torch.tensor(split.train_labels), args.seed)
            write_weights(net, recipe.spec, path)
        pct = accuracy_pct(recipe.spec, path, test, test_labels)
        seconds = time.perf_counter() - start
        result = f"{pct:.1f} % of {len(test)} held-out digits, {path.stat().st_size} bytes"
        print(f"{recipe.spec.name}: {result}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
