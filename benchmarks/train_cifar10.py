"""Train the three CIFAR-10 source models of ``suites/cifar10_c.yaml``, and export the images that it reads.

    python benchmarks/train_cifar10.py --download data --out weights
    python benchmarks/train_cifar10.py --archive data/cifar-10-batches-bin --out weights --model vit_tiny --device cuda
    python benchmarks/train_cifar10.py --archive data/cifar-10-binary.tar.gz --export cifar10

The training set is CIFAR-10's own, clean: crops and flips only, the ViT also mixup and cutmix; no corruption is seen.
The export makes ``DIR/test/<class>/<number>.png`` and ``DIR/train/<class>/<number>.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import pathlib
import shutil
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from training import as_tensor, lr_factor, make_optimizer, write_weights

from tta_bench.data.images import ArrayImages
from tta_bench.data.kinds.cifar_c import read_archive
from tta_bench.errors import Problem, UsageError
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the archive
FOLDER = "cifar-10-batches-bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2471, 0.2435, 0.2616)
_RESNET = {"num_classes": 10, "channels": [64, 64, 128, 256]}


@dataclass(frozen=True)
class Recipe:
    """How one source model is trained.

    Attributes:
        spec: the network.
        optimizer: "sgd" (Nesterov, momentum 0.9) or "adamw".
        lr: the highest learning rate; it rises over the first twentieth and then falls along a cosine.
        weight_decay: of the weights with two dimensions and more.
        epochs: passes over the training images, unless ``--epochs`` says otherwise.
        mix: whether batches are mixed (mixup or cutmix, in turn at random).
        batch_size: images per step.
    """

    spec: ModelSpec
    optimizer: str
    lr: float
    weight_decay: float
    epochs: int
    mix: bool = False
    batch_size: int = 128


def _spec(name: str, architecture: str, options: dict[str, object], stem: str | None) -> ModelSpec:
    return ModelSpec(name=f"cifar10_{name}", architecture=architecture, options=options, stem=stem, mean=MEAN, std=STD)


RECIPES = {
    "resnet18_bn": Recipe(_spec("resnet18_bn", "resnet18", _RESNET, "cifar"), "sgd", 0.1, 5e-4, epochs=30),
    "resnet18_gn": Recipe(
        _spec("resnet18_gn", "resnet18", {**_RESNET, "norm_layer": "groupnorm"}, "cifar"), "sgd", 0.05, 5e-4, epochs=30
    ),
    "vit_tiny": Recipe(
        _spec("vit_tiny", "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "num_classes": 10}, None),
        "adamw", 1e-3, 0.05, epochs=100, mix=True,
    ),
}  # fmt: skip


def file_md5(path: pathlib.Path) -> str:
    """MD5 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def check_md5(path: pathlib.Path, expected: str) -> None:
    """Compare a downloaded archive with its published checksum.

    Raises:
        UsageError: they differ.
    """
    found = file_md5(path)
    if found != expected:
        hint = "delete the file and download it again"
        what = f"MD5 is {found}, published is {expected}: the archive is damaged"
        raise UsageError(Problem(what, where=str(path), hint=hint))


