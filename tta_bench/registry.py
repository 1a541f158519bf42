"""Names to classes: built-in methods, installed plugins and plugin files, loaded only when asked for.

Built-in methods stand in the same entry-point groups as a stranger's package does: ``tta_bench.methods`` and
``tta_bench.optimizers``. Listing names imports nothing, and a plugin that cannot be imported breaks only the run that
asks for it.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import pathlib
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tta_bench.code import closure_sha256, file_sha256, package_closure, plugin_closure, siblings
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
        return _received, (self.name, self.origin, self.target, self.file, _contents(self.file) if self.file else ())

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


_Contents = tuple[
    tuple[str, bytes], ...
]  # of a plugin file, which comes first, and of the modules beside it: path, bytes


def _contents(file: pathlib.Path) -> _Contents:
    files = [file, *siblings(file).values()]
    return tuple((path.relative_to(file.parent).as_posix(), path.read_bytes()) for path in files)


def _received(name: str, origin: str, target: str, file: pathlib.Path | None, contents: _Contents) -> Entry:
    """An entry in the process that it was sent to: a plugin's files travel with it, for machines without them."""
    if file is not None and any(_differs(file.parent / path, content) for path, content in contents):
        file = _unpacked(contents)
    return Entry(name, origin, target, file)


def _differs(path: pathlib.Path, content: bytes) -> bool:
    return not (path.is_file() and path.read_bytes() == content)


@functools.cache
def _unpacked(contents: _Contents) -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tta-bench-plugin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path, content in contents:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder / contents[0][0]


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
    """Import a plugin file once a process, under a name that no other file can have; it may import modules beside it.

    Raises:
        UsageError: the file is missing, is not Python, raises while it is imported, or gets another module than the one
            beside it.
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
    beside = siblings(file)
    if beside and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last, so that no file there takes the place of an installed package
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
    _check_siblings(file, beside)
    return module


def _check_siblings(file: pathlib.Path, beside: Mapping[str, pathlib.Path]) -> None:
    for name, path in beside.items():
        imported = getattr(sys.modules.get(name), "__file__", None)
        if imported is not None and pathlib.Path(imported).resolve() != path.resolve():
            what = f"the plugin imports {name!r} and gets {imported}, not the file beside it"
            raise UsageError(Problem(what, where=str(file), hint=f"give {path.name} another name"))


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


def code_sha256(entry: Entry) -> str:
    """SHA-256 of the code that a plugin's numbers depend on: its import closure, see :mod:`tta_bench.code`.

    Raises:
        UsageError: the plugin cannot be loaded.
    """
    cls = entry.load()
    if entry.file is not None:
        return closure_sha256(plugin_closure(entry.file))
    return closure_sha256(package_closure([entry.target.partition(":")[0], cls.__module__]))
