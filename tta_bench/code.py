"""The import closure of a plugin: the files of its own package that its results depend on.

The closure has the plugin's module and, recursively, the modules of the same package that it imports (for a plugin file:
the files beside it). It extends into ``tta_bench.methods``, so that a plugin built on Tent depends on Tent's code. It ends
at the harness, which ``NUMERICS_VERSION`` covers, and at other packages, whose versions are in ``run.json``. Imports are
read from the source, including those inside functions; modules whose names are computed at run time are missed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

HARNESS = "tta_bench"
BUILT_IN = "tta_bench.methods"
_SUFFIXES = importlib.machinery.all_suffixes()  # .py, and those of compiled modules


def file_sha256(path: str | pathlib.Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: pathlib.Path) -> str:
    """SHA-256 over the names and contents of all Python files below ``folder``, in hexadecimal."""
    return closure_sha256({file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")})


def closure_sha256(files: Mapping[str, pathlib.Path]) -> str:
    """SHA-256 over the names and contents of ``files``, in hexadecimal."""
    lines = [f"{name}\0{file_sha256(file)}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_closure(modules: Iterable[str]) -> dict[str, pathlib.Path]:
    """The import closure of installed modules, by module name.

    Args:
        modules: dotted names; a module's package is its top level, or ``tta_bench.methods`` for built-in plugins.
    """
    names = list(modules)
    packages = [BUILT_IN if name.startswith(f"{BUILT_IN}.") else name.partition(".")[0] for name in names]
    return _closure(_with_parents(names), [_installed(package) for package in dict.fromkeys([*packages, BUILT_IN])])


def plugin_closure(file: pathlib.Path) -> dict[str, pathlib.Path]:
    """The import closure of a plugin file, by module name; the file itself under the empty name."""
    files = _closure(_imports(file, ""), [_Scope("", file.parent), _installed(BUILT_IN)])
    return {"": file} | {name: path for name, path in files.items() if path != file}


def siblings(file: pathlib.Path) -> dict[str, pathlib.Path]:
    """The modules beside a plugin file that are in its import closure, by module name; without the file itself."""
    return {name: path for name, path in plugin_closure(file).items() if name and name.partition(".")[0] != HARNESS}


@dataclass(frozen=True)
class _Scope:
    """The modules of one package, or, where ``package`` is empty, those in a folder."""

    package: str
    folder: pathlib.Path

    def file(self, module: str) -> pathlib.Path | None:
        """The file of a module; None where the module is outside this scope."""
        if not self.package and module.partition(".")[0] != HARNESS:
            parts = module.split(".")
        elif self.package and f"{module}.".startswith(f"{self.package}."):
            parts = module.removeprefix(self.package).split(".")[1:]
        else:
            return None
        path = self.folder.joinpath(*parts)
        modules = [path.with_name(f"{path.name}{suffix}") for suffix in _SUFFIXES] if parts else []
        return next((file for file in [path / "__init__.py", *modules] if file.is_file()), None)


def _installed(package: str) -> _Scope:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if folders:
        return _Scope(package, pathlib.Path(folders[0]))
    return _Scope("", pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path())  # one module


def _closure(modules: Iterable[str], scopes: list[_Scope]) -> dict[str, pathlib.Path]:
    closure: dict[str, pathlib.Path] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        file = next((file for scope in scopes if (file := scope.file(module))), None)
        if file is not None and module not in closure:
            closure[module] = file
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            pending += _imports(file, package)
    return closure


def _imports(file: pathlib.Path, package: str) -> Iterator[str]:
    """Names in a file's imports that may be modules."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # not Python: importing it reports the error
        return
    for node in ast.walk(tree):
        yield from _with_parents(_names(node, package))


def _with_parents(modules: Iterable[str]) -> Iterator[str]:
    """Each module with its parent packages: importing ``a.b`` imports ``a``."""
    for module in modules:
        parts = module.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        above = parents[: len(parents) - node.level + 1] if node.level else []
        base = ".".join(filter(None, [*above, node.module]))
        yield from filter(None, [base, *(f"{base}.{alias.name}" for alias in node.names)])
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value
