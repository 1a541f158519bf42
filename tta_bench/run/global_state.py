"""What a method shares with all else in its process: torch's switches; functions of torch, timm and the harness.

A trial must find it as the harness sets it, and leave it so. A process whose global state a method has changed ends
after that trial, and the trial's row says what changed.
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

# What networks, losses and optimizers are made of, and all of the harness; the rest of torch is four times as much.
_WATCHED = frozenset(
    {"torch._tensor", "torch.amp", "torch.autograd", "torch.fft", "torch.functional", "torch.linalg", "torch.nn",
     "torch.optim", "torch.random", "torch.special", "timm.layers", "timm.models"}
)  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, tuple, list, dict, set, types.NoneType, np.ndarray, torch.Tensor)
_CONSTANTS = (int, float, str, tuple)  # of the harness's modules; torch keeps counters and caches among its own
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
    ],
    "torch: modes on the stack": lambda: [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()],
    "torch: hooks on all modules or optimizers": lambda: _global_hooks(),
    "numpy.geterr()": np.geterr,
    "os.getcwd()": os.getcwd,
    "os.environ": lambda: dict(os.environ),
    "signal handlers": lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
    "threads that still run": lambda: sorted(thread.name for thread in threading.enumerate()),
}


def settle(threads: int) -> None:
    """Set what the harness computes with, whatever the process was started with.

    Args:
        threads: CPU threads of torch; the same number gives the same bits.
    """
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class Functions:
    """The functions and classes of the packages as they are when this object is made; a tenth of a second."""

    def __init__(self) -> None:
        self._modules = [(module, _kept(module)) for module in _modules()]
        classes = {value for _, kept in self._modules for value in kept.values() if isinstance(value, type)}
        self._classes = [(cls, dict(vars(cls))) for cls in classes if _is_watched(cls.__module__)]

    def changes(self) -> list[str]:
        """The dotted names of what is different now, sorted."""
        return sorted({*self._changed_modules(), *self._changed_classes()})

    def _changed_modules(self) -> Iterator[str]:
        for module, kept in self._modules:
            now = vars(module)
            yield from (f"{module.__name__}.{name}" for name, value in kept.items() if now.get(name) is not value)

    def _changed_classes(self) -> Iterator[str]:
        for cls, kept in self._classes:
            now = vars(cls)
            if now == kept:  # as a rule, and in one call
                continue
            for name in now.keys() | kept.keys():
                if _differ(kept.get(name, _inherited(cls, name)), now.get(name)):
                    yield f"{cls.__module__}.{cls.__qualname__}.{name}"


@functools.cache
def functions() -> Functions:
    """Those of this process and of its parent, the fork server, which calls this before there is any method."""
    return Functions()


class GlobalState:
    """The global state of this process when this object is made; that of functions when :func:`functions` was called."""

    def __init__(self) -> None:
        self._functions = functions()
        self._switches = {name: _read(name) for name in _SWITCHES}

    def changes(self) -> list[str]:
        """What is different now: switches, then functions and classes by their dotted names."""
        return [n for n, value in self._switches.items() if _read(n) != value] + self._functions.changes()


def _read(switch: str) -> Any:
    try:
        return _SWITCHES[switch]()
    except Exception as error:  # such as a working directory that has been deleted
        return repr(error)


class OwnState:
    """The data that a method's own modules and their classes hold, which a later trial of the method would find."""

    def __init__(self, cls: type):
        self._cls = cls
        self._before = dict(_data(cls))

    def changes(self) -> list[str]:
        """The dotted names of what is different now, sorted."""
        now = dict(_data(self._cls))
        return sorted(name for name in now.keys() | self._before.keys() if now.get(name) != self._before.get(name))


def _data(cls: type) -> Iterator[tuple[str, bytes]]:
    """Each variable of a method's modules, and of their classes, that holds plain data: its dotted name, and its value."""
    for module in _own_modules(cls):
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        for owner, named in ((module, module.__name__), *((c, f"{module.__name__}.{c.__qualname__}") for c in classes)):
            for name, value in list(vars(owner).items()):  # pickling may import, and so change it
                if isinstance(value, _PLAIN) and not name.startswith("__"):
                    with contextlib.suppress(Exception):  # it holds what is no data, and pickling runs its code
                        yield f"{named}.{name}", pickle.dumps(value)


def _own_modules(cls: type) -> list[types.ModuleType]:
    """The loaded modules of a method's package, or its plugin file and the modules beside that."""
    modules = (c.__module__ for c in cls.__mro__)  # of a class that type() makes it is "abc"
    foreign = {*sys.stdlib_module_names, "tta_bench.adapter"}
    own = next((name for name in modules if not foreign & {name, name.partition(".")[0]}), None)
    if own is None:
        return []
    package, _, _ = own.rpartition(".")
    if package:
        return [module for name, module in list(sys.modules.items()) if name.startswith(f"{package}.")]
    beside = siblings(pathlib.Path(str(sys.modules[own].__file__)))
    return [sys.modules[name] for name in (own, *beside) if name in sys.modules]


def _modules() -> Iterator[types.ModuleType]:
    for name, module in list(sys.modules.items()):
        if _is_watched(name) and type(module) is types.ModuleType:
            yield module


def _is_watched(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "tta_bench" or module == "torch" or ".".join(parts[:2]) in _WATCHED


def _kept(module: types.ModuleType) -> dict[str, Any]:
    """A module's functions and classes, and the constants of the harness's own modules."""
    constants = _CONSTANTS if module.__name__.startswith("tta_bench") else ()
    return {name: value for name, value in vars(module).items() if callable(value) or isinstance(value, constants)}


def _inherited(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)


def _differ(before: Any, now: Any) -> bool:
    """Whether a function of a class has changed; its counters may, and Python keeps caches in it.

    torch itself wraps ``step``, an inherited one too, when the first optimizer of a class is made.
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
