"""The state dicts in files of weights."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tta_bench.errors import Problem, UsageError, text_of
from tta_bench.networks import unpickling

State = Mapping[str, Tensor]

_AGAIN = "download it again"
_DEPTH = 3  # of dicts in dicts
_MOST_TEXT = 200  # characters of an error's text


def read_state(path: pathlib.Path) -> State:
    """Tensors by name from a file that holds one state dict.

    Raises:
        UsageError: the file cannot be read, or holds none or several.
    """
    parts = read_parts(path)
    if len(parts) > 1:
        message = f"the file holds several state dicts: {', '.join(map(repr, parts))}"
        raise UsageError(Problem(message, str(path), hint="save one of them alone"))
    return next(iter(parts.values()))


def read_parts(path: pathlib.Path) -> dict[str, State]:
    """The state dicts in a safetensors file, or in a file that ``torch.save`` wrote.

    Returns:
        Tensors by name, by the key of the dict that they are in: ``""`` for the file itself, ``"state_dict"``, or
        ``"state_dict.model"`` for a dict in a dict.

    Raises:
        UsageError: the file is not readable as either, or holds no tensors by name.
    """
    content = _content(path)
    if not (parts := dict(_parts(content))):
        message = f"the file of weights holds no tensors by name, but {_described(content)}"
        raise UsageError(Problem(message, str(path), hint="save the network's state_dict()"))
    return parts


def _parts(content: Any, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, State]]:
    named = {key: value for key, value in content.items() if isinstance(key, str)} if isinstance(content, dict) else {}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield name, tensors
    for key, value in named.items() if depth else ():
        yield from _parts(value, f"{name}.{key}" if name else key, depth - 1)


def _described(content: Any) -> str:
    if content is None:
        return "None"
    if isinstance(content, Tensor):
        return f"one tensor of shape {tuple(content.shape)}"
    if isinstance(content, unpickling.Blank):
        return f"an object of the class {type(content).__module__}.{type(content).__name__}"
    if isinstance(content, dict) and content:
        return f"a dict with {', '.join(repr(key)[:40] for key in list(content)[:5])}"
    return f"an empty {type(content).__name__}" if content in ({}, [], ()) else f"a {type(content).__name__}"


def _content(path: pathlib.Path) -> Any:
    """What is in the file; torch's and safetensors' errors as one sentence."""
    with open(path, "rb") as stream:
        start = stream.read(512)
    if foreign := _no_weights(start):
        raise UsageError(Problem(f"cannot read weights: {foreign[0]}", str(path), hint=foreign[1]))
    try:
        if start[8:9] == b"{":  # after the length of its header; a file's name may mislead
            import safetensors.torch

            return safetensors.torch.load_file(path)
        return unpickling.load(path)
    except Exception as error:  # safetensors and torch raise many types for a damaged file
        hint = f"{_AGAIN}, or save the network's state_dict()"
        raise UsageError(Problem(f"cannot read weights: {_sentence(error)}", str(path), hint=hint)) from error


def _no_weights(start: bytes) -> tuple[str, str] | None:
    """What a file is that begins so, and a hint, where it holds no weights; None where it may."""
    if not start:
        return "the file is empty", _AGAIN
    if start.startswith(b"version https://git-lfs"):
        return "the file is a pointer of git-LFS, not what it points to", "fetch it: git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "the file is a web page, as a failed download leaves", _AGAIN
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return f"the file is a text that begins {start[:40].decode('ascii')!r}", _AGAIN
    return None


def _sentence(error: Exception) -> str:
    """The first sentence of an error, without torch's advice to load unsafely."""
    if isinstance(error, unpickling.Unreadable):
        return str(error)
    own = error.__context__ if isinstance(error, pickle.UnpicklingError) else None  # before torch's advice
    lines = text_of(own or error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].partition('. ')[0][:_MOST_TEXT] if lines else 'damaged'}"
