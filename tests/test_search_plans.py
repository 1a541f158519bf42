"""A random search for suites, options and arguments that end in anything but a message: whatever is given, a plan or a
UsageError of bounded text comes of it, and the command line ends with a documented exit code.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from conftest import DIGITS_SUITE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tta_bench import cli, suite
from tta_bench.errors import UsageError
from tta_bench.suite import plan
from tta_bench.suite.select import Filter

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 3200  # characters of all problems together: 3,000, and the line that counts the others

HEALTH = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def search(examples: int) -> Callable[[Any], Any]:
    """A reproducible search, which keeps no file beside the tests."""
    return settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=HEALTH)


def _documents() -> list[Any]:
    """Valid suites on the embedded data, with the methods and protocols of the shipped suites and those of papers."""
    small = yaml.safe_load(DIGITS_SUITE)
    found = [small]
    for file in sorted([*(ROOT / "suites").glob("*.yaml"), *(ROOT / "suites" / "papers").glob("*.yaml")]):
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        shifts = {"corruptions": small["corruptions"], "severities": small["severities"]}
        found.append({**document, "data": small["data"], "models": small["models"], **shifts})
    return found


DOCUMENTS = _documents()

NUMBERS = st.sampled_from([0, -1, 1, 2, 7, 1e-300, 1e300, -0.0, 0.5, float("inf"), float("nan"), 2**31, 2**63, 10**400])
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "..", "../x", "/", "~nobody/x", "package:", "package:/x", "package:json/x", "x" * 300,
                     "x" * 5000, "a\nb", "\0", "\x1b[31m", "\u202e", "方法", "e\u0301", "\ud800", "${NOT_SET}", "${X:-}", "pretrain",
                     "measure", "{model}", "all", "true", "1e3", "[tent]"]),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ODD = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


def _mutated(draw: st.DrawFn, document: Any) -> None:
    """Change one place of a document; the numbers that size a network stay, since any size is a network's."""
    places = [path for path in _places(document) if "options" not in path]
    *parents, last = draw(st.sampled_from(places))
    node = document
    for key in parents:
        node = node[key]
    action = draw(st.sampled_from(["replace", "delete", "rename", "insert", "duplicate", "wrap"]))
    if action == "replace":
        node[last] = draw(ODD)
    elif action == "delete":
        del node[last]
    elif action == "wrap":
        for _ in range(draw(st.sampled_from([1, 5, 200]))):
            node[last] = [node[last]]
    elif isinstance(node, dict):
        name = draw(TEXTS if action != "duplicate" else st.sampled_from(sorted(map(str, node))))
        node[name] = draw(ODD) if action == "insert" else copy.deepcopy(node[last])
    else:
        node.insert(draw(st.integers(0, len(node))), draw(ODD) if action == "insert" else copy.deepcopy(node[last]))


YAML = st.sampled_from([
    b"extra: &a [*a]\n", b"extra: &a {b: *a}\n", b"? [a]\n: 1\n", b"extra: !!python/object:os.system [x]\n", b"name: !x y\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e]\n",
    b"\xff\xfe", b"\xc3\x28", b"\0", b"---\n", b"...\n", b"%YAML 9.9\n", b"\t", b"@", b"[" * 3000, b"{a: " * 3000, b"'", b'"\\ud800"',
    b"<<: {seeds: [1]}\n", b"batch_size: " + b"9" * 5000 + b"\n", b"seeds: [0x7f, 0o7, 1_000, .inf]\n", b"\xef\xbb\xbf", b"\r\n", b"# " + b"x" * 2000,
])  # fmt: skip


@st.composite
def suites(draw: st.DrawFn) -> bytes:
    """The bytes of a suite that was valid before it was changed."""
    document = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(1, 3))):
        if _places(document):
            _mutated(draw, document)
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=draw(st.booleans())).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(YAML | st.binary(max_size=4)) + text[at + draw(st.integers(0, 3)) :]
    return text if draw(st.integers(0, 19)) else text.decode("latin-1").encode("utf-16")


