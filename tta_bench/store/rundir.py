"""A run's folder: its lock, and ``run.json``, the provenance of each session."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

from tta_bench import __version__, files, preparation
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.run.server import own_server
from tta_bench.store import documents, records, schema

_PACKAGES = ("torch", "timm", "ray", "numpy", "scipy", "pandas", "pillow", "scikit-learn", "scikit-image", "numba",
             "safetensors", "imagecorruptions-imaug", "opencv-python", "opencv-python-headless")  # fmt: skip


def locked(run: pathlib.Path) -> AbstractContextManager[None]:
    """Hold the run's lock.

    Raises:
        UsageError: another process holds it (host and process are named), or the folder cannot be made.
    """
    return files.locked(run, "the run", "wait for it, stop it, or choose another folder with --out DIR")


def check_kinds(run: pathlib.Path) -> None:
    """Refuse a folder with a folder where a run writes a file, or the reverse: neither is replaced.

    Raises:
        UsageError: with each of them.
    """
    paths = [run / name for name in (documents.PLAN, documents.RUN, documents.TABLES, "status.json")]
    paths += [run / f"{name}.{suffix}" for name in schema.TABLES for suffix in ("parquet", "csv")]
    paths += [path for name in _FOLDERS for path in (run / name).glob("*.*")]
    problems = [Problem("a folder where the run has a file", str(path)) for path in paths if path.is_dir()]
    problems += [Problem("a file where the run has a folder", str(run / name))
                 for name in _FOLDERS if (run / name).is_file()]  # fmt: skip
    if problems:
        raise UsageError([dataclasses.replace(problem, hint="move it away") for problem in problems])


_FOLDERS = ("trials", "logs", preparation.FOLDER)


def damaged(run: pathlib.Path) -> Iterator[str]:
    """A message for each of ``plan.json`` and ``run.json`` that is there and damaged."""
    for name, read in ((documents.PLAN, documents.plan), (documents.RUN, documents.sessions)):
        try:
            if (run / name).exists():
                read(run)
        except UsageError as error:
            yield f"{error.problems[0].where} {error.problems[0].message}"


@contextlib.contextmanager
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

    A damaged file is kept as ``run.json.damaged``. Sessions that trials name and that it has lost are marked as unknown:
    their numbers are not given again.

    Args:
        run: the run's folder.
        suite: the suite.
        data: what its data were found to be.
    """
    path = run / documents.RUN
    try:
        sessions = documents.sessions(run)
    except UsageError:
        sessions = [_UNKNOWN | {"session": number} for number in _recorded_sessions(run)]
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".json.damaged"))
    number = 1 + max((session["session"] for session in sessions), default=-1)
    own = {"session": number, **_provenance(), "suite": dict(suite), "data": dict(data)}
    documents.write(path, {"schema_version": records.SCHEMA_VERSION, "sessions": [*sessions, own]})
    return number


_UNKNOWN = {"tta_bench": "unknown", "packages": dict.fromkeys(("torch", "timm"), "unknown")}


def _recorded_sessions(run: pathlib.Path) -> list[int]:
    """The sessions that a run's trials name."""
    numbers = set()
    for key in records.recorded(run):
        with contextlib.suppress(UsageError):
            if record := records.read_trial(run, key).record:
                numbers.add(record["session"])
    return sorted(numbers)


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
            done = subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                timeout=10,
                encoding="utf-8",
                errors="replace",
            )
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
