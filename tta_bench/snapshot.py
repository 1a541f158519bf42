"""Remember everything reachable from an object, and put it back in place.

``Adapter.reset`` is built on this, so that a method needs no reset of its own: parameters, buffers (also those that a
method deleted or replaced), optimizer state, running averages, counters and generators all come back, and every tensor
keeps its identity, so that optimizers and captured graphs still point at the right memory.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

_OPAQUE = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
    str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size,
)  # fmt: skip


class Untouched:
    """The value of an attribute ``survives_reset``: no snapshot looks into its object. A deep copy of that has it not."""

    def __deepcopy__(self, memo: dict[int, Any]) -> bool:
        return False


class Snapshot:
    """The state of an object graph. Build one with :meth:`of`; :meth:`restore` may be called any number of times.

    An object whose attribute ``survives_reset`` is true is left alone, with all that is reached only through it.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}  # holds the objects, so that an id is not used again

    @classmethod
    def of(
        cls, root: object, keep: Iterable[str] = (), leave: Iterable[str] = (), alone: Iterable[object] = ()
    ) -> Snapshot:
        """Take the state of everything reachable from ``root``'s attributes.

        Args:
            root: an object with a ``__dict__``.
            keep: dotted attribute paths below ``root`` whose present value survives a restore, with all below it.
            leave: names of attributes of ``root`` that are not looked into at all.
            alone: objects that are not looked into, wherever they are found.
        """
        snapshot = cls()
        snapshot._seen = {id(value): value for value in alone}
        snapshot._visit(root, "", frozenset(keep) | frozenset(leave))
        return snapshot

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place."""
        for undo in self._undo:
            undo()

    # -- walking -----------------------------------------------------------------------------------------------------

    def _visit(self, value: Any, path: str, stop: frozenset[str]) -> None:
        if isinstance(value, _OPAQUE) or id(value) in self._seen or getattr(value, "survives_reset", False):
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(functools.partial(value.set_state, state))
        elif isinstance(value, np.ndarray):
            self._array(value, path, stop)
        elif isinstance(value, np.random.Generator):
            self._visit(value.bit_generator, path, stop)
        elif isinstance(value, np.random.BitGenerator):
            bits = copy.deepcopy(value.state)
            self._undo.append(lambda: setattr(value, "state", copy.deepcopy(bits)))
        elif isinstance(value, np.random.RandomState):
            whole = copy.deepcopy(value.get_state(legacy=False))  # with the normal draw that it may hold back
            self._undo.append(lambda: value.set_state(copy.deepcopy(whole)))
        elif isinstance(value, dict):
            self._mapping(value, path, stop)
        elif isinstance(value, list | deque | set):
            self._container(value, path, stop)
        elif isinstance(value, tuple | frozenset):
            for child in value:
                self._visit(child, path, stop)
        elif hasattr(value, "__dict__"):
            self._mapping(value.__dict__, path, stop)

    def _tensor(self, tensor: torch.Tensor) -> None:
        data = tensor.detach().clone()
        requires_grad, is_leaf = tensor.requires_grad, tensor.is_leaf
        gradient = None if not is_leaf or tensor.grad is None else tensor.grad.detach().clone()

        def undo() -> None:
            tensor.detach().copy_(data)
            if is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = None if gradient is None else gradient.clone()

        self._undo.append(undo)

    def _array(self, array: np.ndarray, path: str, stop: frozenset[str]) -> None:
        if not array.flags.writeable:
            self._visit(array.base, path, stop)  # a view changes with what it is of
            if not array.flags.owndata:  # nor can a read-only file's memory change
                return
        data, writeable = array.copy(), array.flags.writeable

        def undo() -> None:
            with _unlocked(array):
                np.copyto(array, data)
            if array.flags.writeable != writeable:
                with _unlocked(array.base):
                    array.flags.writeable = writeable

        self._undo.append(undo)

    def _mapping(self, mapping: dict[Any, Any], path: str, stop: frozenset[str]) -> None:
        kept = {key for key in mapping if _join(path, key) in stop}
        content = {key: value for key, value in mapping.items() if key not in kept}

        def undo() -> None:
            for key in [key for key in mapping if key not in content and _join(path, key) not in stop]:
                del mapping[key]
            mapping.update(content)

        self._undo.append(undo)
        for key, value in content.items():
            self._visit(value, _join(path, key), stop)

    def _container(self, container: list[Any] | deque[Any] | set[Any], path: str, stop: frozenset[str]) -> None:
        content = list(container)

        def undo() -> None:
            container.clear()
            container.update(content) if isinstance(container, set) else container.extend(content)

        self._undo.append(undo)
        for index, value in enumerate(content):
            self._visit(value, _join(path, index), stop)


@contextlib.contextmanager
def _unlocked(array: Any) -> Iterator[None]:
    """While an array can be written to; then it is as before. Of a view, that which it is of has to be unlocked, too."""
    if not isinstance(array, np.ndarray) or array.flags.writeable:
        yield
        return
    with _unlocked(array.base):
        array.flags.writeable = True
        try:
            yield
        finally:
            array.flags.writeable = False


def _join(path: str, key: Any) -> str:
    name = "tensor" if isinstance(key, torch.Tensor) else key  # whose text would be its values
    return f"{path}.{name}" if path else str(name)
