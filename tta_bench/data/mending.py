"""Shell commands that mend the usual wrong layouts of data sets, for hints; nothing is changed here."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_SEVERITIES = {"1", "2", "3", "4", "5"}


def names(folder: pathlib.Path) -> Iterator[str]:
    """The names in a folder, sorted, without hidden ones; none where it cannot be read or is none."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = sorted(os.listdir(folder))
    yield from (name for name in found if not name.startswith("."))


def archives(root: pathlib.Path) -> list[str]:
    """The names of the archives in a folder."""
    return [name for name in names(root) if name.lower().endswith(ARCHIVES)]


def unpacking(root: pathlib.Path, packed: Sequence[str]) -> str:
    """The command that unpacks archives in ``root``: one as it is, several each into a folder of its name."""
    folder = shlex.quote(str(root))
    if len(packed) > 1 and all(name.endswith(".tar") for name in packed):  # ImageNet's training images
        loop = 'for f in *.tar; do mkdir "${f%.tar}" && tar -xf "$f" -C "${f%.tar}"; done'
        return f"unpack them, each into a folder of its name: cd {folder} && {loop}"
    archive = shlex.quote(str(root / packed[0]))
    command = f"unzip {archive} -d {folder}" if packed[0].endswith(".zip") else f"tar -xf {archive} -C {folder}"
    return f"unpack it: {command}"


def moving_up(root: pathlib.Path, inner: str) -> str:
    """The command that moves what a folder in ``root`` holds one folder up."""
    inside, folder = shlex.quote(str(root / inner)), shlex.quote(str(root))
    return f"mv {inside}/* {folder} && rmdir {inside}"


def misplaced(root: pathlib.Path, pattern: str) -> str:
    """How to mend a folder in which there is no ``pattern``: it lies deeper or higher, or is packed; else empty."""
    inner = [name for name in names(root) if (root / name).is_dir() and any((root / name).glob(pattern))]
    if inner:
        deeper = f"it lies one folder deeper: name that folder, {root / inner[0]}"
        return f"{deeper}, or move it up: {moving_up(root, inner[0])}"
    if packed := archives(root):
        return unpacking(root, packed[:1])
    return f"it lies one folder higher: name that folder, {root.parent}" if any(root.parent.glob(pattern)) else ""


def corruption(root: pathlib.Path, name: str, severity: float | None, held: Mapping[str, Sequence[str]]) -> str:
    """How to mend a tree ``<root>/<corruption>/<severity>`` without one of these folders, by the usual causes; or empty.

    Args:
        root: of the tree.
        name: of the corruption.
        severity: its severity.
        held: the published archives, by name, with the corruptions in them.
    """
    there = [entry for entry in names(root) if (root / entry).is_dir()]
    own, wanted = root / name, root / name / str(severity)
    quoted = {path: shlex.quote(str(path)) for path in (root, own, wanted, root / str(severity) / name)}
    published = [archive for archive, inside in held.items() if name in inside]
    packed = [each for each in archives(root) if each in published or each.partition(".")[0] == name]
    if packed or (not there and archives(root)):
        return unpacking(root, packed or archives(root)[:1])
    if (root / str(severity) / name).is_dir():
        move = f"mv {quoted[root / str(severity) / name]} {quoted[wanted]}"
        return f"corruptions lie in severities, it must be the other way: mkdir -p {quoted[own]} && {move}"
    if own.is_dir() and not _SEVERITIES & {*names(own)} and _holds_folders(own):
        aside = shlex.quote(f"{own}.images")
        moves = f"mv {quoted[own]} {aside} && mkdir {quoted[own]} && mv {aside} {quoted[wanted]}"
        return f"it has no folders of severities; if its images are of severity {severity}: {moves}"
    deeper = [entry for entry in there if any(_SEVERITIES & {*names(path)} for path in (root / entry).iterdir())]
    if len(deeper) == 1:
        return (
            f"corruptions lie in {deeper[0]}: name that folder if all do, or move them up: {moving_up(root, deeper[0])}"
        )
    if deeper:
        moves = " && ".join(moving_up(root, entry) for entry in deeper)
        return f"corruptions lie in {', '.join(deeper)}: move them up: {moves}"
    if _SEVERITIES & {*there}:
        return f"this is the folder of one corruption: name the folder above, {root.parent}"
    return "" if there else "expected <root>/<corruption>/<severity>/<wnid>/*.JPEG"


def rewriting(path: pathlib.Path, expression: str) -> str:
    """The command that saves an array anew, from an expression in ``a``, the array, and ``np``."""
    file = repr(str(path))
    code = f"import numpy as np; a = np.load({file}); np.save({file}, {expression})"
    return f"python -c {shlex.quote(code)}"


def _holds_folders(folder: pathlib.Path) -> bool:
    return any((folder / name).is_dir() for name in itertools.islice(names(folder), 20))
