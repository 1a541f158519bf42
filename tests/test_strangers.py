"""Plugins of all five kinds, each a file of its own in ``strangers``, together in one suite."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import pytest

from tta_bench import load_results, suite
from tta_bench.errors import UsageError
from tta_bench.suite import plan

FILES = ("dataset", "method", "model", "optimizer", "protocol")


@pytest.fixture
def strangers(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the folder."""
    folder = pathlib.Path(__file__).parent / "strangers"
    return pathlib.Path(shutil.copytree(folder, tmp_path / "strangers", ignore=shutil.ignore_patterns("__pycache__")))


def test_each_is_a_file_of_under_40_lines(strangers: pathlib.Path) -> None:
    assert {path.stem for path in strangers.glob("*.py")} == set(FILES)
    assert all(len(path.read_text().splitlines()) < 40 for path in strangers.glob("*.py"))


@pytest.mark.faults
def test_they_run_on_a_worker_into_a_report(strangers: pathlib.Path, run_cli: Callable[..., object], cache: pathlib.Path) -> None:  # fmt: skip
    out = strangers / "out"
    outcome = run_cli("run", strangers / "suite.yaml", "--out", out, "--workers", 1)
    assert outcome.code == 0, outcome.err  # type: ignore[attr-defined]
    rows = load_results(out)
    assert set(rows["status"]) == {"ok"}
    visits = [("clean", 0), ("gaussian_noise-5", 0), ("contrast-5", 0)]
    visits += [(name, 1) for name, _ in reversed(visits)] + [(name, 2) for name, _ in visits]
    for label in ("source", "sharpen"):
        of_label = rows[rows["label"] == label]
        assert list(zip(of_label["shift"], of_label["visit"], strict=True)) == visits
        assert set(of_label["images"]) == {60}
    assert load_results(out, table="segments").groupby("label")["updates"].sum().to_dict() == {
        "source": 0,
        "sharpen": 27,
    }
    assert rows[rows["shift"] == "clean"]["error_pct"].max() == 0, "the filters know their stripes"
    report = run_cli("report", out, "--format", "md")
    assert report.code == 0, report.err  # type: ignore[attr-defined]
    text = (out / "report" / "errors.md").read_text()
    assert "Stripes-C" in text
    assert "rounds 3, batch size 20" in text
    assert "sharpen" in text


def test_a_network_that_ends_its_process_is_a_problem_with_its_place(strangers: pathlib.Path) -> None:
    file = strangers / "model.py"
    file.write_text(
        file.read_text().replace("def build(self)", "def build(self): __import__('os')._exit(7)\n\n    def other(self)")
    )
    with pytest.raises(UsageError) as refused:
        plan.make(suite.load(str(strangers / "suite.yaml")))
    [problem] = refused.value.problems
    assert "the process that builds it exits with code 7" in problem.message
    assert "suite.yaml:" in problem.where


def test_their_code_is_in_the_keys(strangers: pathlib.Path) -> None:
    def keys(folder: pathlib.Path = strangers) -> list[str]:
        return [t.key for t in plan.make(suite.load(str(folder / "suite.yaml"))).trials]

    before = keys()
    for name, stale in (("dataset", [0, 1]), ("model", [0, 1]), ("method", [1]), ("optimizer", [1]), ("protocol", [])):
        file = strangers / f"{name}.py"
        text = file.read_text()
        file.write_text(text + "# edited\n")
        assert [i for i, (old, new) in enumerate(zip(before, keys(), strict=True)) if old != new] == stale, name
        file.write_text(text)
    other = shutil.copytree(strangers, strangers.parent / "other")  # a process imports a file once
    file = other / "protocol.py"
    file.write_text(file.read_text().replace("visit % 2", "(visit + 1) % 2"))
    assert not set(before) & set(keys(other)), "of a protocol it is the stream that counts"


@pytest.mark.parametrize(
    ("old", "new", "where", "said", "hint"),
    [
        ("images: 15", "imags: 15", "3:23", "unknown key 'imags' in data", "images"),
        ("images: 15", "images: x", "3:31", "data.images: Input should be a valid integer", ""),
        ("kind: stripes", "kind: stripe", "3:14", "unknown kind of data 'stripe'", "stripes"),
        ("rounds: 3", "rouns: 3", "6:34", "unknown key 'rouns' in protocol", "rounds"),
        ("rounds: 3", "rounds: 0", "6:42", "protocol.rounds: Input should be greater than or equal to 1", ""),
        ("kind: there_and_back", "kind: there_and_bak", "6:18", "unknown protocol 'there_and_bak'", "there_and_back"),
        ("size: 9", "sise: 9", "4:42", "unknown key 'sise' in models", "size"),
        ("kind: filters", "kind: filter", "4:33", "unknown kind of model 'filter'", "filters"),
        ("optimizer: sign", "optimizer: sing", "5:55", "unknown optimizer 'sing'", "sign"),
    ],
)
def test_bad_values_are_shown_where_they_stand(
    strangers: pathlib.Path, old: str, new: str, where: str, said: str, hint: str
) -> None:
    file = strangers / "suite.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UsageError) as caught:
        plan.make(suite.load(str(file)))
    [problem] = caught.value.problems
    assert said in problem.message
    assert problem.where == f"{file}:{where}"
    assert hint in problem.hint or hint in problem.message


