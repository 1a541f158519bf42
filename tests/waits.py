"""Which operations would make the host wait for a GPU, seen on a machine without one; no test itself.

Every tensor is on the host or on a pretended device: on the device are the tensors named to :class:`Waits`, what is moved
or made there, and what is computed from any of these. Memory tells them apart, so that views and autograd's copies count.

What cannot be seen: waits inside one operation (of cuSOLVER, say) and of CUDA's allocator; whether a copy with
``non_blocking`` has pinned memory (``methods/transfer.py`` alone makes such copies); what other threads do. On a GPU,
``torch.cuda.set_sync_debug_mode`` sees more.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {  # operations whose result, or its shape, the host must know
    "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "equal", "allclose", "bincount",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2",
}  # fmt: skip
_TO_HOST = ("cpu", "tolist", "numpy", "__array__")
_NEW = ("tensor", "as_tensor", "asarray", "new_tensor")  # made from numbers of Python


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Waits:
    """Within it, ``waits`` collects the name of each operation that would wait; it may be entered again."""

    def __init__(self, on_device: Iterable[Tensor] = ()):
        self.waits: list[str] = []
        self._memory: dict[int, Any] = {}  # of the device, by address; held, so that no address is used again
        self._mark(on_device)
        self._modes = (_Functions(self), _Operations(self))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr():
                self._memory[storage.data_ptr()] = storage

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._memory

    def _wait(self, name: str) -> None:
        """Note a wait, with the line of a method that causes it."""
        frames = (f for f in inspect.stack(0) if "/methods/" in f.filename)
        place = next((f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in frames), "elsewhere")
        self.waits.append(f"{name} ({place})")


class _Functions(TorchFunctionMode):
    """Copies between host and device, which need not be operations here, where both are one memory."""

    def __init__(self, log: Waits):
        super().__init__()
        self.log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        log, kwargs, name = self.log, kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in _TO_HOST and first is not None and log._holds(first):
            log._wait(name)
            with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
                return func(first.clone(), *args[1:], **kwargs)
        made = func(*args, **kwargs)
        places = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, torch.device)]
        if name == "to" and first is not None and not log._holds(first):
            if places or any(log._holds(t) for t in _tensors(args[1:])):
                if not kwargs.get("non_blocking"):
                    log._wait("to")
                made = made.clone()  # a copy, as it would be on a GPU
                log._mark([made])
        elif isinstance(kwargs.get("device"), torch.device) and isinstance(made, Tensor):
            if name in _NEW and not any(log._holds(t) for t in _tensors(args)):
                log._wait(name)
            log._mark([made])
        elif name == "new_tensor" and first is not None and log._holds(first):
            log._wait(name)
            log._mark([made])
        return made


class _Operations(TorchDispatchMode):
    """Everything else, backward passes included."""

    def __init__(self, log: Waits):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        log, name = self.log, func.overloadpacket.__name__
        given = _tensors((args, kwargs))
        here = [log._holds(tensor) for tensor in given]
        if any(here):
            if name in _READS or func is torch.ops.aten.repeat_interleave.Tensor or self._waits(name, args):
                log._wait(name)
            if name != "copy_" and not name.startswith("index"):
                aside = [t for t, on_device in zip(given, here, strict=True) if not on_device and t.dim() and len(t)]
                assert not aside, f"{func} of a tensor on the host, of shape {tuple(aside[0].shape)}: an error on a GPU"
        made = func(*args, **(kwargs or {}))
        if any(here) and not (name == "copy_" and not log._holds(args[0])):
            log._mark(_tensors(made))
        return made

    def _waits(self, name: str, args: Any) -> bool:
        """Whether an index is a mask, or on the host; or a copy, between host and device, without ``non_blocking``."""
        if name in ("index", "index_put_", "index_put", "_index_put_impl_"):
            indices = _tensors(args[1])
            return any(i.dtype in (torch.bool, torch.uint8) or not self.log._holds(i) for i in indices)
        if name == "copy_":
            target, source = args[:2]
            return self.log._holds(target) != self.log._holds(source) and not (len(args) > 2 and args[2])
        return False
