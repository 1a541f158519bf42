"""The plugin registry: names to classes, from entry points and plugin files, imported on first use.

There are five kinds: methods, optimizers, protocols, data sets and source models. Built-in plugins are registered in the
same entry-point groups as third-party ones. Listing names imports nothing, and a plugin that cannot be imported breaks
only the runs that use it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import operator
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from tta_bench.code import closure_sha256, file_sha256, package_closure, plugin_closure, siblings
from tta_bench.errors import Problem, UsageError, near_miss, text_of
from tta_bench.files import is_file, resolved

SLOW_IMPORT_S = 30  # a notice names a plugin whose import takes longer
_PREFIX = "tta_bench_plugin_"  # of the module names of plugin files
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")  # of a plugin; files have it in their names


@dataclass(frozen=True)
class PluginKind:
    """A kind of plugin.

    Attributes:
        group: its entry-point group.
        noun: its name in messages.
        base: base class of the plugins, as ``module:Class``.
        config: base class of their Configs, as ``module:Class``.
    """

    group: str
    noun: str
    base: str
    config: str


_CONFIG = "tta_bench.adapter:Config"
METHODS = PluginKind("tta_bench.methods", "method", "tta_bench.adapter:Adapter", _CONFIG)
OPTIMIZERS = PluginKind("tta_bench.optimizers", "optimizer", "torch.optim:Optimizer", _CONFIG)
PROTOCOLS = PluginKind("tta_bench.protocols", "protocol", "tta_bench.protocols.base:Protocol",
                 "tta_bench.protocols.config:ProtocolConfig")  # fmt: skip
DATASETS = PluginKind(
    "tta_bench.datasets", "kind of data", "tta_bench.data.base:Dataset", "tta_bench.data.base:DataConfig"
)
MODELS = PluginKind("tta_bench.models", "kind of model", "tta_bench.models:Network", "tta_bench.models:ModelConfig")
KINDS = (METHODS, OPTIMIZERS, PROTOCOLS, DATASETS, MODELS)


@dataclass(frozen=True)
class PluginEntry:
    """A registered plugin, not imported yet.

    Attributes:
        name: its name in a suite.
        origin: the distribution with its version, or the plugin file's name.
        target: ``module:Class`` of an installed package, or the class name in a plugin file.
        file: the plugin file's path, or None.
        kind: its kind.
    """

    name: str
    origin: str
    target: str
    file: pathlib.Path | None = None
    kind: PluginKind = METHODS

    def __reduce__(self) -> Any:
        contents = _contents(self.file) if self.file else ()
        return _received, (self.name, self.origin, self.target, self.file, self.kind, contents)

    def load(self) -> type:
        """Import the class.

        Raises:
            UsageError: it cannot be imported; the message ends with the original error.
        """
        try:
            return _load(self)
        except UsageError:
            raise
        except Exception as error:
            command = f"methods {self.name}" if self.kind == METHODS else "plugins"
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UsageError(
                Problem(
                    f"{self.name!r} ({self.origin}) cannot be loaded: {type(error).__name__}: {error}",
                    where=f"{last.filename}:{last.lineno}",
                    hint=f"fix or uninstall the plugin; 'tta-bench {command}' shows the same error",
                )
            ) from error


_Contents = tuple[tuple[str, bytes], ...]  # (path, bytes) of a plugin file, and of the modules beside it


def _contents(file: pathlib.Path) -> _Contents:
    files = [file, *siblings(file).values()]
    return tuple((path.relative_to(file.parent).as_posix(), path.read_bytes()) for path in files)


def _received(
    name: str, origin: str, target: str, file: pathlib.Path | None, kind: PluginKind, contents: _Contents
) -> PluginEntry:
    """Unpickle an entry; plugin files are pickled with it, for machines that lack them."""
    return PluginEntry(name, origin, target, _here(file, contents) if file else None, kind)


def _here(file: pathlib.Path, contents: _Contents) -> pathlib.Path:
    """A plugin file on this machine; unpacked to a temporary folder where it is missing or differs."""
    differs = any(_differs(file.parent / path, content) for path, content in contents)
    return _unpacked(contents) if differs else file


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


class Portable:
    """Base of objects that are pickled and whose class may be in a plugin file: the file is pickled with them."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(2)
        module = type(self).__module__
        if not module.startswith(_PREFIX):
            return reduced
        _, (cls, *arguments), *state = reduced
        file = pathlib.Path(str(sys.modules[module].__file__))
        return (_revived, (file, _contents(file), _attribute(sys.modules[module], cls), arguments), *state)


def _attribute(module: Any, cls: type) -> str:
    """The dotted name by which ``module`` has a class or a plugin's Config, which a function may have made."""
    named = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    named |= {f"{name}.Config": config for name, value in named.items() if (config := getattr(value, "Config", None))}
    return next((name for name, value in named.items() if value is cls), cls.__qualname__)