@pytest.mark.parametrize("name", FILES)
def test_a_broken_one_is_named_with_its_line_and_nothing_is_run(
    strangers: pathlib.Path, run_cli: Callable[..., object], name: str
) -> None:
    file = strangers / f"{name}.py"
    file.write_text(f"{file.read_text()}\nraise KeyError('broken')\n")
    outcome = run_cli("run", strangers / "suite.yaml", "--out", strangers / "out")
    assert outcome.code == 2  # type: ignore[attr-defined]
    line = len(file.read_text().splitlines())
    assert f"{file}:{line}: plugin cannot be imported: KeyError: 'broken'" in outcome.err  # type: ignore[attr-defined]
    assert not (strangers / "out").exists()


_RAISES = "        raise KeyError('broken')\n"


@pytest.mark.parametrize(
    ("name", "after", "said"),
    [
        ("protocol", "def parts(self, source: Source) -> Iterator[Part]:\n", "protocol 'there_and_back' (file protocol.py) cannot make its stream"),
        ("dataset", "def __init__(self, config: Config, request: DataRequest):\n", "kind of data 'stripes' (file dataset.py) cannot be opened"),
        ("model", "def build(self) -> nn.Module:\n", "kind of model 'filters' (file model.py) cannot build its network"),
    ],
)  # fmt: skip
def test_one_that_raises_when_it_is_asked_is_named_with_its_line(
    strangers: pathlib.Path, run_cli: Callable[..., object], name: str, after: str, said: str
) -> None:
    file = strangers / f"{name}.py"
    before, found, rest = file.read_text().partition(after)
    assert found
    file.write_text(before + found + _RAISES + rest)
    outcome = run_cli("run", strangers / "suite.yaml", "--out", strangers / "out")
    assert outcome.code == 2, outcome.err  # type: ignore[attr-defined]
    line = len((before + found).splitlines()) + 1
    assert f"{said}: KeyError: 'broken' ({file}:{line})" in outcome.err  # type: ignore[attr-defined]
    assert not (strangers / "out").exists()


@pytest.mark.parametrize(
    ("name", "config", "base"),
    [
        ("protocol", "ProtocolConfig", "tta_bench.protocols.config.ProtocolConfig"),
        ("dataset", "DataConfig", "tta_bench.data.base.DataConfig"),
        ("model", "ModelConfig", "tta_bench.models.ModelConfig"),
        ("method", "OptimizerConfig", "tta_bench.adapter.Config"),
        ("optimizer", "adapter.Config", "tta_bench.adapter.Config"),
    ],
)
def test_a_config_of_another_base_is_refused(
    strangers: pathlib.Path, run_cli: Callable[..., object], name: str, config: str, base: str
) -> None:
    file = strangers / f"{name}.py"
    text = file.read_text()
    assert f"class Config({config}):" in text
    text = text.replace(f"class Config({config}):", "class Config(pydantic.BaseModel):")
    file.write_text(text.replace("\n\n", "\n\nimport pydantic\n", 1))
    outcome = run_cli("run", strangers / "suite.yaml", "--out", strangers / "out")
    assert outcome.code == 2, outcome.err  # type: ignore[attr-defined]
    assert f"does not inherit from {base}" in outcome.err  # type: ignore[attr-defined]
    assert f"{file}: the Config of" in outcome.err  # type: ignore[attr-defined]


@pytest.mark.faults  # takes half a minute
def test_a_method_is_checked_with_an_optimizer_of_another_file(
    strangers: pathlib.Path, run_cli: Callable[..., object]
) -> None:
    options = [word for name in ("method", "optimizer") for word in ("--plugin", strangers / f"{name}.py")]
    outcome = run_cli("check", "sharpen", *options, "--config", "optimizer=sign")
    assert outcome.code == 0, outcome.out  # type: ignore[attr-defined]
    assert "sharpen: 0 of" in outcome.out  # type: ignore[attr-defined]


def test_listing_says_what_there_is_of_each_kind(strangers: pathlib.Path, run_cli: Callable[..., object]) -> None:
    options = [word for name in FILES for word in ("--plugin", strangers / f"{name}.py")]
    listed = run_cli("plugins", *options).out  # type: ignore[attr-defined]
    for name in ("stripes", "filters", "sharpen", "sign", "there_and_back"):
        assert f"{name} " in listed
    for name in ("tent", "sgd", "mixed", "cifar_c", "timm"):
        assert f"{name} " in listed
