"""Stand-ins for plugins."""

from __future__ import annotations

import importlib
import os
import pathlib
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tta_bench.data.cache import ImageCache
from tta_bench.registry import METHODS, PluginKind, Registry
from tta_bench.run.runner import Supervisor
from tta_bench.run.server import PRELOADED, ForkServer, Process
from tta_bench.suite.plan import Materials


class Replaced(Registry):
    """What is installed, with classes of a test in the place of some methods."""

    def __init__(self, **classes: type):
        super().__init__()
        self._classes = classes

    def load(self, name: str, kind: PluginKind = METHODS) -> Any:
        return self._classes[name] if kind == METHODS and name in self._classes else super().load(name, kind)


class Forks(ForkServer):
    """Forks this process, so that the classes of a test need no plugin file; it imports what a fork server does."""

    def __init__(self, folder: pathlib.Path) -> None:
        for module in PRELOADED:
            importlib.import_module(module)
        self.address = str(folder / "socket")  # where nothing is

    def fork(self, function: Callable[..., None], *arguments: Any) -> Process:
        ours, theirs = socket.socketpair()
        if not (pid := os.fork()):
            ours.close()
            code = 1
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # not pytest's  # noqa: SIM115
            try:
                function(Connection(theirs.detach()), *arguments)
            except EOFError:
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        return Process(self, pid, Connection(ours.detach()))

    def exit_code(self, pid: int) -> int | None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None


def supervisor(materials: Materials, cache: pathlib.Path) -> Supervisor:
    """One that runs trials with one thread."""
    return Supervisor(materials, ImageCache(cache), 1, Forks(cache))


def fork_this_process(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """Have runs without Ray fork this process, with what a test has replaced in it.

    Trials have one thread: where this process has computed with several, OpenMP waits for ever for them in a fork.
    """
    monkeypatch.setattr("tta_bench.schedule.options.available_cpus", lambda: 1)
    monkeypatch.setattr("tta_bench.schedule.local.own_server", lambda: Forks(folder))
    monkeypatch.setattr("tta_bench.schedule.worker.ForkServer.at", lambda address: Forks(folder))


KILL_WORKER = """\
def kill_worker():
    \"\"\"End the Ray worker that this process works for, which is not its parent; they share a working directory.\"\"\"
    import os, pathlib, time
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            ours = os.readlink(process / "cwd") == os.getcwd()
            if ours and (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                os.kill(int(process.name), 9)
        except OSError:
            pass
    time.sleep(60)

"""
