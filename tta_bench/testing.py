"""For authors of methods: tools that prove what an adapter does and does not do.

:func:`check_method` runs the conformance suite, as ``tta-bench check`` does; :func:`replay` feeds given batches to a
method, for proofs that it equals another implementation; :func:`find_leaks` walks everything that a method can reach and
looks for what it must never see.
"""

from __future__ import annotations

import copy
import functools
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import tta_bench.torchvision_repair  # noqa: F401  (the importer may import timm next)
from tta_bench.adapter import Adapter, context_for
from tta_bench.models import SourceModel
from tta_bench.registry import Registry

_FEWEST_LABELS = 8  # shorter runs of numbers agree with some labels by chance


@dataclass(frozen=True)
class Secrets:
    """What no method may reach.

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
        """What of it ``value`` itself gives away, in a few words; None where nothing."""
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
    """All numbers behind ``value``, flat: a tensor's or array's whole storage, also where it is a view of a larger one."""
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
    """Whether ``shorter`` (m,) is a contiguous part of ``longer`` (n,)."""
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
    """Walk everything reachable from ``roots`` and name each place that holds one of the ``secrets``.

    Attributes, slots, containers, closures, defaults, bound methods, generators' locals, attributes of the objects'
    own classes and whole tensor storages are walked; modules' globals are not.

    Returns:
        One line a leak, such as ``adapter.stash[0]: label array of 50``.
    """
    leaks, seen, stack = [], set[int](), list(roots.items())
    keep_alive = []  # an id is only unique while its object lives
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


def replay(
    method: str | type[Adapter],
    hyperparameters: Mapping[str, Any],
    model: torch.nn.Module,
    test_batches: Sequence[torch.Tensor],
    source_batches: Sequence[torch.Tensor],
    reset_after: int | None = None,
    variant: str = "official",
    *,
    after_step: Callable[[Adapter], None] | None = None,
) -> tuple[np.ndarray, Adapter]:
    """Feed given batches to a method, in order, and return what it returned.

    Args:
        method: a registered name, or an Adapter class.
        hyperparameters: fields of the method's Config; a field that it does not have is an error.
        model: a timm classifier in the precision and on the device to use; it is deep-copied, its weights stay.
        test_batches: each (B, 3, H, W), given to the network as they are: mean and standard deviation are 0 and 1.
        source_batches: each (B, 3, H, W), for ``prepare``; one pass, in order.
        reset_after: call ``reset()`` once, immediately before this test batch (counted from 0).
        variant: the method's variant; methods that have only one take "official" alone.
        after_step: called with the adapter after each batch, to look at it.

    Returns:
        The scores, (batches, B, C) float array, and the adapter as the last batch left it.

    Raises:
        ValueError: the method has no such variant, or its hyperparameters are refused.
    """
    cls: type[Adapter] = Registry().load(method) if isinstance(method, str) else method
    values = dict(hyperparameters)
    if "variant" in cls.Config.model_fields:
        values["variant"] = variant
    elif variant != "official":
        raise ValueError(f"{cls.__name__} has no variant {variant!r}, only 'official'")
    net = copy.deepcopy(model).eval().requires_grad_(False)
    parameter = next(net.parameters())
    wrapped = SourceModel(net, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).to(parameter.device, parameter.dtype).eval()
    first = test_batches[0]
    context = context_for(wrapped, len(first), first.shape[-1], parameter.device, seed=0)
    adapter = prepared(cls(wrapped, cls.Config.model_validate(values), context), iter(source_batches))
    scores = []
    for number, x in enumerate(test_batches):
        if number == reset_after:
            adapter.reset()
        scores.append(adapter.step(x.to(parameter.device, parameter.dtype, copy=True)).detach().cpu().numpy())
        if after_step is not None:
            after_step(adapter)
    return np.stack(scores), adapter


def check_method(cls: type[Adapter], config: Mapping[str, Any] | None = None) -> Any:
    """Run the conformance suite on a method; see :func:`tta_bench.conformance.check_method`."""
    from tta_bench import conformance  # which is built on this module

    return conformance.check_method(cls, config)


def prepared(adapter: Adapter, source: Iterator[torch.Tensor]) -> Adapter:
    """The adapter after ``setup`` and ``prepare``, as the runner brings it there."""
    adapter.setup()
    adapter.remember()
    if adapter.source_request() is not None:
        like = adapter.model.mean
        returned = adapter.prepare(x.to(like.device, like.dtype) for x in source)
        adapter.reset()
        adapter.prepared = returned
    return adapter
