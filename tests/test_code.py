"""The import closure of a plugin: which edits make its results stale, and which do not."""

from __future__ import annotations

import hashlib
import pathlib
import pickle
import subprocess
import sys
import textwrap

import pytest
from conftest import clean_environment

from tta_bench.code import package_closure, plugin_closure
from tta_bench.errors import UsageError
from tta_bench.registry import Registry, code_sha256

PLUGIN = """\
import {helper}
from tta_bench.adapter import Adapter
from tta_bench.methods.tent import Tent

class Mine(Adapter):
    name = "{name}"

    def step(self, x):
        from {helper}_late import scale
        return scale * self.predict(x)
"""


def write_plugin(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A plugin file that imports a module beside it, which imports another, and a third inside a function."""
    helper = f"{name}_helper"
    (folder / f"{name}.py").write_text(PLUGIN.format(name=name, helper=helper))
    (folder / f"{helper}.py").write_text(f"import {name}_deep\n")
    (folder / f"{name}_deep.py").write_text("DEPTH = 2\n")
    (folder / f"{helper}_late.py").write_text("scale = 1\n")
    (folder / "unrelated.py").write_text("1 / 0\n")
    return folder / f"{name}.py"


def test_a_built_in_methods_closure_is_what_it_imports_of_the_methods() -> None:
    names = ("", ".eata", ".eta", ".functional", ".norm_layers", ".transfer")
    assert set(package_closure(["tta_bench.methods.eata"])) == {f"tta_bench.methods{name}" for name in names}
    assert set(package_closure(["tta_bench.methods.source"])) == {"tta_bench.methods", "tta_bench.methods.source"}
    assert "tta_bench.methods.tent" not in package_closure(["tta_bench.methods.sar"])


def test_a_plugin_files_closure_goes_on_beside_it_and_into_the_methods_and_stops_at_the_harness(
    tmp_path: pathlib.Path,
) -> None:
    found = plugin_closure(write_plugin(tmp_path, "first"))
    assert set(found) == {
        "", "first_helper", "first_deep", "first_helper_late", "tta_bench.methods", "tta_bench.methods.tent",
        "tta_bench.methods.functional", "tta_bench.methods.norm_layers", "tta_bench.methods.transfer",
    }  # fmt: skip


def test_relative_imports_packages_and_import_module_are_followed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "closure_example/__init__.py": "from .core import run",
        "closure_example/core.py": "from ..closure_example import sub\nfrom . import tools\nimport numpy",
        "closure_example/tools.py": "import importlib\nlate = lambda: importlib.import_module('closure_example.sub.late')",
        "closure_example/sub/__init__.py": "",
        "closure_example/sub/late.py": "",
        "closure_example/sub/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = package_closure(["closure_example"])
    assert set(found) == {"closure_example", *(f"closure_example.{m}" for m in ("core", "tools", "sub", "sub.late"))}


def test_the_digest_is_over_names_and_contents(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "second.py"
    file.write_text("from tta_bench.adapter import Adapter\nclass A(Adapter):\n    name = 'second'\n"
                    "    def step(self, x):\n        return self.predict(x)\n")  # fmt: skip
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = Registry(plugins=[file]).entry("second")
    expected = hashlib.sha256(f"\0{own}\n".encode()).hexdigest()
    assert code_sha256(entry) == expected
    assert code_sha256(Registry(plugins=[file.rename(tmp_path / "third.py")]).entry("second")) == expected


def test_an_edit_of_an_imported_file_changes_the_digest_and_one_of_any_other_does_not(tmp_path: pathlib.Path) -> None:
    entry = Registry(plugins=[write_plugin(tmp_path, "fourth")]).entry("fourth")
    before = code_sha256(entry)
    (tmp_path / "unrelated.py").write_text("2 / 0\n")
    assert code_sha256(entry) == before
    for name in ("fourth_helper", "fourth_deep", "fourth_helper_late"):
        file = tmp_path / f"{name}.py"
        text = file.read_text()
        file.write_text(text + "# edited\n")
        assert code_sha256(entry) != before, name
        file.write_text(text)
    assert code_sha256(entry) == before


def test_the_modules_beside_a_plugin_file_travel_with_it(tmp_path: pathlib.Path) -> None:
    """To a machine that does not have them."""
    there = tmp_path / "there"
    there.mkdir()
    entry = Registry(plugins=[write_plugin(there, "fifth")]).entry("fifth")
    sent = tmp_path / "entry.pickle"
    sent.write_bytes(pickle.dumps(entry))
    for file in there.iterdir():
        file.unlink()
    code = f"""
        import pathlib, pickle
        cls = pickle.loads(pathlib.Path({str(sent)!r}).read_bytes()).load()
        import fifth_helper_late
        print(cls.name, fifth_helper_late.scale)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=clean_environment(), capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout == "fifth 1\n", done.stderr


def test_a_plugin_that_gets_another_module_than_the_one_beside_it_is_refused(tmp_path: pathlib.Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_helper.py").write_text(f"WHERE = {folder!r}\n")
        (tmp_path / folder / f"plugin_{folder}.py").write_text(
            "import same_helper\nfrom tta_bench.adapter import Adapter\nclass P(Adapter):\n"
            f"    name = 'of-{folder}'\n    def step(self, x):\n        return self.predict(x)\n"
        )
    Registry(plugins=[tmp_path / "a" / "plugin_a.py"])
    with pytest.raises(UsageError, match="imports 'same_helper' and gets .*a/same_helper.py, not the file beside it"):
        Registry(plugins=[tmp_path / "b" / "plugin_b.py"])
