"""Global state of a process: torch's switches, and the functions of torch, timm and the harness.

Every trial starts from the state that the harness sets. If a method has changed it, its process ends after the trial, and
the trial's row lists the changes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pathlib
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tta_bench.code import siblings
from tta_bench.precision import PRECISIONS, Mode

_DEFAULT = Mode()

# What networks, losses and optimizers consist of; the rest of torch has four times as many functions.
_WATCHED = frozenset(
    {"torch._tensor", "torch.amp", "torch.autograd", "torch.fft", "torch.functional", "torch.linalg", "torch.nn",
     "torch.optim", "torch.random", "torch.special", "timm.layers", "timm.models"}
)  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, tuple, list, dict, set, types.NoneType, np.ndarray, torch.Tensor)
_CONSTANTS = (int, float, str, tuple)  # only in the harness's modules: torch keeps counters and caches in its own
_SWITCHES: Mapping[str, Callable[[], Any]] = {
    "torch.is_grad_enabled()": torch.is_grad_enabled,
    "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled,
    "torch.is_anomaly_enabled()": torch.is_anomaly_enabled,
    "torch.is_autocast_enabled()": lambda: [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
    "torch.get_default_dtype()": torch.get_default_dtype,
    "torch.get_default_device()": torch.get_default_device,
    "torch.get_num_threads()": torch.get_num_threads,
    "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled,
    "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision,
    "torch.backends.cudnn.enabled": lambda: torch.backends.cudnn.enabled,
    "torch.backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "torch.backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "torch.backends.cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "torch.backends.cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "torch.backends.cuda: attention kernels": lambda: [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    ],
    "torch: modes on the stack": lambda: [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()],
    "torch: hooks on all modules or optimizers": lambda: _global_hooks(),
    "numpy.geterr()": np.geterr,
    "os.getcwd()": os.getcwd,
    "os.environ": lambda: dict(os.environ),
    "signal handlers": lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
    "running threads": lambda: sorted(thread.name for thread in threading.enumerate()),
}


def set_global_state(threads: int, mode: Mode = _DEFAULT) -> None:
    """Set torch's switches for a trial.

    Args:
        threads: CPU threads of torch; results are bit-identical for equal numbers.
        mode: how the network computes.
    """
    tf32 = PRECISIONS[mode.precision].tf32
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.benchmark = False  # it selects kernels by timing them
    torch.backends.cudnn.deterministic = mode.deterministic
    # the gradients of these attention kernels, which float32 would get, add up in the order in which threads happen to end
    torch.backends.cuda.enable_mem_efficient_sdp(not mode.deterministic)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


class FunctionSnapshot:
    """Functions and classes of the watched packages at construction, which takes 0.1 s."""

    def __init__(self) -> None:
        self._modules = [(module, _watched_names(module)) for module in _watched_modules()]
        classes = {value for _, before in self._modules for value in before.values() if isinstance(value, type)}
        self._classes = [(cls, dict(vars(cls))) for cls in classes if _is_watched(cls.__module__)]

    def changes(self) -> list[str]:
        """Dotted names of what has changed since, sorted."""
        return sorted({*self._changed_modules(), *self._changed_classes()})

    def _changed_modules(self) -> Iterator[str]:
        for module, before in self._modules:
            now = vars(module)
            yield from (f"{module.__name__}.{name}" for name, value in before.items() if now.get(name) is not value)

    def _changed_classes(self) -> Iterator[str]:
        for cls, before in self._classes:
            now = vars(cls)
            if now == before:  # the common case, in one fast comparison
                continue
            for name in now.keys() | before.keys():
                if _differ(before.get(name, _inherited(cls, name)), now.get(name)):
                    yield f"{cls.__module__}.{cls.__qualname__}.{name}"


@functools.cache
def function_snapshot() -> FunctionSnapshot:
    """The snapshot of this process; the fork server calls this before its forks load any method."""
    return FunctionSnapshot()


class GlobalState:
    """Switches of this process at construction, and functions at the first call of :func:`function_snapshot`.

    Args:
        compiles: whether the process compiles; torch's compiler starts threads at any time, so that these do not count.
    """

    def __init__(self, *, compiles: bool = False) -> None:
        self._functions = function_snapshot()
        self._switches = {name: _read(name) for name in _SWITCHES if not (compiles and name == "running threads")}

    def changes(self) -> list[str]:
        """What has changed since: switches, then dotted names of functions and classes."""
        return [n for n, value in self._switches.items() if _read(n) != value] + self._functions.changes()


def _read(switch: str) -> Any:
    try:
        return _SWITCHES[switch]()
    except Exception as error:  # such as a deleted working directory
        return repr(error)


class MethodState:
    """Data in a method's own modules and their classes, which a later trial of the method would find."""

    def __init__(self, cls: type):
        self._cls = cls
        self._before = dict(_data(cls))

    def changes(self) -> list[str]:
        """Dotted names of what has changed since, sorted."""
        now = dict(_data(self._cls))
        return sorted(name for name in now.keys() | self._before.keys() if now.get(name) != self._before.get(name))