def _revived(file: pathlib.Path, contents: _Contents, name: str, arguments: list[Any]) -> Any:
    cls = operator.attrgetter(name)(_plugin_module(_here(file, contents)))
    return cls.__new__(cls, *arguments)


def _load(entry: PluginEntry) -> type:
    if entry.file is not None:
        return getattr(_plugin_module(entry.file), entry.target)  # type: ignore[no-any-return]
    import tta_bench.torchvision_repair  # noqa: F401  (the plugin may import timm next)

    module, _, attribute = entry.target.partition(":")
    with _importing(entry.target):
        cls = getattr(importlib.import_module(module), attribute)
    if not isinstance(cls, type):
        raise TypeError(f"{entry.target} is not a class")
    _check_config(entry.kind, cls, entry.origin)
    return cls


@contextlib.contextmanager
def _importing(plugin: str) -> Iterator[None]:
    """Guard the import of a plugin: hide the command line from it, catch SystemExit, print a notice if it is slow.

    Raises:
        ImportError: the plugin raises SystemExit.
    """
    notice = f"{plugin} is still being imported after {SLOW_IMPORT_S} s"
    slow = threading.Timer(SLOW_IMPORT_S, lambda: print(notice, file=sys.stderr, flush=True))
    slow.daemon = True
    arguments, sys.argv = sys.argv, sys.argv[:1]
    slow.start()
    try:
        yield
    except SystemExit as ended:
        raise ImportError(f"importing it exits the program (SystemExit: {ended})") from ended
    finally:
        slow.cancel()
        slow.join()
        sys.argv = arguments


@functools.cache
def _plugin_module(file: pathlib.Path) -> Any:
    """Import a plugin file once in each process, under a unique module name; it may import modules beside it.

    Raises:
        UsageError: the file is missing, is not Python, raises on import, or imports another module than the one beside it.
    """
    import tta_bench.torchvision_repair  # noqa: F401  (the plugin may import timm next)

    if not is_file(file):
        raise UsageError(Problem("no such plugin file", where=str(file)))
    name = f"{_PREFIX}{file_sha256(file)[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(Problem("a plugin must be a Python file with a name ending in .py", where=str(file)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up modules by name
    helpers = siblings(file)
    if helpers and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last, so that no file there shadows an installed package
    try:
        with _importing(str(file)):
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
    _check_siblings(file, helpers)
    return module


def _check_siblings(file: pathlib.Path, helpers: Mapping[str, pathlib.Path]) -> None:
    for name, path in helpers.items():
        imported = getattr(sys.modules.get(name), "__file__", None)
        if imported is not None and pathlib.Path(imported).resolve() != path.resolve():
            message = f"the plugin imports {name!r} and gets {imported}, not the file beside it"
            raise UsageError(Problem(message, where=str(file), hint=f"rename {path.name}"))


def _class_at(path: str) -> type:
    """The class at ``module:Class``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _check_config(kind: PluginKind, cls: type, where: str) -> None:
    """Check that a plugin's Config inherits from its kind's, and that its defaults can be stored.

    Raises:
        UsageError: it does not, or they cannot.
    """
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, _class_at(kind.config))):
        base = kind.config.replace(":", ".")
        message = f"the Config of {kind.noun} {cls.__name__} does not inherit from {base}"
        raise UsageError(Problem(message, where, hint=f"write: class Config({base.rpartition('.')[2]}): …"))
    fields: Mapping[str, Any] = config.model_fields  # type: ignore[attr-defined]
    for name, field in fields.items():
        try:
            json.dumps(
                to_jsonable_python(None if field.is_required() else field.get_default(call_default_factory=True))
            )
        except (PydanticSerializationError, ValueError, TypeError) as error:
            message = (
                f"the default of {name!r} in the Config of {kind.noun} {cls.__name__} is no JSON: {text_of(error)}"
            )
            hint = "a hyperparameter is a number, a text, a bool, None, or a list or mapping of them"
            raise UsageError(Problem(message, where, hint=hint)) from error


@contextlib.contextmanager
def attributed(kind: PluginKind, name: str, cls: type, action: str) -> Iterator[None]:
    """Attribute exceptions of a plugin's code to the plugin.

    Args:
        kind: of the plugin.
        name: its name in the suite.
        cls: the plugin.
        action: completes "cannot …" in the message.

    Raises:
        UsageError: names the plugin, its origin and the line that raised; its own UsageErrors pass unchanged.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        origin = f"file {pathlib.Path(file).name}" if file and cls.__module__.startswith(_PREFIX) else cls.__module__
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((f for f in reversed(frames) if f.filename == file), frames[-1])
        cause = f"{type(error).__name__}: {text_of(error)} ({frame.filename}:{frame.lineno})"
        hint = "fix the plugin; for errors in the suite it should raise UsageError"
        raise UsageError(Problem(f"{kind.noun} {name!r} ({origin}) cannot {action}: {cause}", hint=hint)) from error