def download(folder: pathlib.Path, url: str = URL, md5: str = MD5) -> pathlib.Path:
    """The archive in ``folder``, fetched from ``url`` unless it is there already.

    Raises:
        UsageError: it cannot be fetched, or its MD5 is not ``md5``; nothing is left under its name then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / url.rpartition("/")[2]
    if path.exists():
        check_md5(path, md5)
        return path
    partial = path.with_name(path.name + ".partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as file:
            shutil.copyfileobj(response, file)
        check_md5(partial, md5)
        partial.replace(path)
    except OSError as error:
        hint = "download it by other means and give it with --archive"
        raise UsageError(Problem(f"cannot download: {error}", url, hint=hint)) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def archive_folder(archive: pathlib.Path) -> pathlib.Path:
    """The folder that holds ``data_batch_*.bin``: given itself or its parent, or a .tar.gz, unpacked beside it once.

    Raises:
        UsageError: there is no such archive, or it is not the binary version.
    """
    if archive.is_dir():
        return archive / FOLDER if (archive / FOLDER).is_dir() else archive
    if not archive.is_file():
        raise UsageError(Problem("no such archive", str(archive), hint=f"--download DIR fetches it from {URL}"))
    folder = archive.parent / FOLDER
    if not folder.is_dir():
        unpack(archive, folder)
    return folder


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpack the .bin files of a .tar.gz into ``folder``; it appears only when complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None and member.name.endswith(".bin"):
                    with content, (partial / pathlib.PurePosixPath(member.name).name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(partial)
        raise UsageError(Problem(f"cannot unpack: {error}", str(archive), hint="download it again")) from error
    partial.replace(folder)


def export(images: ArrayImages, folder: pathlib.Path) -> None:
    """Write ``folder/<class>/<number>.png``; the number is the record's place in the archive's part."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        path = folder / CLASSES[label] / f"{number:05d}.png"
        partial = path.with_suffix(".partial")
        Image.fromarray(pixels).save(partial, "PNG")
        partial.replace(path)


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """A 32×32 crop from each image (B, 3, 32, 32) padded with 4 black pixels a side, mirrored half of the time."""
    count, _, side, _ = x.shape
    offset = torch.randint(0, 9, (2, count, 1), generator=generator).to(x.device)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(x.device)
    steps = torch.arange(side, device=x.device)
    rows = offset[0] + steps
    columns = offset[1] + torch.where(mirrored, steps.flip(0), steps)
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    picked = padded[torch.arange(count, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def mix(x: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Beta(0.8, 0.8)) or cutmix (Beta(1, 1)), each for half of the batches.

    Args:
        x: images (B, 3, H, W).
        targets: class probabilities (B, C).

    Returns:
        Mixed images and targets, of the same shapes.
    """
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    if rng.random() < 0.5:
        share = float(rng.beta(0.8, 0.8))
        return x * share + x[other] * (1 - share), targets * share + targets[other] * (1 - share)
    height, width = x.shape[-2:]
    cut = math.sqrt(1 - float(rng.beta(1.0, 1.0)))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (int(np.clip(row + sign * height * cut / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(column + sign * width * cut / 2, 0, width)) for sign in (-1, 1))
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)  # what the clipped rectangle left
    return mixed, targets * share + targets[other] * (1 - share)


def batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented images (B, 3, 32, 32) and target probabilities (B, 10); a short last batch is left out."""
    size = min(recipe.batch_size, len(images))
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for rows in order.split(size)[: len(images) // size]:
        x, targets = crop_and_flip(images[rows], generator), F.one_hot(labels[rows], len(CLASSES)).float()
        yield mix(x, targets, generator) if recipe.mix else (x, targets)


def accuracy_pct(model: SourceModel, images: Tensor, labels: Tensor) -> float:
    """Per cent correct over images (N, 3, 32, 32) in [0, 1]."""
    model.eval()
    with torch.inference_mode():
        hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return 100 * float(sum(hits)) / len(labels)


def new_model(recipe: Recipe, seed: int, device: torch.device) -> SourceModel:
    """The untrained model; the global generator, from which timm draws the initial weights, is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(recipe.spec)
    return SourceModel(net, MEAN, STD).to(device)


def train(
    recipe: Recipe, train_part: tuple[Tensor, Tensor], test_part: tuple[Tensor, Tensor], seed: int
) -> SourceModel:
    """Train on ``train_part`` (images, labels) on their device; accuracy on ``test_part`` is printed, never used."""
    images, labels = train_part
    model = new_model(recipe, seed, images.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model.net, recipe.optimizer, recipe.lr, recipe.weight_decay)
    steps = recipe.epochs * (len(images) // min(recipe.batch_size, len(images)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        model.train()
        for x, targets in batches(images, labels, recipe, generator):
            loss = F.cross_entropy(model(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        pct, seconds = accuracy_pct(model, *test_part), time.perf_counter() - start
        done = f"{recipe.spec.name}: epoch {epoch + 1}/{recipe.epochs}"
        print(f"{done}, test {pct:.2f} % correct, {seconds:.0f} s", flush=True)
    return model


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--archive", type=pathlib.Path, help=f"cifar-10-binary.tar.gz, or its folder {FOLDER}")
    origin.add_argument("--download", type=pathlib.Path, metavar="DIR", help="fetch the archive into this folder")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the weights")
    parser.add_argument("--export", type=pathlib.Path, metavar="DIR", help="write the images as image folders")
    parser.add_argument("--model", default="all", choices=["all", *RECIPES])
    parser.add_argument("--epochs", type=int, help="instead of each model's own")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-train", type=int, metavar="N", help="only the first N training images")
    args = parser.parse_args(argv)
    if args.out is None and args.export is None:
        parser.error("give --out (train), --export (write the images), or both")
    for name in ("epochs", "limit_train"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return args


def usable_device(name: str) -> torch.device:
    """The device called ``name``.

    Raises:
        UsageError: this machine, or this build of torch, has none.
    """
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        what = f"cannot use it: {str(error).splitlines()[0]}"
        raise UsageError(Problem(what, where=f"--device {name}", hint="--device cpu always works")) from error


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    folder = archive_folder(download(args.download) if args.download else args.archive)
    parts = {part: read_archive(str(folder), 10, part) for part in ("train", "test")}
    if args.export:
        for part, images in parts.items():
            export(images, args.export / part)
            print(f"{args.export / part}: {len(images.labels)} images")
    if args.out is None:
        return
    device = usable_device(args.device)
    limit = {"train": args.limit_train, "test": None}
    tensors = {
        part: (as_tensor(a.images[: limit[part]]).to(device), torch.from_numpy(a.labels[: limit[part]]).to(device))
        for part, a in parts.items()
    }
    for name in RECIPES if args.model == "all" else [args.model]:
        recipe = dataclasses.replace(RECIPES[name], epochs=args.epochs or RECIPES[name].epochs)
        model = train(recipe, tensors["train"], tensors["test"], args.seed)
        path = args.out / f"{recipe.spec.name}.safetensors"
        write_weights(model.net, recipe.spec, path)
        print(path)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for bad input."""
    try:
        run(parse(argv))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