def _only_a_usage_error(file: pathlib.Path, sets: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> None:
    text = _refusal(file, sets, only)
    assert len(text) < LONGEST, text
    assert not text or any(place in text for place in (str(file), "--set", "--only", "plugin")), text


def _refusal(file: pathlib.Path, sets: tuple[str, ...], only: tuple[str, ...]) -> str:
    """What the UsageError says; empty where the suite is planned."""
    try:
        chosen = Filter(only)
        chosen.select(plan.make(suite.load(str(file), sets=sets), only=chosen, most=300).trials)
    except UsageError as error:
        return str(error) or "nothing is said"
    return ""


def _suites(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "search.yaml"
    file.write_bytes(text)
    _only_a_usage_error(file)


@search(15)
@given(text=suites())
def test_a_changed_suite_is_planned_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    _suites(tmp_path_factory, text)


@pytest.mark.faults
@search(500)
@given(text=suites())
def test_many_changed_suites_are_planned_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    _suites(tmp_path_factory, text)


PARTS = st.lists(
    st.sampled_from(["methods", "0", "1", "²", "99999999999999999999", "models", "data", "protocol", "seeds", "label", "name",
                     "grid", "config", "lr", "kind", "batch_size", "", "x" * 200]) | st.text(max_size=3), max_size=60)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["[", "[0]", "{a: 1}", "{", "&a [*a]", "!!int 5", ".nan", "9" * 5000, "tent", "[tent, {name: tent}]", "~", '"',
                     "${NOT_SET}", "a: b: c", "[" * 200, "gradual", "{kind: gradual}", "- x", "---", '"\\ud800"']),
)  # fmt: skip
SETS = st.builds(
    lambda parts, equals, value: ".".join(parts) + equals + value, PARTS, st.sampled_from(["=", "=", "=", ""]), VALUES
)
FIELDS = st.sampled_from(
    ["method", "model", "severity", "corruption", "seed", "protocol", "batch_size", "adapt", "nothing", ""]
)
ONLY = st.one_of(
    st.lists(
        st.builds(
            "{}={}".format, FIELDS, st.sampled_from(["tent", "source|tent", "5", "", "|", "clean", "a,b", "x" * 999])
        ),
        max_size=3,
    ).map(",".join),
    st.text(max_size=20),
)


def _pairs(tmp_path_factory: pytest.TempPathFactory, sets: list[str], only: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "pairs.yaml"
    file.write_text(DIGITS_SUITE)
    _only_a_usage_error(file, tuple(sets), tuple(only))


@search(10)
@given(sets=st.lists(SETS, max_size=2), only=st.lists(ONLY, max_size=2))
def test_any_set_and_only_is_planned_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sets: list[str], only: list[str]
) -> None:
    _pairs(tmp_path_factory, sets, only)


@pytest.mark.faults
@search(300)
@given(sets=st.lists(SETS, max_size=2), only=st.lists(ONLY, max_size=2))
def test_many_sets_and_onlys_are_planned_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sets: list[str], only: list[str]
) -> None:
    _pairs(tmp_path_factory, sets, only)


def _options(command: str) -> list[str]:
    found = [name for parameter in cli.cli.commands[command].params for name in parameter.opts if name.startswith("--")]
    return [name for name in found if name not in ("--help", "--dry-run", "--address", "--executor", "--verify")]


ARGUMENTS = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\0"), max_size=8).filter(lambda text: not text.startswith("-")),
    st.sampled_from(["", ".", "..", "nan", "inf", "-1", "0", "0.5", "1.5", "1e400", "9" * 400, "x" * 5000, "tent", "source",
                     "reset", "lr=0.1", "lr=.nan", "lr=[", "lr", "optimizer=no", "method=tent", "seeds=[0]", "off", "/proc/x",
                     "/dev/null", "~nobody/x", "a/b.py", "csv", "csv,nothing"]),
)  # fmt: skip
COMMANDS = ("run", "report", "status", "merge", "check", "protocols", "methods", "plugins")


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command with options and arguments; run only plans, and merge has runs that are none."""
    command = draw(st.sampled_from(COMMANDS))
    words = [command]
    if command == "run":
        words += [draw(st.sampled_from(["{suite}"] * 4) | ARGUMENTS), "--dry-run", "--executor", "local"]
    if command == "merge":
        words += ["--out", draw(ARGUMENTS)]
    for option in draw(st.lists(st.sampled_from(_options(command) or ["--nothing"]), max_size=3)):
        flag = any(option in p.opts and getattr(p, "is_flag", False) for p in cli.cli.commands[command].params)
        words += [option] if flag else [option, draw(ARGUMENTS)]
    return words + draw(st.lists(ARGUMENTS, max_size=2 if command != "run" else 0))


def _commands(tmp_path_factory: pytest.TempPathFactory, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "commands"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    (folder / "suite.yaml").write_text(DIGITS_SUITE)
    arguments = [word.replace("{suite}", "suite.yaml") for word in words]
    monkeypatch.setattr("sys.argv", ["tta-bench", *arguments])
    outcome = CliRunner().invoke(main, [], catch_exceptions=False)
    assert outcome.exit_code in ((0, 2, 3) if arguments[0] == "check" else (0, 2)), (arguments, outcome.output)
    assert "Traceback" not in outcome.output
    assert outcome.exit_code != 2 or len(outcome.output) < 2 * LONGEST, (arguments, outcome.output)


@click.command()
def main() -> None:
    cli.main()


@search(15)
@given(words=commands())
def test_any_options_end_in_a_documented_exit_code(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    _commands(tmp_path_factory, words, monkeypatch)


@pytest.mark.faults
@search(300)
@given(words=commands())
def test_many_options_end_in_documented_exit_codes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    _commands(tmp_path_factory, words, monkeypatch)
