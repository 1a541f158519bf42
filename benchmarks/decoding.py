"""Images a second while the image cache is built, against torchvision's ImageFolder and DataLoader on the same images.

    python benchmarks/decoding.py FOLDER [--pairs 5] [--times 8] [--check]

FOLDER is ``<class>/<image>``. Both sides list it, decode every image, resize it to 256 and crop it to 224, in as many
processes as there are cores, in alternating order; our side also writes the array to disk, and computes its checksum and,
the first time, the digests of the files. The images count ``--times`` over, as links. Prints both medians and the median
of the pairs' ratios, by the clock and by processor time, which other work on the machine disturbs less; ``--check``
exits 1 if ours is slower by the clock, or if a pixel differs.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import numpy as np

CORES = len(os.sched_getaffinity(0))


def ours(folder: pathlib.Path, scratch: pathlib.Path) -> tuple[tuple[float, float], np.ndarray]:
    """(seconds and processor seconds to build the cache entry of all images), these."""
    from tta_bench.data import DataRequest
    from tta_bench.data.cache import ImageCache, entry_of
    from tta_bench.data.digests import Digests
    from tta_bench.data.images import listing
    from tta_bench.data.kinds.folder import Folder
    from tta_bench.streams import CLEAN

    digests, cache = Digests(scratch / "digests.sqlite"), ImageCache(pathlib.Path(tempfile.mkdtemp(dir=scratch)))
    listing.cache_clear()
    start, used = time.perf_counter(), processor_seconds()
    data = Folder(Folder.Config(kind="folder", root=str(folder)), DataRequest((CLEAN,)))
    entry = entry_of(data, CLEAN, np.arange(len(data.ids), dtype=np.int32), digests)
    cache.build([entry], CORES)
    cost = time.perf_counter() - start, processor_seconds() - used
    return cost, np.asarray(cache.images(entry).take(np.arange(len(data.ids))))


def torchvisions(folder: pathlib.Path) -> tuple[tuple[float, float], np.ndarray]:
    """(seconds and processor seconds to load all images with torchvision), these."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    start, used = time.perf_counter(), processor_seconds()
    batches = [x for x, _ in DataLoader(ImageFolder(str(folder), steps), batch_size=50, num_workers=CORES)]
    cost = time.perf_counter() - start, processor_seconds() - used
    return cost, np.concatenate([x.numpy() for x in batches]).transpose(0, 2, 3, 1)


def linked(folder: pathlib.Path, times: int, target: pathlib.Path) -> pathlib.Path:
    """A folder of the same classes, in which every image is ``times`` links."""
    for image in sorted(folder.resolve().glob("*/*")):
        (target / image.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (target / image.parent.name / f"{number}_{image.name}").symlink_to(image)
    return target


def main() -> int:
    import tta_bench.torchvision_repair  # noqa: F401  (before torchvision; not in the processes that decode for us)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"tta-bench": [], "torchvision": []}
    cpu: dict[str, list[float]] = {side: [] for side in rates}
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        folder = linked(options.folder, options.times, scratch / "images")
        torchvisions(options.folder)  # warms the file cache, and imports torchvision
        for pair in range(options.pairs):
            pixels = {}
            for side in sorted(rates, reverse=bool(pair % 2)):
                (seconds, used), pixels[side] = ours(folder, scratch) if side == "tta-bench" else torchvisions(folder)
                rates[side].append(len(pixels[side]) / seconds)
                cpu[side].append(len(pixels[side]) / used)
            equal = np.array_equal(pixels["tta-bench"], pixels["torchvision"])
    same = "equal" if equal else "DIFFER"
    print(f"{len(pixels['tta-bench']):,} images, {CORES} cores, {options.pairs} pairs, pixels {same}")
    ratio = report("images a second", rates)
    report("images a second of processor time", cpu)
    return int(options.check and not (equal and ratio >= 1))


def processor_seconds() -> float:
    """Of this process and of those that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def report(unit: str, rates: dict[str, list[float]]) -> float:
    """Print the medians of both sides; returns the median of the ratios."""
    ratio = statistics.median(a / b for a, b in zip(rates["tta-bench"], rates["torchvision"], strict=True))
    medians = ", ".join(f"{side} {statistics.median(values):,.0f}" for side, values in rates.items())
    print(f"{unit}: {medians}, median ratio {ratio:.2f}")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
