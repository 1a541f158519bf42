"""Methods that leave their process otherwise than they found it, or end it: a plugin file for tests of isolation."""

from __future__ import annotations

import abc
import argparse
import ctypes
import os
import pathlib
import signal
import sys
import threading
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tta_bench import optimizers
from tta_bench.adapter import Adapter
from tta_bench.run import metrics

ARGUMENTS = argparse.ArgumentParser().parse_args()  # would refuse the command line of tta-bench


class Poison(Adapter):
    """Does its harm in the first step, then predicts as the source model does."""

    def setup(self) -> None:
        self.done = False

    def step(self, x: Tensor) -> Tensor:
        scores = self.predict(x)
        if not self.done:
            self.done = True
            self.harm()
        return scores

    @abc.abstractmethod
    def harm(self) -> None:
        """What a method should not do."""


class PatchedBatchNorm(Poison):
    """Replaces ``nn.BatchNorm2d.forward``."""

    name = "patched-batchnorm"

    def harm(self) -> None:
        nn.BatchNorm2d.forward = lambda module, x: x * 0  # type: ignore[method-assign]


class PatchedLinear(Poison):
    """Replaces ``nn.Linear.forward``."""

    name = "patched-linear"

    def harm(self) -> None:
        nn.Linear.forward = lambda module, x: x.new_zeros(*x.shape[:-1], module.out_features)  # type: ignore[method-assign]


class PatchedSoftmax(Poison):
    """Replaces ``torch.Tensor.softmax`` and its namesake."""

    name = "patched-softmax"

    def harm(self) -> None:
        torch.Tensor.softmax = lambda tensor, *_, **__: tensor * 0  # type: ignore[method-assign,assignment]
        torch.nn.functional.softmax = torch.relu  # type: ignore[assignment]


class PatchedHarness(Poison):
    """Replaces functions that grade and count."""

    name = "patched-harness"

    def harm(self) -> None:
        metrics.grade = lambda scores, outputs: None  # type: ignore[assignment,return-value]
        optimizers.stats = lambda adapter: {}  # type: ignore[assignment]


class NoGradients(Poison):
    """Switches gradients off."""

    name = "no-gradients"

    def harm(self) -> None:
        torch.set_grad_enabled(False)


class DefaultDtype(Poison):
    """Makes new tensors float64."""

    name = "default-dtype"

    def harm(self) -> None:
        torch.set_default_dtype(torch.float64)


class Threads(Poison):
    """Sets another number of threads, and starts one that stays."""

    name = "threads"

    def harm(self) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)
        threading.Thread(target=threading.Event().wait, name="left", daemon=True).start()


class WorkingDirectory(Poison):
    """Goes elsewhere."""

    name = "working-directory"

    def harm(self) -> None:
        os.chdir("/")


class Environment(Poison):
    """Sets a variable."""

    name = "environment"

    def harm(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "7"


class Hook(Poison):
    """Registers a hook on all modules."""

    name = "hook"

    def harm(self) -> None:
        nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output)


class Remembers(Poison):
    """Counts its trials in its class, and predicts by that."""

    name = "remembers"
    trials: ClassVar[list[int]] = []

    def harm(self) -> None:
        self.trials.append(1)

    def step(self, x: Tensor) -> Tensor:
        return super().step(x) * (-1) ** len(self.trials)


class Seeds(Poison):
    """Seeds every generator."""

    name = "seeds"

    def harm(self) -> None:
        torch.manual_seed(7)
        np.random.seed(7)


class Exits(Poison):
    """Raises ``SystemExit``."""

    name = "exits"

    def harm(self) -> None:
        sys.exit(0)


class Interrupts(Poison):
    """Raises ``KeyboardInterrupt``."""

    name = "interrupts"

    def harm(self) -> None:
        raise KeyboardInterrupt


class HardExit(Poison):
    """Ends its process, with success."""

    name = "hard-exit"

    def harm(self) -> None:
        os._exit(0)


class Crash(Poison):
    """Reads memory that is not there."""

    name = "crash"

    def harm(self) -> None:
        ctypes.string_at(0)


class Killed(Poison):
    """Is killed as the kernel kills a process when memory runs out."""

    name = "killed"

    def harm(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Unprintable(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Hangs(Poison):
    """Never returns."""

    name = "hangs"

    def harm(self) -> None:
        threading.Event().wait()


class NoText(Poison):
    """Raises an exception whose text cannot be had."""

    name = "no-text"

    def harm(self) -> None:
        raise Unprintable


class WildText(Poison):
    """Raises an exception with a text that no terminal and no file should be given."""

    name = "wild-text"

    def harm(self) -> None:
        raise ValueError("\x1b[31mred\x00 \ud800 " + "long " * 600_000 + "end")


class WildNames(Poison):
    """Says something of its steps under a name that no column can have."""

    name = "wild-names"

    def harm(self) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        return {"größe µ": 1.0}


class OddFacts(Poison):
    """Says of itself what no record can hold."""

    name = "odd-facts"

    def harm(self) -> None:
        pass

    def checkpoint_origin(self) -> Any:
        return pathlib.Path("/a/file")


class NoNumbers(Poison):
    """Says something of its steps that is no number."""

    name = "no-numbers"

    def harm(self) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        return {"state": "fine"}
