"""Names to classes: built-in methods, installed plugins and plugin files, loaded only when asked for.

Built-in methods stand in the same entry-point groups as a stranger's package does: ``tta_bench.methods`` and
``tta_bench.optimizers``. Listing names imports nothing, and a plugin that cannot be imported breaks only the run that
asks for it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import pathlib
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tta_bench.errors import Problem, UsageError, near_miss

METHODS = "tta_bench.methods"
OPTIMIZERS = "tta_bench.optimizers"


@dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
        name: what a suite calls it.
        origin: the distribution with its version, or the plugin file's name.
        target: ``module:Class`` of an installed package, or the class name in a plugin file.
        file: the plugin file's path, or None.
    """

    name: str
    origin: str
    target: str
    file: pathlib.Path | None = None

    def __reduce__(self) -> Any:
        content = self.file.read_bytes() if self.file else None
        return _received, (self.name, self.origin, self.target, self.file, content)

    def load(self) -> type:
        """Import the class.

        Raises:
            UsageError: it cannot be imported; the message ends with the plugin's own error.
        """
        try:
            return _load(self)
        except UsageError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UsageError(
                Problem(
                    f"{self.name!r} ({self.origin}) cannot be loaded: {type(error).__name__}: {error}",
                    where=f"{last.filename}:{last.lineno}",
                    hint=f"mend or uninstall the plugin; 'tta-bench methods {self.name}' shows the same",
                )
            ) from error


def _received(name: str, origin: str, target: str, file: pathlib.Path | None, content: bytes | None) -> Entry:
    """An entry in the process that it was sent to: a plugin's file travels with it, and is used where it is not there."""
    if file is not None and content is not None and not (file.is_file() and file.read_bytes() == content):
        file = _unpacked(file.name, content)
    return Entry(name, origin, target, file)


@functools.cache
def _unpacked(name: str, content: bytes) -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tta-bench-plugin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / name).write_bytes(content)
    return folder / name


def _load(entry: Entry) -> type:
    if entry.file is not None:
        return getattr(_plugin_module(entry.file), entry.target)  # type: ignore[no-any-return]
    import tta_bench.torchvision_repair  # noqa: F401  (the plugin may import timm next)

    module, _, attribute = entry.target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, type):
        raise TypeError(f"{entry.target} is not a class")
    return found


@functools.cache
def _plugin_module(file: pathlib.Path) -> Any:
    """Import a plugin file once a process, under a name that no other file can have.

    Raises:
        UsageError: the file is missing, is not Python, or raises while it is imported.
    """
    import tta_bench.torchvision_repair  # noqa: F401  (the plugin may import timm next)

    if not file.is_file():
        raise UsageError(Problem("no such plugin file", where=str(file)))
    name = f"tta_bench_plugin_{file_sha256(file)[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(Problem("a plugin must be a Python file, its name ending in .py", where=str(file)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        text = (error.text or "").rstrip("\n")
        source = f"{error.lineno or 0:>6} | {text}" if text else ""
        where = f"{file}:{error.lineno}:{error.offset}"
        raise UsageError(Problem(f"plugin is not valid Python: {error.msg}", where, source)) from error
    except Exception as error:
        del sys.modules[name]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f"{file}:{frames[-1].lineno}" if frames else str(file)
        raise UsageError(Problem(f"plugin cannot be imported: {type(error).__name__}: {error}", where)) from error
    return module


def plugin_entries(file: pathlib.Path) -> list[Entry]:
    """The methods that a plugin file defines: every concrete Adapter subclass in it, under its ``name``.

    Raises:
        UsageError: the file cannot be imported, defines no method, or a method in it has no ``name``.
    """
    from tta_bench.adapter import Adapter

    file = file.resolve()
    module = _plugin_module(file)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Adapter) and value.__module__ == module.__name__
        and not getattr(value, "__abstractmethods__", None)
    ]  # fmt: skip
    if not classes:
        raise UsageError(
            Problem("the plugin file defines no method", str(file), hint="subclass tta_bench.adapter.Adapter in it")
        )
    for cls in classes:
        if not cls.name:
            hint = f"write: name = {cls.__name__.lower()!r}"
            raise UsageError(Problem(f"class {cls.__name__} has no 'name' attribute", str(file), hint=hint))
    return [Entry(cls.name, f"file {file.name}", cls.__name__, file) for cls in classes]


class Registry:
    """The names of one group. Looking a name up is cheap; loading its class is left to :meth:`load`."""

    def __init__(self, group: str = METHODS, plugins: Iterable[pathlib.Path] = ()):
        self.group = group
        self._entries: dict[str, list[Entry]] = {}
        for point in metadata.entry_points(group=group):
            dist = point.dist
            origin = f"{dist.name} {dist.version}" if dist else "unknown distribution"
            self._add(Entry(point.name, origin, point.value))
        for file in dict.fromkeys(pathlib.Path(p).resolve() for p in plugins):
            for entry in plugin_entries(file):
                self._add(entry)

    def _add(self, entry: Entry) -> None:
        found = self._entries.setdefault(entry.name, [])
        if entry not in found:  # an editable install can list its own entry points twice
            found.append(entry)

    def names(self) -> list[str]:
        """All names, sorted; imports nothing."""
        return sorted(self._entries)

    def entries(self) -> list[Entry]:
        """All entries, colliding ones included, sorted by name."""
        return [entry for name in self.names() for entry in self._entries[name]]

    def entry(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            UsageError: the name is unknown (with the nearest known one), or two plugins have it (both are named).
        """
        found = self._entries.get(name, [])
        noun = "method" if self.group == METHODS else "optimizer"
        if not found:
            raise UsageError(Problem(f"unknown {noun} {name!r}", hint=near_miss(name, self.names())))
        if len(found) > 1:
            both = " and ".join(f"{e.origin} ({e.file or e.target})" for e in found)
            hint = "uninstall one of them, or give the method in the plugin file another name"
            raise UsageError(Problem(f"two plugins have the name {name!r}: {both}", hint=hint))
        return found[0]

    def load(self, name: str) -> type:
        """The class of a name; see :meth:`entry` and :meth:`Entry.load` for what is raised."""
        return self.entry(name).load()


# -- a digest of the code that a name stands for ---------------------------------------------------------------------


def file_sha256(path: str | pathlib.Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def folder_sha256(folder: pathlib.Path) -> str:
    """SHA-256 over the names and contents of all Python files below ``folder``."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def code_digest(entry: Entry) -> dict[str, str]:
    """What identifies a method's code in a trial's key.

    A plugin file's SHA-256; for a package its distribution with version, and the digest of the folder that defines the
    class (of the one file, where the module stands in no package).
    """
    if entry.file is not None:
        return {"plugin_sha256": file_sha256(entry.file)}
    module = sys.modules[entry.load().__module__]
    file = pathlib.Path(str(module.__file__))
    digest = folder_sha256(file.parent) if module.__package__ else file_sha256(file)
    return {"distribution": entry.origin, "code_sha256": digest}
