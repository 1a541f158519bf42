"""The import closure of a plugin: the files of its own package that its numbers depend on.

The closure holds the plugin's module, what that imports of its own package (for a plugin file: of the files beside it),
what those import, and so on. It goes on into ``tta_bench.methods``, so that a plugin built on Tent follows Tent's code. It
stops at the harness, which ``NUMERICS_VERSION`` stands for, and at other packages, whose versions are in ``run.json``.
Imports are read from the source text, also those inside functions; a module named only at run time is not seen.
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
        modules: dotted names; the package of each is its top level, or ``tta_bench.methods`` for the built-in plugins.
    """
    names = list(modules)
    packages = [BUILT_IN if name.startswith(f"{BUILT_IN}.") else name.partition(".")[0] for name in names]
    return _closure(_with_parents(names), [_installed(package) for package in dict.fromkeys([*packages, BUILT_IN])])


def plugin_closure(file: pathlib.Path) -> dict[str, pathlib.Path]:
    """The import closure of a plugin file, by module name; the file itself under the empty name."""
    found = _closure(_imports(file, ""), [_Scope("", file.parent), _installed(BUILT_IN)])
    return {"": file} | {name: path for name, path in found.items() if path != file}


def siblings(file: pathlib.Path) -> dict[str, pathlib.Path]:
    """Of a plugin file's import closure, the modules that lie beside it, by module name; without the file itself."""
    return {name: path for name, path in plugin_closure(file).items() if name and name.partition(".")[0] != HARNESS}


@dataclass(frozen=True)
class _Scope:
    """Modules that count: those of one package, or, where that is empty, those that lie in a folder."""

    package: str
    folder: pathlib.Path

    def file(self, module: str) -> pathlib.Path | None:
        """The file of a module, or None where it is none of this scope's."""
        if not self.package and module.partition(".")[0] != HARNESS:
            parts = module.split(".")
        elif self.package and f"{module}.".startswith(f"{self.package}."):
            parts = module.removeprefix(self.package).split(".")[1:]
        else:
            return None
        path = self.folder.joinpath(*parts)
        modules = [path.with_name(f"{path.name}{suffix}") for suffix in _SUFFIXES] if parts else []
        return next((place for place in [path / "__init__.py", *modules] if place.is_file()), None)


def _installed(package: str) -> _Scope:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if folders:
        return _Scope(package, pathlib.Path(folders[0]))
    return _Scope("", pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path())  # one module


def _closure(modules: Iterable[str], scopes: list[_Scope]) -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = next((file for scope in scopes if (file := scope.file(module))), None)
        if file is not None and module not in found:
            found[module] = file
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            waiting += _imports(file, package)
    return found


def _imports(file: pathlib.Path, package: str) -> Iterator[str]:
    """Names that may be modules, of every import in a file."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a file that is not Python imports nothing; who runs it is told why
        return
    for node in ast.walk(tree):
        yield from _with_parents(_names(node, package))


def _with_parents(modules: Iterable[str]) -> Iterator[str]:
    """Importing ``a.b`` imports ``a``, too."""
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
