"""Folders of ImageNet's classes that have names or numbers in place of WordNet ids, and the commands that rename them.

``python -m tta_bench.data.wnids FOLDER`` prints the commands, for ``sh``; it changes nothing.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence

from tta_bench.data.labels import imagenet_labels, imagenet_names, plain
from tta_bench.data.mending import names


def wnid_of(folder: str) -> str | None:
    """The WordNet id of a folder named after a class, or numbered from 0 in the usual order; None: it is neither."""
    labels = imagenet_labels()
    if folder in labels:
        return folder
    if folder.isascii() and folder.isdigit():
        return labels[int(folder)] if int(folder) < len(labels) else None
    return imagenet_names().get(plain(folder))


def renaming(root: pathlib.Path, unknown: Sequence[str]) -> str:
    """How to rename the folders ``unknown``, of which at least half must be known; else empty."""
    known = [name for name in unknown if wnid_of(name)]
    if 2 * len(known) < len(unknown):
        return ""
    numbers = all(name.isdigit() for name in known)
    what = "numbers of classes, if these count from 0 in the networks' order" if numbers else "names of classes"
    command = f"{shlex.quote(sys.executable)} -m tta_bench.data.wnids {shlex.quote(str(root))}"
    return f"they are {what}: {_move(root, known[0])}; all at once: {command} | sh"


def _move(root: pathlib.Path, name: str) -> str:
    return f"mv -n {shlex.quote(str(root / name))} {shlex.quote(str(root / str(wnid_of(name))))}"


def main(root: pathlib.Path) -> None:
    """Print the command for each folder; those that are no class become comments."""
    for name in names(root):
        if name not in imagenet_labels():
            print(_move(root, name) if wnid_of(name) else f"# no class of ImageNet: {name!r}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