def _data(cls: type) -> Iterator[tuple[str, bytes]]:
    """(dotted name, pickled value) of each variable with plain data in a method's modules and their classes."""
    for module in _own_modules(cls):
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        for owner, prefix in (
            (module, module.__name__),
            *((c, f"{module.__name__}.{c.__qualname__}") for c in classes),
        ):
            for name, value in list(vars(owner).items()):  # a copy: pickling may import, which changes it
                if isinstance(value, _PLAIN) and not name.startswith("__"):
                    with contextlib.suppress(Exception):  # not all of it is data, and pickling runs its code
                        yield f"{prefix}.{name}", pickle.dumps(value)


def _own_modules(cls: type) -> list[types.ModuleType]:
    """The loaded modules of a method's package, or its plugin file and the modules beside it."""
    modules = (c.__module__ for c in cls.__mro__)  # "abc" for a class made by type()
    foreign = {*sys.stdlib_module_names, "tta_bench.adapter"}
    own = next((name for name in modules if not foreign & {name, name.partition(".")[0]}), None)
    if own is None:
        return []
    package, _, _ = own.rpartition(".")
    if package:
        return [module for name, module in list(sys.modules.items()) if name.startswith(f"{package}.")]
    beside = siblings(pathlib.Path(str(sys.modules[own].__file__)))
    return [sys.modules[name] for name in (own, *beside) if name in sys.modules]


def _watched_modules() -> Iterator[types.ModuleType]:
    for name, module in list(sys.modules.items()):
        if _is_watched(name) and type(module) is types.ModuleType:
            yield module


def _is_watched(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "tta_bench" or module == "torch" or ".".join(parts[:2]) in _WATCHED


def _watched_names(module: types.ModuleType) -> dict[str, Any]:
    """A module's functions and classes, and, in the harness's modules, its constants."""
    constants = _CONSTANTS if module.__name__.startswith("tta_bench") else ()
    return {name: value for name, value in vars(module).items() if callable(value) or isinstance(value, constants)}


def _inherited(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)


def _differ(before: Any, now: Any) -> bool:
    """Whether a function of a class has changed; other attributes may, since they hold counters and caches.

    torch itself wraps ``step``, also an inherited one, when the first optimizer of a class is constructed.
    """
    wrapped = getattr(now, "hooked", False) and inspect.unwrap(now) is inspect.unwrap(before)
    return now is not before and not wrapped and (hasattr(before, "__get__") or hasattr(now, "__get__"))


def _global_hooks() -> list[int]:
    owners = [vars(sys.modules[name]) for name in ("torch.nn.modules.module", "torch.optim.optimizer")]
    return [
        len(hooks)
        for owner in owners
        for name, hooks in owner.items()
        if name.startswith("_global_") and isinstance(hooks, dict)
    ]
