"""The fork server: a process that has torch and timm imported and forks children on request.

It is executed, not forked, so that it holds none of its starter's data. It imports no method, starts no thread and never
initialises a GPU, so that its forks are like new processes, ready in milliseconds instead of seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from typing import Any, NoReturn

PRELOADED = ("tta_bench.torchvision_repair", "timm", "tta_bench.run.child", "tta_bench.schedule.worker")
_EXIT_S = 5.0  # for a child to end after its connection is closed, before it is killed
_MAX_SOCKET_PATH = 100  # characters; the system's limit is 107, with an unclear message
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[3])
from tta_bench.run import server
server.serve(int(sys.argv[1]), sys.argv[2])
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
        """Kill the process, or let it exit if not ``kill``; returns its exit code, negative for a signal.

        Raises:
            ConnectionError: the server has ended, and its children with it.
        """
        self.connection.close()
        deadline = time.monotonic() + _EXIT_S
        while (code := self._server.exit_code(self.pid)) is None:
            if kill or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        return code


class ForkServer:
    """A connection to a fork server of this machine.

    Args:
        address: path of its socket.

    Raises:
        OSError: there is no server.
    """

    def __init__(self, address: str):
        self.address = address
        self._control = connection.Client(address, "AF_UNIX")
        self._started: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls) -> ForkServer:
        """Start a server that ends with this process; returns at once, though its imports take seconds."""
        address = pathlib.Path(tempfile.mkdtemp(prefix="tta-bench-", dir=_short_folder())) / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen()
            number = listener.fileno()
            command = [sys.executable, "-P", "-c", _PROGRAM, str(number), str(address), json.dumps(sys.path)]
            started = subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)
            server = cls(str(address))
        server._started = started
        return server

    @classmethod
    def at(cls, address: str | None) -> ForkServer:
        """The server at ``address``; if there is none, a new one started by this process."""
        if address is not None:
            with contextlib.suppress(OSError):
                return cls(address)
        return cls.start()

    @property
    def folder(self) -> pathlib.Path:
        """The server's folder, which is deleted when it ends."""
        return pathlib.Path(self.address).parent

    def fork(self, function: Callable[..., None], *arguments: Any) -> Process:
        """Fork a child that calls ``function(connection, *arguments)``, both pickled, with this process's environment
        variables and working directory.

        Raises:
            ConnectionError: the server has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._control.send(None)
            reduction.send_handle(self._control, theirs.fileno(), 0)
        child = Process(self, self._answer(), Connection(ours.detach()))
        child.connection.send((function, arguments, dict(os.environ), str(pathlib.Path.cwd())))
        return child

    def exit_code(self, pid: int) -> int | None:
        """Exit code of a child, negative for a signal; None while it runs. The server forgets a code once it is read.

        Raises:
            ConnectionError: the server has ended.
        """
        self._control.send(pid)
        return self._answer()  # type: ignore[no-any-return]

    def _answer(self) -> Any:
        try:
            return self._control.recv()
        except (EOFError, OSError) as error:
            raise ConnectionError("the fork server has ended") from error


@functools.cache
def own_server() -> ForkServer:
    """This process's fork server, started on the first call."""
    return ForkServer.start()


def _short_folder() -> str | None:
    """A folder with a path short enough for a socket; None for the default folder of temporary files."""
    return None if len(tempfile.gettempdir()) < _MAX_SOCKET_PATH - len("/tta-bench-________/s") else "/tmp"


# -- the server's side -------------------------------------------------------------------------------------------------


def serve(listener: int, address: str) -> None:
    """Answer requests until the first client, which started this process, disconnects."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes by a terminal or scheduler: for the driver
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: _leave(address))
    try:
        die_with_parent(signal.SIGUSR1)
        for module in PRELOADED:
            importlib.import_module(module)
        from tta_bench.run import global_state  # here: a process that only starts servers must not import torch

        global_state.function_snapshot()
        gc.freeze()  # otherwise the first collection in each child would copy all objects' memory pages
        with socket.socket(fileno=listener) as listening:
            _serve_clients(listening)
    finally:
        shutil.rmtree(pathlib.Path(address).parent, ignore_errors=True)


def _leave(address: str) -> NoReturn:
    """Delete the folder and end at once: the process that started this one has ended."""
    shutil.rmtree(pathlib.Path(address).parent, ignore_errors=True)
    os._exit(0)


def _serve_clients(listening: socket.socket) -> None:
    clients = [Connection(listening.accept()[0].detach())]
    first, running, codes = clients[0], dict[int, Connection](), dict[int, int]()  # by pid: client, exit code
    while True:
        for ready in connection.wait([listening, *clients]):
            if isinstance(ready, socket.socket):
                clients.append(Connection(ready.accept()[0].detach()))
                continue
            assert isinstance(ready, Connection)
            for pid, code in _ended():
                codes[pid] = code
                running.pop(pid, None)  # before its pid can be reused
            try:
                if (pid := ready.recv()) is None:
                    running[_fork(ready, [listening, *clients])] = ready
                else:
                    ready.send(codes.pop(pid, None))
            except (EOFError, OSError):
                if ready is first:
                    return
                clients.remove(ready)
                _kill(pid for pid, client in running.items() if client is ready)


def _kill(pids: Iterable[int]) -> None:
    """Kill children whose client has ended; a method that hangs would never end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended() -> Iterator[tuple[int, int]]:
    """(pid, exit code) of children that have ended since the last call."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _fork(client: Connection, inherited: list[Any]) -> int:
    descriptor = reduction.recv_handle(client)
    if pid := os.fork():
        os.close(descriptor)
        client.send(pid)
        return pid
    _run_child(descriptor, inherited)


def _run_child(descriptor: int, inherited: list[Any]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        die_with_parent()
        for each in inherited:
            each.close()
        connected = Connection(descriptor)
        function, arguments, environment, folder = connected.recv()
        _enter(environment, folder)
        function(connected, *arguments)
        code = 0
    except EOFError:
        code = 0  # the client has disconnected
    except BaseException:  # the child must never return into the server's loop
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _enter(environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send signal ``by`` to this process when its parent ends; a method that hangs would outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)  # 1: PR_SET_PDEATHSIG
