"""The fork server: a process that has torch and timm imported and forks a child for whoever asks.

It is executed, not forked, so that it holds none of its starter's data. It imports no method, starts no thread and
touches no GPU, so that its forks are as good as new processes, and are ready in milliseconds instead of seconds.
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
_EXIT_S = 5.0  # how long a child may take to end, after its connection is closed, before it is killed
_LONGEST = 100  # characters of the path of a socket: the system takes 107, and names a longer one in no clear words
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
        """End the process, by force unless it is about to end by itself; its exit code, negative for a signal.

        Raises:
            ConnectionError: the server has ended, and with it the process.
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
        OSError: no server is there.
    """

    def __init__(self, address: str):
        self.address = address
        self._control = connection.Client(address, "AF_UNIX")
        self._started: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls) -> ForkServer:
        """Start a server that ends with this process; returns at once, its imports take seconds."""
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
        """The server at an address, or, where there is none any more, a new one of this process."""
        if address is not None:
            with contextlib.suppress(OSError):
                return cls(address)
        return cls.start()

    @property
    def folder(self) -> pathlib.Path:
        """The server's own, for files that go with it."""
        return pathlib.Path(self.address).parent

    def fork(self, function: Callable[..., None], *arguments: Any) -> Process:
        """A child that runs ``function(connection, *arguments)``, both pickled, in this process's environment and folder.

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
        """The exit code of a child that has ended, negative for a signal; None while it runs. Asked for once.

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
    """This process's fork server, started when it is first asked for."""
    return ForkServer.start()


def _short_folder() -> str | None:
    """Where a socket's path is short enough; None for the folder of temporary files."""
    return None if len(tempfile.gettempdir()) < _LONGEST - len("/tta-bench-________/s") else "/tmp"


# -- the server's side -------------------------------------------------------------------------------------------------


def serve(listener: int, address: str) -> None:
    """Answer requests until the first process that connected, which started this one, closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver says what it means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # at once, but for the folder
    try:
        die_with_parent(signal.SIGTERM)
        for module in PRELOADED:
            importlib.import_module(module)
        from tta_bench.run import global_state  # here: its starter needs no torch for it

        global_state.functions()
        gc.freeze()  # or every child would copy the memory of all objects when it first collects
        with socket.socket(fileno=listener) as listening:
            _answer_all(listening)
    finally:
        shutil.rmtree(pathlib.Path(address).parent, ignore_errors=True)


def _answer_all(listening: socket.socket) -> None:
    controls = [Connection(listening.accept()[0].detach())]
    first, running, codes = controls[0], dict[int, Connection](), dict[int, int]()  # by the child's pid: its asker
    while True:
        for ready in connection.wait([listening, *controls]):
            if isinstance(ready, socket.socket):
                controls.append(Connection(ready.accept()[0].detach()))
                continue
            assert isinstance(ready, Connection)
            for pid, code in _ended():
                codes[pid] = code
                running.pop(pid, None)  # at once: its number may soon be another process's
            try:
                if (pid := ready.recv()) is None:
                    running[_fork(ready, [listening, *controls])] = ready
                else:
                    ready.send(codes.pop(pid, None))
            except (EOFError, OSError):
                if ready is first:
                    return
                controls.remove(ready)
                _kill(pid for pid, asker in running.items() if asker is ready)


def _kill(pids: Iterable[int]) -> None:
    """End children whose asker has ended: nobody would end a method that hangs."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended() -> Iterator[tuple[int, int]]:
    """(pid, exit code) of each child that has ended since the last call."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _fork(control: Connection, opened: list[Any]) -> int:
    handed = reduction.recv_handle(control)
    if pid := os.fork():
        os.close(handed)
        control.send(pid)
        return pid
    _run_child(handed, opened)


def _run_child(descriptor: int, opened: list[Any]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent()
        for other in opened:
            other.close()
        connected = Connection(descriptor)
        function, arguments, environment, folder = connected.recv()
        _take_on(environment, folder)
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


def _take_on(environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process with the one that started it; a method that hangs would outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)  # 1: PR_SET_PDEATHSIG
