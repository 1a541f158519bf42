"""What folders of images held when they were last listed: for machines that have the image cache, but not the images.

``trees.sqlite`` beside the digests (:mod:`tta_bench.data.digests`) keeps every listing by the folder's path. A folder that
exists is always listed anew. Of one that is absent, the listing is the remembered one, and the contents of its images are
those whose digests are remembered. So keys are those of the machine that prepared the cache, and its entries are found by
them: a listing without its digests or its entries leads to an error, never to other images.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import zlib
from typing import Any

from tta_bench import files
from tta_bench.data.memory import Memory

WITHOUT = "the data are not on this machine, and the image cache was prepared without this folder"  # a hint
_TABLE = """CREATE TABLE IF NOT EXISTS trees (
    path BLOB, kind TEXT, value BLOB, date TEXT, PRIMARY KEY (path, kind)) WITHOUT ROWID"""


def _memory() -> Memory:
    from tta_bench.data.cache import default_root

    return Memory(default_root() / "trees.sqlite", _TABLE)


def remember(kind: str, path: pathlib.Path, value: Any) -> None:
    """Keep a JSON value for a path that exists; written only where it is another one than before."""
    key, packed = (os.fsencode(path), kind), zlib.compress(json.dumps(value).encode(), 1)
    query = "SELECT value FROM trees WHERE path = ? AND kind = ?"
    if (known := _memory().query(lambda memory: memory.execute(query, key).fetchone())) and known[0] == packed:
        return
    row = (*key, packed, datetime.datetime.now(datetime.UTC).date().isoformat())
    _memory().query(lambda memory: memory.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?, ?)", row))


def recall(kind: str, path: pathlib.Path) -> tuple[Any, str] | None:
    """(the value kept for a path, the date since when it is this one); None where nothing is kept."""
    query, key = "SELECT value, date FROM trees WHERE path = ? AND kind = ?", (os.fsencode(path), kind)
    known = _memory().query(lambda memory: memory.execute(query, key).fetchone())
    return (json.loads(zlib.decompress(known[0])), known[1]) if known else None


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether a folder exists, or something at or below its path is remembered."""
    folder = files.expanded(path)
    try:
        if folder.exists():
            return folder.is_dir()
        key = os.fsencode(os.path.abspath(folder))  # noqa: PTH100  (resolve() follows links)
    except (OSError, ValueError):  # no folder has a name that the system refuses
        return False
    query = "SELECT 1 FROM trees WHERE path = ? OR (path > ? AND path < ?) LIMIT 1"
    keys = (key, key + b"/", key + b"0")  # "0" follows "/"
    return bool(_memory().query(lambda memory: memory.execute(query, keys).fetchone()))


def resolved(path: str) -> pathlib.Path:
    """A path without links, as it was where the cache was prepared if it is absent here."""
    given = pathlib.Path(os.path.abspath(files.expanded(path)))  # noqa: PTH100  (resolve() follows links)
    target = given.resolve()
    if given.exists() and target != given:
        remember("link", given, str(target))
    elif not given.exists() and (known := recall("link", given)) and not pathlib.Path(known[0]).exists():
        return pathlib.Path(known[0])
    return target
