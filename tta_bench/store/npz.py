"""``.npz`` files of many small arrays, written and read in a fraction of the time that numpy and zipfile take.

What is written here numpy reads, and every ``.npz`` file of numpy's can be read: one that is unusual is left to numpy.
"""

from __future__ import annotations

import functools
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

# of the Zip format (APPNOTE.TXT, 4.3.7, 4.3.12 and 4.3.16): the header before a member's data, the member in the directory
# at the end of the file, and the end of that directory
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _DATE = 20, 0x21  # 1 January 1980, for every member: equal arrays make equal files
_LARGEST = 2**32 - 2**24  # bytes in a file; larger ones need an extension of the format
_NPY = b"\x93NUMPY\x01\x00"  # numpy's first version: two bytes with the length of the header's text follow


class _Unusual(Exception):
    """A file that is not as :func:`write` or numpy.savez writes small ones; it may still be a good one."""


class _Member(NamedTuple):
    """An array in a file: where its header is, the size of its data, and their checksum."""

    file: bytes
    offset: int
    size: int
    crc: int

    @property
    def name(self) -> str:
        """What the array is called."""
        return self.file.decode().removesuffix(".npy")


def write(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays`` as an ``.npz`` file, uncompressed.

    Raises:
        ValueError: an array holds Python objects.
    """
    if sum(array.nbytes for array in arrays.values()) > _LARGEST:
        np.savez(stream, allow_pickle=False, **arrays)
        return
    parts, directory, place = list[bytes](), list[bytes](), 0
    for title, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{title} holds Python objects")
        name, header, data = f"{title}.npy".encode("ascii"), _header(array.dtype, array.shape), array.tobytes()
        size, crc = len(header) + len(data), zlib.crc32(data, zlib.crc32(header))
        shared = (_VERSION, 0, zipfile.ZIP_STORED, 0, _DATE, crc, size, size, len(name), 0)
        parts += [_LOCAL.pack(b"PK\3\4", *shared), name, header, data]
        directory += [_ENTRY.pack(b"PK\1\2", _VERSION, *shared, 0, 0, 0, 0, place), name]
        place += _LOCAL.size + len(name) + size
    listed = b"".join(directory)
    end = _END.pack(b"PK\5\6", 0, 0, len(arrays), len(arrays), len(listed), place, 0)
    stream.write(b"".join([*parts, listed, end]))


@functools.lru_cache(maxsize=1024)
def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of an array in C order: those of a run have few different ones."""
    stream = io.BytesIO()
    what = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, what)
    return stream.getvalue()


def read(path: str | pathlib.Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, np.ndarray]:
    """The arrays whose name is ``wanted``, each checked against its checksum.

    Raises:
        OSError: the file cannot be read.
        EOFError, ValueError, zipfile.BadZipFile: it is torn, damaged, or no ``.npz`` file.
    """
    with open(path, "rb") as stream:
        content = stream.read()
    try:
        return {member.name: _array(content, member) for member in _members(content) if wanted(member.name)}
    except (_Unusual, struct.error):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays if wanted(name)}


def _members(content: bytes) -> Iterator[_Member]:
    """What the file's directory lists."""
    mark, *_, count, _, place, comment = _END.unpack_from(content, max(0, len(content) - _END.size))
    if mark != b"PK\5\6" or comment:
        raise _Unusual
    for _ in range(count):
        mark, _, _, _, method, _, _, crc, stored, size, name, extra, comment, _, _, _, offset = _ENTRY.unpack_from(
            content, place
        )
        if mark != b"PK\1\2" or method != zipfile.ZIP_STORED or stored != size:
            raise _Unusual
        place += _ENTRY.size
        yield _Member(content[place : place + name], offset, size, crc)
        place += name + extra + comment
    if place != len(content) - _END.size:
        raise _Unusual


def _array(content: bytes, member: _Member) -> np.ndarray:
    mark, *_, name, extra = _LOCAL.unpack_from(content, member.offset)
    named = member.offset + _LOCAL.size
    begin = named + name + extra
    data = memoryview(content)[begin : begin + member.size]
    if mark != b"PK\3\4" or content[named : named + name] != member.file:
        raise _Unusual
    if data[:8] != _NPY or zlib.crc32(data) != member.crc:
        raise _Unusual
    size = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _parsed(bytes(data[8:size]))
    return np.frombuffer(data, dtype, offset=size).reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=1024)
def _parsed(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a header, which numpy evaluates as Python."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(text))
