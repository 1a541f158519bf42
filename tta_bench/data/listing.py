"""Image files in class folders: what is an image, which class a folder becomes, and what is wrong with a layout.

Files are listed with one ``os.scandir`` a folder; nothing is opened, and only links are looked at one by one.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tta_bench.data import trees
from tta_bench.data.mending import archives, moving_up, names, unpacking
from tta_bench.errors import Problem, UsageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
_SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
_IMPORTS = "import tta_bench.torchvision_repair; from torchvision.datasets import ImageNet"
SORTING = f"python -c \"{_IMPORTS}; ImageNet('DIR', 'val')\""  # ImageNet's validation images into class folders
_PEEK = 20  # entries looked at where only a hint depends on them

# kinds of what is left out, besides the endings of files: of one, of several
HIDDEN = "hidden or system entry"
DANGLING = "dangling link"
NO_ENDING = "file with an odd ending or none"
NESTED = "folder inside a class folder"
BESIDE = "image outside the class folders"
_PLURALS = {
    HIDDEN: "hidden or system entries",
    DANGLING: "dangling links",
    NO_ENDING: "files with odd endings or none",
    NESTED: "folders inside class folders",
    BESIDE: "images outside the class folders",
}


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Attributes:
        paths: of the images, relative and sorted as texts.
        classes: names of the class folders; a folder's position is its class.
        left_out: how many files and folders are neither, by kind: an ending such as ".gif", or a name above.
        remembered: where the folder is absent here: the date of its listing (:mod:`tta_bench.data.trees`).
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, int]
    remembered: str = ""


@functools.lru_cache(maxsize=256)
def listing(root: pathlib.Path) -> Listing:
    """The images in ``root``'s class folders; listed once in each process, or as remembered where it is absent.

    Raises:
        UsageError: there are none, a class folder has none, or the order of the classes is unclear; the layout's usual
            causes are recognised, and the hint mends them.
    """
    return _remembered("classes", root, _class_folders)


def _class_folders(root: pathlib.Path) -> Listing:
    top = _entries(root)
    groups = {name: _entries(root / name) for name in top.folders}
    empty = [name for name, group in groups.items() if not group.images]
    if len(empty) == len(groups):
        raise UsageError(_diagnosis(root, top, groups))
    if empty:
        raise UsageError(_empty_classes(root, {name: groups[name] for name in empty}, len(groups)))
    left_out = Counter(top.left_out)
    left_out.update({BESIDE: len(top.images)} if top.images else {})
    for group in groups.values():
        left_out.update(group.left_out)
        left_out.update({NESTED: len(group.folders)} if group.folders else {})
    paths = sorted(f"{name}/{image}" for name, group in groups.items() for image in group.images)
    return Listing(tuple(paths), class_order(groups, str(root)), dict(left_out))


def folders(root: pathlib.Path) -> list[str]:
    """The names of a folder's folders, sorted as texts, without hidden ones and those of systems.

    Raises:
        UsageError: the folder cannot be read.
    """
    return list(_remembered("folders", root, lambda _: Listing((), tuple(_entries(root).folders), {})).classes)


def flat_listing(root: pathlib.Path) -> Listing:
    """The images that lie directly in ``root``, without classes.

    Raises:
        UsageError: there are none.
    """
    return _remembered("flat", root, _flat)


def _flat(root: pathlib.Path) -> Listing:
    top = _entries(root)
    if not top.images:
        hint = "labels: is for a flat folder; leave it out where the images lie in class folders"
        raise UsageError(Problem(f"no images lie directly in the folder{_holding(top)}", str(root), hint=hint))
    return Listing(tuple(sorted(top.images)), (), dict(top.left_out))


def _remembered(kind: str, root: pathlib.Path, listed: Callable[[pathlib.Path], Listing]) -> Listing:
    """What ``listed`` finds in a folder, which is remembered; where it is absent, what is."""
    if not root.exists() and (known := trees.recall(kind, root)):
        (paths, classes, left_out), date = known
        return Listing(tuple(paths), tuple(classes), left_out, date)
    found = listed(root)
    trees.remember(kind, root, [found.paths, found.classes, dict(found.left_out)])
    return found


def class_order(given: Iterable[str], where: str) -> tuple[str, ...]:
    """The names of classes in the order of the classes: numbers by their values, other names as texts.

    Raises:
        UsageError: only some are numbers, or two are the same number.
    """
    texts = sorted(given)
    numbers = [name for name in texts if name.isascii() and name.isdigit()]
    if not numbers:
        return tuple(texts)
    if odd := sorted(set(texts) - set(numbers)):
        few, most = sorted((odd, numbers), key=len)
        kinds = ("numbers", "names") if few is odd else ("names", "numbers")
        message = f"classes have {kinds[0]}, such as {most[0]!r}, but for {_some(few)}: their order is unclear"
        hint = "remove what is no class, or name all classes by numbers, or none"
        raise UsageError(Problem(message, where, hint=hint))
    ordered = sorted(texts, key=int)
    for one, next_one in itertools.pairwise(ordered):
        if int(one) == int(next_one):
            raise UsageError(Problem(f"classes {one!r} and {next_one!r} have the same number", where))
    return tuple(ordered)


def order_remark(classes: Sequence[str]) -> str:
    """A remark where the order of classes may surprise: another one is usual for names with numbers; else empty."""
    texts = sorted(classes)
    if list(classes) != texts:
        return f"in the order of their numbers (as texts: {', '.join(texts[:3])}, …)"
    if texts != sorted(texts, key=_natural):
        return "in the order of their texts, not of the numbers in them"
    return ""


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def counted(left_out: Mapping[str, int]) -> str:
    """What was left out, in words: ``100 .gif, 1 dangling link``."""
    return ", ".join(
        f"{number:,} {kind if number == 1 else _PLURALS.get(kind, kind)}" for kind, number in sorted(left_out.items())
    )


def _some(some: Sequence[str]) -> str:
    more = f" and {len(some) - 5} more" if len(some) > 5 else ""
    return ", ".join(map(repr, some[:5])) + more


# -- one folder ----------------------------------------------------------------------------------------------------------


@dataclass
class _Entries:
    """What lies directly in a folder: names of images and of folders, and the number of all else by kind."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def _entries(folder: pathlib.Path) -> _Entries:
    """
    Raises:
        UsageError: the folder cannot be read.
    """
    found = _Entries()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _sort_in(entry, found)
    except OSError as error:
        hint = "make it readable, or move it elsewhere"
        raise UsageError(Problem(f"the folder cannot be read: {error.strerror}", str(folder), hint=hint)) from error
    found.folders.sort()
    return found