def plugin_entries(file: pathlib.Path) -> list[PluginEntry]:
    """The plugins that a file defines: every concrete subclass of a kind's base, under its ``name``.

    Raises:
        UsageError: the file cannot be imported, defines no plugin, or one without ``name`` or ``Config``.
    """
    file = resolved(file)
    module = _plugin_module(file)
    classes = {
        value: name  # a class may have another name than the variable, such as one that wrap() made
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
        and not getattr(value, "__abstractmethods__", None)
    }  # fmt: skip
    plugins = [(kind, cls) for cls in classes for kind in KINDS if issubclass(cls, _class_at(kind.base))]
    if not plugins:
        bases = ", ".join(kind.base.replace(":", ".") for kind in KINDS)
        raise UsageError(Problem("the file defines no plugin", str(file), hint=f"subclass one of {bases}"))
    parents: set[type] = {parent for _, cls in plugins for parent in cls.__mro__[1:]}
    plugins = [(kind, cls) for kind, cls in plugins if getattr(cls, "name", "") or cls not in parents]
    for kind, cls in plugins:
        name: Any = getattr(cls, "name", "")
        example = f"write: name = {cls.__name__.lower()!r}"
        if not name:
            raise UsageError(Problem(f"class {cls.__name__} has no 'name' attribute", str(file), hint=example))
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            message = f"the name of class {cls.__name__}, {name!r}, is not a word of letters, digits, _ . + and -"
            raise UsageError(Problem(message, str(file), hint=example))
        _check_config(kind, cls, str(file))
    return [PluginEntry(cls.name, f"file {file.name}", classes[cls], file, kind) for kind, cls in plugins]  # type: ignore[attr-defined]


class Registry:
    """All registered plugins. Looking up a name is cheap; :meth:`load` imports its class.

    Args:
        plugins: plugin files, in addition to installed plugins.
    """

    def __init__(self, plugins: Iterable[pathlib.Path] = ()):
        self._entries: dict[tuple[str, str], list[PluginEntry]] = {}  # by group and name
        points = metadata.entry_points()
        for kind in KINDS:
            for point in points.select(group=kind.group):
                dist = point.dist
                origin = f"{dist.name} {dist.version}" if dist else "unknown distribution"
                self._add(PluginEntry(point.name, origin, point.value, kind=kind))
        for file in dict.fromkeys(resolved(pathlib.Path(p)) for p in plugins):
            for entry in plugin_entries(file):
                self._add(entry)

    def _add(self, entry: PluginEntry) -> None:
        namesakes = self._entries.setdefault((entry.kind.group, entry.name), [])
        if entry not in namesakes:  # an editable install can list its own entry points twice
            namesakes.append(entry)

    def names(self, kind: PluginKind = METHODS) -> list[str]:
        """All names of a kind, sorted; imports nothing."""
        return sorted(name for group, name in self._entries if group == kind.group)

    def entries(self, kind: PluginKind = METHODS) -> list[PluginEntry]:
        """All entries of a kind, colliding ones included, sorted by name."""
        return [entry for name in self.names(kind) for entry in self._entries[kind.group, name]]

    def entry(self, name: str, kind: PluginKind = METHODS) -> PluginEntry:
        """The entry of a name.

        Raises:
            UsageError: the name is unknown (the hint has the closest), or two plugins have it (the message names both).
        """
        namesakes = self._entries.get((kind.group, name), [])
        if not namesakes:
            raise UsageError(Problem(f"unknown {kind.noun} {name!r}", hint=near_miss(name, self.names(kind))))
        if len(namesakes) > 1:
            both = " and ".join(f"{e.origin} ({e.file or e.target})" for e in namesakes)
            hint = f"uninstall one of them, or rename the {kind.noun} in the plugin file"
            raise UsageError(Problem(f"two plugins have the name {name!r}: {both}", hint=hint))
        return namesakes[0]

    def load(self, name: str, kind: PluginKind = METHODS) -> Any:
        """The class of a name; raises what :meth:`entry` and :meth:`PluginEntry.load` raise."""
        return self.entry(name, kind).load()


@functools.cache
def installed() -> Registry:
    """The installed plugins, without plugin files; read once in each process."""
    return Registry()


def code_sha256(entry: PluginEntry) -> str:
    """SHA-256 of the code that a plugin's results depend on: its import closure, see :mod:`tta_bench.code`.

    Raises:
        UsageError: the plugin cannot be loaded.
    """
    cls = entry.load()
    if entry.file is not None:
        return closure_sha256(plugin_closure(entry.file))
    return closure_sha256(package_closure([entry.target.partition(":")[0], cls.__module__]))


def foreign_code(entry: PluginEntry) -> str:
    """``code_sha256`` of a third-party plugin, which is part of trial keys; empty for one of the harness."""
    own = entry.file is None and entry.target.startswith("tta_bench.")
    return "" if own else code_sha256(entry)
