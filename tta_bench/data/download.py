"""Files from public addresses: fetched with resumption, verified, unpacked inside their folder.

Of the libraries at hand none does all of it. torchvision's ``download_url`` and ``torch.hub`` begin at the first byte
again; torchvision falls back from https to http, and unpacks archives without a filter. huggingface_hub resumes, but has
no public function for other hosts, and pooch does not resume. The standard library does it in a few lines.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import pathlib
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message

from tta_bench import __version__
from tta_bench.data.published_sets import Remote
from tta_bench.errors import Problem, Stopped

TRIES = 4  # in a row, none of which brought a byte more than the one before
PAUSE_S = 3.0  # before the next of them
_TIMEOUT_S = 60.0
_BLOCK = 1 << 20
_NO_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}
_WORTH_A_RETRY = {408, 416, 425, 429, 500, 502, 503, 504}

Progress = Callable[[Remote, int], None]


def fetch(remote: Remote, folder: pathlib.Path, progress: Progress) -> pathlib.Path:
    """Fetch a file into ``folder``, going on with what is there of it, and verify it; returns its path.

    Args:
        remote: the file.
        folder: where it goes; a part of it is ``<name>.part``.
        progress: called with the file and the number of bytes that are there.

    Raises:
        Stopped: it cannot be fetched, and the part is kept; or its checksum is wrong, and it is kept as ``<name>.wrong``.
    """
    part, fruitless = folder / f"{remote.name}.part", 0
    while (before := _size(part)) != remote.bytes:
        trouble: Exception | str = "the connection was cut"
        try:
            _receive(remote, part, progress)
        except (OSError, http.client.HTTPException) as error:
            _give_up(error, remote, part)
            trouble = error
        fruitless = 0 if _size(part) > before else fruitless + 1
        if fruitless == TRIES:
            hint = "the part is kept; the same command goes on with it"
            raise Stopped(Problem(f"{remote.name} cannot be fetched: {trouble}", remote.url, hint=hint))
        if _size(part) != remote.bytes:
            time.sleep(PAUSE_S if fruitless else 0)
    if fault := wrong_checksum(part, remote):
        aside = part.replace(folder / f"{remote.name}.wrong")
        hint = "it was not used; remove it and try again. If it comes again, the file on the server has changed"
        raise Stopped(Problem(fault, str(aside), hint=hint))
    return part.replace(folder / remote.name)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _give_up(error: Exception, remote: Remote, part: pathlib.Path) -> None:
    """
    Raises:
        Stopped: where another try cannot help.
    """
    if isinstance(error, urllib.error.HTTPError):
        if error.code == 416:  # nothing behind the part: it is of another file
            part.unlink()
        if error.code not in _WORTH_A_RETRY:
            hint = "its address may have changed: see its page in docs/data.md"
            raise Stopped(Problem(f"the server refuses {remote.name}: {error}", remote.url, hint=hint)) from error
    elif isinstance(error, OSError) and error.errno in _NO_DISK:
        raise Stopped(
            Problem(f"cannot be written: {error.strerror}", str(part), hint="free it, and try again")
        ) from error


def _receive(remote: Remote, part: pathlib.Path, progress: Progress) -> None:
    """Append to a part what the server sends, as long as it sends; a server that knows no ranges begins anew."""
    wanted = part.stat().st_size if 0 < _size(part) < remote.bytes else 0
    headers = {"User-Agent": f"tta-bench/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(remote.url, headers=headers | ({"Range": f"bytes={wanted}-"} if wanted else {}))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        there = _first(answer.headers) if answer.status == 206 else 0
        _check_length(answer.headers, there, wanted, remote)
        with open(part, "r+b" if part.exists() else "wb") as stream:
            there = stream.seek(there)
            stream.truncate()
            while there < remote.bytes and (block := answer.read(min(_BLOCK, remote.bytes - there))):
                there += stream.write(block)
                progress(remote, there)


def _first(headers: Message) -> int:
    """The first byte of a part of a file that a server sends, from ``Content-Range: bytes 7-99/100``."""
    text = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdigit() else -1


def _check_length(headers: Message, first: int, wanted: int, remote: Remote) -> None:
    """
    Raises:
        Stopped: the server sends a file of another size (often a page of text), or another part; nothing was written.
    """
    length = headers.get("Content-Length", "")
    if first not in (0, wanted) or (length.isdigit() and first + int(length) != remote.bytes):
        size = f"{first + int(length):,} bytes" if length.isdigit() else f"bytes from {first:,}"
        message = f"the server sends {size} as {remote.name}, expected {remote.bytes:,}: it is another file"
        hint = "its address may have changed: see its page in docs/data.md"
        raise Stopped(Problem(message, remote.url, hint=hint))


def wrong_checksum(path: pathlib.Path, remote: Remote) -> str:
    """That a file is another one, in a sentence; or empty."""
    kind, _, expected = remote.checksum.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    return "" if found == expected else f"{remote.name} has the {kind.upper()} checksum {found}, expected {expected}"


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpack a tar archive into a new folder, and nothing outside it.

    Raises:
        Stopped: it is damaged, or one of its members would leave the folder.
    """
    folder.mkdir()
    try:
        with tarfile.open(archive, "r:*") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        message = f"the archive cannot be unpacked: {error}"
        raise Stopped(
            Problem(message, str(archive), hint="free the disk, or remove the archive, and try again")
        ) from error