def _sort_in(entry: os.DirEntry[str], found: _Entries) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (50,000 times)
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
        found.left_out[HIDDEN] += 1
    elif suffix in SUFFIXES and entry.is_file():
        found.images.append(entry.name)
    elif entry.is_dir():
        found.folders.append(entry.name)
    elif entry.is_symlink() and not entry.is_file():
        found.left_out[DANGLING] += 1
    else:
        usual = (
            suffix.isascii() and suffix[1:].isalnum()
        )  # a name may hold any bytes, also those that cannot be printed
        found.left_out[suffix if usual else NO_ENDING] += 1


# -- what is wrong with a layout -----------------------------------------------------------------------------------------


def _empty_classes(root: pathlib.Path, empty: Mapping[str, _Entries], total: int) -> Problem:
    shown = [f"{name!r}{_holding(group)}" for name, group in itertools.islice(empty.items(), 5)]
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    message = f"{len(empty)} of {total} class folders have no images: {', '.join(shown)}{more}"
    hint = "fill them, or remove those that are no classes: each would be one, and move the numbers of those after it"
    return Problem(message, str(root), hint=hint)


def _holding(group: _Entries) -> str:
    """In parentheses, what a folder without images holds."""
    parts = [f"{len(group.folders)} folders"] if group.folders else []
    if group.left_out:
        parts.append(counted(group.left_out))
    return f" ({', '.join(parts)})" if parts else ""


def _diagnosis(root: pathlib.Path, top: _Entries, groups: Mapping[str, _Entries]) -> Problem:
    """What is wrong with a folder whose subfolders hold no images."""
    where = str(root)
    if top.images:
        message = f"{len(top.images):,} images lie directly in the folder, not in class folders <root>/<class>/<image>"
        return Problem(message, where, hint=_flat_hint(root, top.images))
    deeper = [name for name, group in groups.items() if _holds_classes(root / name, group)]
    if deeper:
        message = f"the class folders lie one folder deeper, in {_some(deeper)}"
        hint = f"name that folder: {root / deeper[0]}; or move them up: {moving_up(root, deeper[0])}"
        return Problem(message, where, hint=hint)
    if packed := archives(root):
        message = f"the folder has no images, but archives that are not unpacked: {_some(packed)}"
        return Problem(message, where, hint=unpacking(root, packed))
    held = _Entries(folders=list(groups), left_out=sum((g.left_out for g in groups.values()), Counter(top.left_out)))
    hint = "expected <root>/<class>/<image>, with images ending in " + ", ".join(sorted(SUFFIXES))
    return Problem(f"the folder has no images{_holding(held)}", where, hint=hint)


def level_fault(root: pathlib.Path) -> Problem | None:
    """The problem with the root of domains, ``<root>/<domain>/<class>/<image>``, where it lies too high or too deep."""
    domains = folders(root)
    classes = [root / domain / name for domain in domains for name in folders(root / domain)[:_PEEK]]
    if any(_holds_images(folder) for folder in classes):
        return None
    if any(_holds_images(root / domain) for domain in domains):
        hint = f"name the folder above, {root.parent}, or move the classes into a folder for their domain"
        return Problem("its folders hold images: it is one domain, not the folder of several", hint=hint)
    if any(_holds_images(folder / name) for folder in classes for name in folders(folder)[:_PEEK]):
        hint = f"name that folder: {root / domains[0]}; or move them up: {moving_up(root, domains[0])}"
        return Problem(f"the domains lie one folder deeper, in {_some(domains)}", hint=hint)
    if not domains and (packed := archives(root)):
        hint = unpacking(root, packed)
        return Problem(f"the folder has no domains, but archives that are not unpacked: {_some(packed)}", hint=hint)
    return None


def _flat_hint(root: pathlib.Path, images: Sequence[str]) -> str:
    labels = "give their labels: data: {…, labels: FILE}, or sort them into class folders"
    if images[0].startswith("ILSVRC2012_val_"):
        return f"{labels}, as {SORTING} does where DIR has ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"
    siblings = itertools.islice((name for name in names(root.parent) if name != root.name), _PEEK)
    if not any(_holds_images(root.parent / name) for name in siblings):
        return labels
    return f"if it is the folder of one class, name the folder above: {root.parent}; else {labels}"


def _holds_classes(folder: pathlib.Path, group: _Entries) -> bool:
    return any(_holds_images(folder / name) for name in group.folders[:_PEEK])


def _holds_images(folder: pathlib.Path) -> bool:
    return any(os.path.splitext(name)[1].lower() in SUFFIXES for name in itertools.islice(names(folder), _PEEK))  # noqa: PTH122
