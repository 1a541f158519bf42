"""Plugins: found, named, broken, colliding."""

from __future__ import annotations

import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import Outcome, clean_environment

from tta_bench.errors import UsageError
from tta_bench.registry import KINDS, MODELS, Registry, plugin_entries

PLUGIN = """\
from tta_bench.adapter import Adapter

class Mine(Adapter):
    name = "mine"
    def step(self, x):
        return self.predict(x)
"""


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def fake_distribution(root: pathlib.Path, name: str, entry: str, group: str = "tta_bench.methods") -> None:
    """Metadata of an installed package that registers one plugin."""
    info = root / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


def test_listing_names_imports_nothing() -> None:
    code = (
        "import sys; from tta_bench.registry import Registry; names = Registry().names(); "
        "assert {'source', 'norm', 'tent'} <= set(names); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=False).returncode == 0


def test_a_plugin_file_is_loaded_under_its_own_name(plugin: pathlib.Path) -> None:
    registry = Registry(plugins=[plugin])
    assert registry.load("mine").__name__ == "Mine"
    assert registry.entry("mine").origin == "file mine.py"


def test_a_broken_package_breaks_only_the_run_that_asks_for_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Outcome]
) -> None:
    fake_distribution(tmp_path / "site", "tta-absent", "absent = tta_absent:Absent")
    (tmp_path / "site" / "tta_absent.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert Registry().load("tent").__name__ == "Tent"
    with pytest.raises(
        UsageError, match=r"'absent' \(tta-absent 1.2\) cannot be loaded: ModuleNotFoundError.*not_there"
    ):
        Registry().load("absent")
    listed = run_cli("methods")
    assert listed.code == 0
    assert "tta-absent 1.2" in listed.out
    assert "broken" in listed.out
    assert run_cli("methods", "absent").code == 2


@pytest.mark.parametrize(
    ("group", "command"), [("methods", "methods absent"), ("optimizers", "plugins"), ("protocols", "plugins")]
)
def test_the_hint_names_the_command_that_lists_the_kind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, group: str, command: str
) -> None:
    fake_distribution(tmp_path / "site", "tta-absent", "absent = tta_absent:Absent", f"tta_bench.{group}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    kind = next(kind for kind in KINDS if kind.group == f"tta_bench.{group}")
    with pytest.raises(UsageError) as caught:
        Registry().load("absent", kind)
    assert f"'tta-bench {command}' shows the same" in caught.value.problems[0].hint


def test_two_packages_with_one_name_are_an_error_naming_both(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        fake_distribution(tmp_path / "site", name, f"same = {name}:Method")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(UsageError, match=r"two plugins have the name 'same': (one|two) 1.2 .* and (one|two) 1.2"):
        Registry().entry("same")
    assert Registry().load("tent").__name__ == "Tent"


def test_a_plugin_file_cannot_take_a_built_ins_name(plugin: pathlib.Path) -> None:
    plugin.write_text(PLUGIN.replace('"mine"', '"tent"'))
    with pytest.raises(UsageError, match=r"two plugins have the name 'tent': tta-bench .* and file mine.py"):
        Registry(plugins=[plugin]).entry("tent")


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1\n", "defines no plugin"), (PLUGIN.replace('    name = "mine"\n', ""), "class Mine has no 'name'"),
     (PLUGIN.replace('"mine"', "3"), "the name of class Mine, 3, is not a word"),
     (PLUGIN.replace('"mine"', '"../mine"'), "the name of class Mine, '../mine', is not a word"),
     (PLUGIN + "    Config = None\n", "the Config of method Mine does not inherit"),
     (PLUGIN + "    class Config(Adapter.Config):\n        x: object = object()\n", "the default of 'x' in the Config of method Mine is no JSON"),
     ("import not_there\n", "cannot be imported: ModuleNotFoundError"), ("1/0\n", "ZeroDivisionError")],
)  # fmt: skip
def test_bad_plugin_files_say_what_to_mend(tmp_path: pathlib.Path, text: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        plugin_entries(path)
    assert str(path) in str(caught.value)


def test_a_base_class_needs_no_name(plugin: pathlib.Path) -> None:
    base = PLUGIN.replace("class Mine", "class Base").replace('    name = "mine"\n', "")
    plugin.write_text(base + '\nclass Mine(Base):\n    name = "mine"\n\nclass Other(Mine):\n    name = "other"\n')
    assert [entry.name for entry in plugin_entries(plugin)] == ["mine", "other"]


FACTORY = """\
from tta_bench.models import ModelConfig, Network

def made(title):
    class Made(Network):
        name = title
        class Config(ModelConfig):
            kind: str = title
            width: int = 3
        def build(self):
            raise NotImplementedError
        def normalisation(self, net):
            return (0,), (1,)
    return Made

One, Two = made("one"), made("two")
"""


def test_a_class_that_a_function_makes_is_sent_to_other_processes(plugin: pathlib.Path) -> None:
    plugin.write_text(FACTORY)
    registry = Registry(plugins=[plugin])
    for name in ("one", "two"):
        cls = registry.load(name, MODELS)
        network = pickle.loads(pickle.dumps(cls(cls.Config(name="m", width=5))))
        assert (network.name, network.config.width, network.config.kind) == (name, 5, name)


@pytest.mark.parametrize("name", ["a\0b.py", "x" * 5000 + ".py", "nowhere.py"])
def test_a_plugin_file_that_cannot_be_is_no_file(name: str) -> None:
    with pytest.raises(UsageError, match="no such plugin file"):
        Registry(plugins=[pathlib.Path(name)])
