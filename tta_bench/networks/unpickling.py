"""Unpickling checkpoints: their tensors, and blanks in the place of all other objects.

Training scripts save arguments, NumPy numbers and paths beside the tensors, whose classes torch refuses to build. None of
them is built here either: whatever a file names that torch does not know becomes a :class:`Blank`. No code of the file, or
of the classes that it names, runs.
"""

from __future__ import annotations

import collections
import pathlib
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import IO, Any, ClassVar

import torch

_MOST = 10  # times a file's size may be announced by the archive in it; torch does not compress
_ARCHIVE = b"PK\x03\x04"
_HEADER = 3  # pickles before the content of a file that torch wrote before 1.6


class Unreadable(ValueError):
    """The file is none that ``torch.save`` wrote; the text says what it is."""


class Blank:
    """In the place of an object of a foreign class: takes whatever the pickle gives it, and does nothing with it."""

    made: ClassVar[type | None] = None  # what torch fills: it puts items into dicts and lists alone

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls) if cls.made is None else cls.made()

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        type(self).made = collections.OrderedDict

    def append(self, item: Any) -> None:
        type(self).made = list

    def extend(self, items: Any) -> None:
        type(self).made = list


class _Survey(pickle.Unpickler):
    """Reads a pickle into blanks alone, to learn which globals it names and which of them it fills with items."""

    def __init__(self, stream: IO[bytes], named: dict[str, type[Blank]]):
        super().__init__(stream, encoding="bytes")
        self._named = named

    def find_class(self, module: str, name: str) -> type[Blank]:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # Python 2 to 3
        return self._named.setdefault(f"{module}.{name}", type(name, (Blank,), {"__module__": module}))

    def persistent_load(self, _: Any) -> None:
        return None  # a tensor's bytes


def load(path: pathlib.Path) -> Any:
    """What ``torch.save`` wrote, with a :class:`Blank` for each object that is neither a tensor nor plain data.

    Raises:
        Unreadable: the file is cut short, another archive, or one that announces far more bytes than it has.
        Exception: whatever torch raises for a damaged file.
    """
    named: dict[str, type[Blank]] = {}
    with open(path, "rb") as stream:
        if zipfile.is_zipfile(stream):
            _survey_archive(stream, path.stat().st_size, named)
        elif stream.seek(0) == 0 and stream.read(4) == _ARCHIVE:
            raise Unreadable(f"the file is cut short ({path.stat().st_size:,} bytes)")
        else:
            stream.seek(0)
            _survey(stream, named, _HEADER + 1)
        stream.seek(0)
        with torch.serialization.safe_globals([(blank, name) for name, blank in named.items()]):
            return torch.load(stream, map_location="cpu", weights_only=True)


def _survey_archive(stream: IO[bytes], size: int, named: dict[str, type[Blank]]) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if (announced := sum(member.file_size for member in members)) > _MOST * size:
            text = f"the archive of {size:,} bytes announces {announced:,} bytes: a decompression bomb"
            raise Unreadable(text)
        names = [pathlib.PurePosixPath(member.filename).name for member in members]
        if "constants.pkl" in names:
            raise Unreadable("the file is an archive of TorchScript")
        if "data.pkl" not in names:
            raise Unreadable(f"the file is an archive of {', '.join(names[:3]) or 'nothing'}, which torch did not save")
        with archive.open(members[names.index("data.pkl")]) as inside:
            _survey(inside, named, 1)


def _survey(stream: IO[bytes], named: dict[str, type[Blank]], pickles: int) -> None:
    try:
        for _ in range(pickles):
            _Survey(stream, named).load()
    except Exception:  # damaged, or no pickle: torch says it
        return
