"""The fork server: a process that has torch and timm imported and forks a child for whoever asks.

It is executed, not forked, so that it holds none of its starter's data. It imports no method, starts no thread and
touches no GPU, so that its forks are as good as new processes, and are ready in milliseconds instead of seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from typing import Any

PRELOADED = ("tta_bench.torchvision_repair", "timm", "tta_bench.run.child", "tta_bench.optimizers")
_EXIT_S = 5.0  # how long a child may take to end, after its connection is closed, before it is killed
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[2])
from tta_bench.run import server
server.serve(int(sys.argv[1]))
"""


class Process:
    """A child of the fork server.

    Attributes:
        pid: its process.
        connection: to the function that it runs.
    """

    def __init__(self, server: ForkServer, pid: int, connected: Connection):
        self._server, self.pid, self.connection = server, pid, connected

    def end(self, *, kill: bool = True) -> int:
        """End the process, by force unless it has ended by itself; its exit code, negative for a signal."""
        self.connection.close()
        deadline = time.monotonic() + _EXIT_S
        while (code := self._server.exit_code(self.pid)) is None:
            if kill or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        return code


class ForkServer:
    """A connection to a fork server.

    Args:
        control: the socket over which it is asked.
        process: the server, where this process has started it.
    """

    def __init__(self, control: Connection, process: subprocess.Popen[bytes] | None = None):
        self._control, self._process = control, process

    @classmethod
    def start(cls) -> ForkServer:
        """Start a server that ends with this process; returns at once, its imports take seconds."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return cls(Connection(ours.detach()), process)

    def fork(self, function: Callable[..., None], *arguments: Any) -> Process:
        """A child that runs ``function(connection, *arguments)``, both pickled.

        Raises:
            OSError: the server has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask("fork", theirs)
        child = Process(self, pid, Connection(ours.detach()))
        child.connection.send((function, arguments))
        return child

    def shared_with(self, child: Process) -> None:
        """Let a child ask this server, too; it takes :meth:`received`."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._ask("serve", theirs)
        with ours:
            reduction.send_handle(child.connection, ours.fileno(), child.pid)

    @classmethod
    def received(cls, connected: Connection) -> ForkServer:
        """The server that the process at the other end shares."""
        return cls(Connection(reduction.recv_handle(connected)))

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a child that has ended, negative for a signal; None while it runs. Asked for once."""
        self._control.send(("exit code", pid))
        return self._answer()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the server, and its children with it."""
        self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: str, handed: socket.socket) -> Any:
        self._control.send((request, None))
        reduction.send_handle(self._control, handed.fileno(), self._process.pid if self._process else 0)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._control.recv()
        except (EOFError, OSError) as error:
            raise ConnectionError("the fork server has ended") from error


# -- the server's side -------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Answer requests until the process that started this one closes its end."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver says what it means
    for module in PRELOADED:
        importlib.import_module(module)
    from tta_bench.run import global_state  # here: its starter needs no torch for it

    global_state.functions()
    gc.freeze()  # or every child would copy the memory of all objects when it first collects
    first = Connection(descriptor)
    controls = [first]
    while True:
        for control in connection.wait(controls):
            assert isinstance(control, Connection)
            try:
                request, pid = control.recv()
            except EOFError:
                if control is first:
                    return
                controls.remove(control)
                continue
            if request == "exit code":
                control.send(_exit_code(pid))
                continue
            handed = reduction.recv_handle(control)
            if request == "serve":
                controls.append(Connection(handed))
                control.send(None)
            elif pid := os.fork():
                os.close(handed)
                control.send(pid)
            else:
                _run_child(handed, controls)


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _run_child(descriptor: int, controls: list[Connection]) -> None:
    code = 1
    try:
        die_with_parent()
        for control in controls:
            control.close()
        connected = Connection(descriptor)
        function, arguments = connected.recv()
        function(connected, *arguments)
        code = 0
    except EOFError:
        code = 0  # nobody waits for it any more
    except BaseException:  # the loop of the server must not go on in a child, whatever happened there
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it; a method that hangs would outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
