"""Leak search: a walk over all objects reachable from an adapter, for labels and other secrets."""

from __future__ import annotations

import functools
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

_FEWEST_LABELS = 8  # shorter sequences match some labels by chance


@dataclass(frozen=True)
class Secrets:
    """Data that no method may reach.

    Attributes:
        labels: label sequences, each int (N,): in data order, in stream order.
        paths: data folders and the relative names of images.
        shifts: ids of shifts and names of corruptions.
        later: images of later batches, uint8 (n, H, W, 3).
    """

    labels: list[np.ndarray] = field(default_factory=list)
    paths: frozenset[str] = frozenset()
    shifts: frozenset[str] = frozenset()
    later: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), dtype=np.uint8))

    @functools.cached_property
    def _later(self) -> frozenset[bytes]:
        planes = self.later.transpose(0, 3, 1, 2)
        return frozenset(np.ascontiguousarray(image).tobytes() for image in (*self.later, *planes))

    def found_in(self, value: Any) -> str | None:
        """The secret that ``value`` itself contains, as a short text; None if there is none."""
        if isinstance(value, str | bytes | pathlib.PurePath):
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            if any(path in text for path in self.paths):
                return f"file path {text!r}"
            return f"shift name {text!r}" if text in self.shifts else None
        numbers = _numbers(value)
        if numbers is None:
            return None
        if self._holds_labels(numbers):
            return f"label array of {numbers.size}"
        return "a later image" if self._holds_image(numbers) else None

    def _holds_labels(self, numbers: np.ndarray) -> bool:
        if numbers.size < _FEWEST_LABELS or not np.array_equal(numbers, np.round(numbers)):
            return False
        return any(_contains(labels, numbers) or _contains(numbers, labels) for labels in self.labels)

    def _holds_image(self, numbers: np.ndarray) -> bool:
        size = int(np.prod(self.later.shape[1:]))
        if not len(self.later) or numbers.size < size or not np.isfinite(numbers).all():
            return False
        scale = 255.0 if numbers.max(initial=0.0) <= 1.0 else 1.0
        levels = np.round(numbers * scale)
        if levels.min(initial=0) < 0 or levels.max(initial=0) > 255:
            return False
        chunks = levels[: levels.size // size * size].astype(np.uint8).reshape(-1, size)
        return any(chunk.tobytes() in self._later for chunk in chunks)


def _numbers(value: Any) -> np.ndarray | None:
    """The numbers in ``value``, flat: the whole storage of a tensor or array, even where it is a view."""
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.dtype.is_complex or value.is_quantized:
            return None
        flat = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
        return flat.detach().cpu().to(torch.float64).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        whole = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        return whole.reshape(-1).astype(np.float64)
    if isinstance(value, list | tuple) and value and all(isinstance(item, int | float) for item in value):
        return np.array(value, dtype=np.float64)
    return None


def _contains(longer: np.ndarray, shorter: np.ndarray) -> bool:
    """Whether ``shorter`` (m,) is a contiguous subsequence of ``longer`` (n,)."""
    if not _FEWEST_LABELS <= shorter.size <= longer.size:
        return False
    starts = np.flatnonzero(longer[: longer.size - shorter.size + 1] == shorter[0])
    return any(np.array_equal(longer[start : start + shorter.size], shorter) for start in starts)


_LEAVES = (
    int,
    float,
    complex,
    bool,
    type(None),
    torch.dtype,
    torch.device,
    types.ModuleType,
    types.BuiltinFunctionType,
)


def find_leaks(roots: Mapping[str, Any], secrets: Secrets) -> list[str]:
    """Search everything reachable from ``roots`` for the ``secrets``.

    Attributes, slots, containers, closures, defaults, bound methods, generators' locals, attributes of the objects'
    own classes and whole tensor storages are walked; modules' globals are not.

    Returns:
        One line for each leak, such as ``adapter.stash[0]: label array of 50``.
    """
    leaks, seen, stack = [], set[int](), list(roots.items())
    keep_alive = []  # ids are unique only among live objects
    while stack:
        path, value = stack.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        keep_alive.append(value)
        if leak := secrets.found_in(value):
            leaks.append(f"{path}: {leak}")
        stack += _children(path, value)
    return sorted(leaks)


def _children(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str | bytes | torch.Tensor | np.ndarray | pathlib.PurePath):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path} (key)", key
            yield f"{path}[{key!r}]", item
    elif (isinstance(value, Iterable) and isinstance(value, list | tuple | set | frozenset)) or hasattr(
        value, "popleft"
    ):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    if isinstance(value, types.FunctionType):
        yield from _of_function(path, value)
    elif isinstance(value, types.MethodType):
        yield f"{path}.__self__", value.__self__
        yield f"{path}.__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield from ((f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, types.GeneratorType):
        yield f"{path} (locals)", dict(value.gi_frame.f_locals) if value.gi_frame else {}
    elif not isinstance(value, type):
        yield from _attributes(path, value)


def _of_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{path} (closure {name})", cell.cell_contents
        except ValueError:  # the variable was never assigned
            continue
    yield f"{path}.__defaults__", function.__defaults__
    yield f"{path}.__kwdefaults__", function.__kwdefaults__


def _attributes(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    for name, item in getattr(value, "__dict__", {}).items():
        yield f"{path}.{name}", item
    for cls in type(value).__mro__:
        if cls.__module__.startswith(("builtins", "torch", "abc", "pydantic", "timm", "numpy")):
            continue
        for name in getattr(cls, "__slots__", ()):
            if hasattr(value, name):
                yield f"{path}.{name}", getattr(value, name)
        for name, item in vars(cls).items():
            if not name.startswith("__"):
                yield f"{path}.{name}", item
