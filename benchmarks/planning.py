"""What planning costs where images are known by content: seconds, the first time and again.

Makes an ImageNet-C tree of one shift (1,000 classes × 50 files of 20 kB: random bytes, for planning decodes none) and a
ResNet-18 without training, and plans ``source`` and ``tent`` over it, each time in a fresh process: with an empty memory
of digests, again, and after one file was replaced. Prints the seconds of ``plan.make``, those spent reading, and the files
read. The first time also depends on whether the files are in the system's cache: here they are.

    python benchmarks/planning.py [--files 50000]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

CLASSES = 1000
BYTES = 20_000  # about what an image of ImageNet-C takes

SUITE = """\
name: planning
data: {{kind: imagenet_c, root: {root}/images}}
models:
  - name: resnet18
    architecture: resnet18
    weights: {root}/resnet18.safetensors
    mean: [0.5, 0.5, 0.5]
    std: [0.2, 0.2, 0.2]
methods: [source, tent]
corruptions: [contrast]
"""

PLAN = """\
import json, sys, time
from tta_bench import plan, suite
from tta_bench.data.digests import Digests
import timm
loaded, digests = suite.load(sys.argv[1]), Digests()
start = time.perf_counter()
plan.make(loaded, digests=digests)
print(json.dumps({"seconds": time.perf_counter() - start, "reading": digests.cost.seconds, "files": digests.cost.files}))
"""


def make(root: pathlib.Path, files: int) -> pathlib.Path:
    """Write images, weights and the suite below ``root``; returns the suite's file."""
    import safetensors.torch

    from tta_bench.networks.from_timm import ModelSpec, build_network

    for number in range(files):
        folder = root / "images" / "contrast" / "5" / f"n{number % CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:08d}.JPEG").write_bytes(os.urandom(BYTES))
    net = build_network(ModelSpec(name="resnet18", architecture="resnet18"))
    safetensors.torch.save_file(net.state_dict(), root / "resnet18.safetensors")
    (root / "suite.yaml").write_text(SUITE.format(root=root))
    return root / "suite.yaml"


def plan(suite: pathlib.Path) -> dict[str, Any]:
    """Plan in a fresh process whose memory of digests lies beside the suite."""
    environment = {**os.environ, "TTA_BENCH_CACHE": str(suite.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(suite)], env=environment, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        suite = make(pathlib.Path(folder), files)
        victim = next((suite.parent / "images").rglob("*.JPEG"))
        for title, prepare in (
            ("first time", lambda: None),
            ("again", lambda: None),
            ("one file replaced", lambda: victim.write_bytes(os.urandom(BYTES))),
        ):
            prepare()
            told = plan(suite)
            print(
                f"{title}: planned in {told['seconds']:.2f} s; {told['files']:,} files read in {told['reading']:.2f} s"
            )


if __name__ == "__main__":
    main()
