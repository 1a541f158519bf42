"""Digests of image files: read once, remembered outside every run, read again where a file has changed."""

from __future__ import annotations

import hashlib
import os
import pathlib

import pytest

from tta_bench.data import digests
from tta_bench.data.digests import Digests, Extent
from tta_bench.errors import UsageError


@pytest.fixture
def memory(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "memory" / "digests.sqlite"


@pytest.fixture
def files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[pathlib.Path]:
    """Three files that count as settled."""
    monkeypatch.setattr(digests, "SETTLED_S", -1.0)
    made = [tmp_path / name for name in ("a", "b", "c\udcff")]  # a name may hold any bytes
    for file in made:
        file.write_bytes(os.fsencode(file.name) * 1000)
    return made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_digest_of_each_file_and_extent(memory: pathlib.Path, files: list[pathlib.Path]) -> None:
    reader = Digests(memory)
    wanted = [*(Extent(str(file)) for file in files), Extent(str(files[0]), 10, 20)]
    contents = [*(file.read_bytes() for file in files), files[0].read_bytes()[10:30]]
    assert reader.of(wanted) == [sha256(content) for content in contents]
    assert (reader.cost.files, reader.cost.bytes) == (4, sum(map(len, contents)))
    assert Digests(memory).of([]) == []


def test_only_files_that_changed_are_read_again(memory: pathlib.Path, files: list[pathlib.Path]) -> None:
    wanted = [Extent(str(file)) for file in files]
    first = Digests(memory).of(wanted)
    again = Digests(memory)
    assert again.of(wanted[::-1]) == first[::-1]
    assert again.cost.files == 0
    stat = files[1].stat()
    files[1].write_bytes(
        b"x" * stat.st_size
    )  # equal size, and the old time set again: the inode's change time shows it
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    later = Digests(memory)
    assert later.of(wanted) == [first[0], sha256(b"x" * stat.st_size), first[2]]
    assert later.cost.files == 1


def test_a_file_that_changed_just_now_is_not_remembered(
    memory: pathlib.Path, files: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within one tick of the file system's clock."""
    monkeypatch.setattr(digests, "SETTLED_S", 3600.0)
    for _ in range(2):
        reader = Digests(memory)
        reader.of([Extent(str(files[0]))])
        assert reader.cost.files == 1


def test_a_memory_that_cannot_be_used_costs_a_reading_and_is_told(files: list[pathlib.Path]) -> None:
    reader = Digests(pathlib.Path("/proc/none/digests.sqlite"))
    assert reader.of([Extent(str(files[0]))]) == [sha256(files[0].read_bytes())]
    assert "/proc/none/digests.sqlite" in reader.trouble


def test_a_damaged_memory_is_made_anew(memory: pathlib.Path, files: list[pathlib.Path]) -> None:
    memory.parent.mkdir()
    memory.write_bytes(b"no database" * 100)
    for files_read in (1, 0):
        reader = Digests(memory)
        assert reader.of([Extent(str(files[0]))]) == [sha256(files[0].read_bytes())]
        assert reader.cost.files == files_read


def test_a_file_that_cannot_be_read_is_named(memory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="absent.*: cannot read: No such file"):
        Digests(memory).of([Extent(str(tmp_path / "absent"))])
