"""docs/architecture.md against the tree, and the direction of imports."""

from __future__ import annotations

import ast
import pathlib
import re
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
HARNESS = ROOT / "tta_bench"
PACKAGES = sorted(folder.name for folder in HARNESS.iterdir() if (folder / "__init__.py").is_file())
STAGES = ("suite", "run", "store", "schedule", "report", "commands")  # a stage imports none of those after it …
HELPERS = {("suite", "run.server"), ("run", "store.schema")}  # … but for these modules


def parsed(file: pathlib.Path) -> Iterator[str]:
    """The module, or module and name, of each import in a file: in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """(file, module below ``tta_bench``) of each import of the harness in a folder."""
    for file in sorted(folder.rglob("*.py")):
        for module in parsed(file):
            if module.startswith("tta_bench."):
                yield file, module.removeprefix("tta_bench.")


def allowed() -> dict[str, set[str]]:
    """Package to the packages that it may import, from the page's table."""
    rows = re.findall(r"^\| `(?:tta_bench/)?(\w+)/`[^|]*\|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:tta_bench|methods|suites|results|tests)/[\w/.]*)`", PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_package_and_module_is_on_the_page() -> None:
    assert set(allowed()) == {*PACKAGES, "methods", "suites"}
    modules = {file.stem for file in HARNESS.glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in PAGE} == set()
    below = {f.name for package in PACKAGES for f in (HARNESS / package).iterdir() if (f / "__init__.py").is_file()}
    assert {name for name in below if name not in PAGE} == set()


def test_every_kind_of_plugin_is_on_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| [\w ]+ \| `(tta_bench\.\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert {group for group, _ in rows} == set(project["entry-points"])
    for group, cell in rows:
        places = [ROOT / path for path in re.findall(r"`([\w/.]+)`", cell)]
        for target in project["entry-points"][group].values():
            file = ROOT / (target.partition(":")[0].replace(".", "/").replace("tta_bench/methods", "methods") + ".py")
            assert any(file == place or place in file.parents for place in places), f"{file} is in none of {places}"


def test_the_page_is_linked() -> None:
    assert "(docs/architecture.md)" in (ROOT / "README.md").read_text()
    assert "(architecture.md)" in (ROOT / "docs" / "plugins.md").read_text()


# -- imports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [*PACKAGES, "methods"])
def test_a_package_imports_no_more_than_the_page_says(package: str) -> None:
    folder = ROOT / "methods" if package == "methods" else HARNESS / package
    known = {*PACKAGES, "methods"}
    foreign = {(file.name, name) for file, module in imports(folder)
               if (name := module.partition(".")[0]) in known - allowed()[package] - {package}}  # fmt: skip
    assert foreign == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_a_later_one(stage: str) -> None:
    later = STAGES[STAGES.index(stage) + 1 :]
    back = {
        (file.name, module)
        for file, module in imports(HARNESS / stage)
        if module.startswith(tuple(f"{name}." for name in later))
        and (stage, ".".join(module.split(".")[:2])) not in HELPERS
    }
    assert back == set()


def test_modules_beside_the_packages_import_no_stage() -> None:
    drivers = {"cli.py", "__main__.py", "__init__.py"}
    back = {
        (file.name, module)
        for file in HARNESS.glob("*.py") if file.name not in drivers
        for module in parsed(file) if module.startswith(tuple(f"tta_bench.{name}." for name in STAGES))
    }  # fmt: skip
    assert back == {("pretraining.py", "tta_bench.run.loading.to_tensor")}


def test_only_the_command_line_imports_commands() -> None:
    importers = {
        file.name
        for file, module in imports(HARNESS)
        if module.startswith("commands") and file.parent.name != "commands"
    }
    assert importers == {"cli.py"}


def test_no_stage_imports_a_plugin() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"].values()
    plugins = {target.partition(":")[0].removeprefix("tta_bench.") for group in groups for target in group.values()}
    named = {(file.name, module) for stage in STAGES for file, module in imports(HARNESS / stage)
             if module.startswith(tuple(f"{plugin}." for plugin in plugins))}  # fmt: skip
    assert named == set()


def test_only_one_module_imports_ray() -> None:
    importers = {file.relative_to(HARNESS).as_posix() for file in HARNESS.rglob("*.py")
                 for module in parsed(file) if module.partition(".")[0] == "ray"}  # fmt: skip
    assert importers == {"schedule/cluster.py"}
