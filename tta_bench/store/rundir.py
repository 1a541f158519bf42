"""A run's folder: its lock, and ``run.json``, the provenance of each session."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

from tta_bench import __version__
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.files import write_json
from tta_bench.run.server import own_server
from tta_bench.store.records import SCHEMA_VERSION

_PACKAGES = ("torch", "timm", "ray", "numpy", "scipy", "pandas", "pillow", "scikit-learn", "scikit-image", "numba",
             "safetensors", "imagecorruptions-imaug", "opencv-python", "opencv-python-headless")  # fmt: skip


@contextmanager
def locked(run: pathlib.Path) -> Iterator[None]:
    """Hold the run's lock. The kernel frees it when this process ends, however it ends.

    Raises:
        UsageError: another process holds it (host and process are named), or the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        stream = open(run / "lock", "a+")  # noqa: SIM115  (held until the process ends)
    except OSError as error:
        raise UsageError(
            Problem(f"cannot write the run's folder: {error}", str(run), hint="choose --out DIR")
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            hint = "wait for it, stop it, or choose another folder with --out DIR"
            raise UsageError(Problem(f"the run is in use by {holder}", str(run), hint=hint)) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


@contextmanager
def writing(run: pathlib.Path) -> Iterator[None]:
    """Stop the run where its disk is full or fails; no file is torn, since files are renamed into place.

    Raises:
        Stopped: a write failed.
    """
    try:
        yield
    except OSError as error:
        problem = Problem(f"cannot write results: {error.strerror}", str(run), hint="free some space or fix the disk")
        raise Stopped(problem) from error


def begin_session(run: pathlib.Path, suite: Mapping[str, Any], data: Mapping[str, Any] = MappingProxyType({})) -> int:
    """Add a session to ``run.json``; returns its number.

    Args:
        run: the run's folder.
        suite: the suite.
        data: what its data were found to be.
    """
    path = run / "run.json"
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "sessions": []}
    if path.exists():
        content = json.loads(path.read_text())
    content["sessions"].append({"session": len(content["sessions"]), **_provenance(), "suite": dict(suite),
                                "data": dict(data)})  # fmt: skip
    write_json(path, content)
    return len(content["sessions"]) - 1


def _provenance() -> dict[str, Any]:
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "tta_bench": __version__,
        "git": _git_state(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the package is imported from, and whether it has uncommitted changes."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed package inside somebody else's checkout
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def _gpus() -> list[str]:
    """The names of this machine's GPUs, from another process: a CUDA context would hold memory in this one."""
    import torch

    if not torch.cuda.device_count():
        return []
    process = own_server().fork(_send_gpu_names)
    names: list[str] = process.connection.recv()
    process.end()
    return names


def _send_gpu_names(connection: Connection) -> None:
    import torch

    connection.send([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
