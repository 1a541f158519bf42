"""What ``tta-bench protocols`` prints, and docs/protocols.md."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Callable

import pytest
import yaml
from conftest import Outcome, item

from tta_bench import load_results
from tta_bench.protocols import Protocol, ProtocolConfig
from tta_bench.registry import PROTOCOLS, installed
from tta_bench.suite import parts

Shown = Callable[..., str]
Cli = Callable[..., Outcome]

NAMES = installed().names(PROTOCOLS)
COMMON = set(ProtocolConfig.model_fields) - {"kind", "variant"}


def loaded(name: str) -> type[Protocol]:
    return installed().load(name, PROTOCOLS)  # type: ignore[no-any-return]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_list_has_every_kind_with_its_variants(shown: Shown) -> None:
    rows = {line.split()[0]: line for line in shown("protocols", columns=120).splitlines() if line[0] != " "}
    assert set(rows) == {"protocol", *NAMES}
    assert "md, rotta, tribe, ttab  One shift after another" in rows["continual"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_every_screen_fits_its_width_and_describes_everything(shown: Shown, name: str, columns: int) -> None:
    output = shown("protocols", name, columns=columns)
    assert all(len(line) <= columns for line in output.splitlines())
    assert "``" not in output
    lines = re.search(r"\n(?:Variants|Parameters)\n(.*)\nIn a suite\n", output, re.DOTALL)
    assert lines is not None
    listed = lines[1].splitlines()
    for head, below in zip(listed, [*listed[1:], ""], strict=True):
        assert not re.match(r"  \S", head) or below.startswith("      "), f"{head!r} has no description below it"
    for variant in loaded(name).Config.variants:
        assert f"\n  {variant}\n" in output
    for field in set(loaded(name).Config.model_fields) - COMMON - {"kind", "variant"}:
        assert f"\n  {field}: " in output


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_valid(shown: Shown, name: str) -> None:
    listed = shown("protocols", name).partition("\nIn a suite\n")[2]
    values = [yaml.safe_load(example) for example in listed.split("  protocol: ")[1:]]
    assert values
    for value in values:
        assert parts.read(PROTOCOLS, value, installed()).kind == name


def test_only_the_common_keys_that_a_kind_takes_are_shown(shown: Shown) -> None:
    def keys(name: str) -> set[str]:
        common = shown("protocols", name).partition("\nCommon keys\n")[2]
        return set(re.findall(r"^  (\w+): ", common.partition("\nIn a suite\n")[0], re.MULTILINE))

    assert keys("reset") == COMMON
    assert keys("ccc") == COMMON - {"probe", "shift_order"}
    assert keys("in_out") == keys("markov") == COMMON - {"shift_order"}
    assert keys("file") == set()


def test_a_parameter_has_type_bounds_default_and_description(shown: Shown) -> None:
    continual, ccc = shown("protocols", "continual"), shown("protocols", "ccc")
    assert item(continual, "delta:").startswith("delta: float ≥ 0 | null, or a list, default null Dirichlet")
    assert item(continual, "class_ratio:").startswith(
        "class_ratio: constant | random, default constant of variant tribe"
    )
    assert item(continual, "adapt.every:").startswith("adapt.every: int ≥ 1 | null, default null a batch adapts when")
    assert item(continual, "reset:").startswith("reset: never | segment | batch | mapping | null, default null when")
    assert item(ccc, "speed:").startswith("speed: int ≥ 1, or a list, required images in a step")
    assert "default 1.0" in item(shown("protocols", "random_runs"), "delta:")
    assert "reset, by default  before each segment" in shown("protocols", "label_shift")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("rotta", "hint: here it is {kind: continual, variant: rotta, delta: 0.1}; known: ccc, "),
        ("Mixed Domains", "hint: here it is kind mixed; "),
        ("contnual", "hint: did you mean 'continual'? known: "),
    ],
)
def test_an_unknown_name_gets_a_hint_in_the_fields_words(run_cli: Cli, word: str, hint: str) -> None:
    outcome = run_cli("protocols", word)
    assert outcome.code == 2
    assert f"unknown protocol {word!r}\n  {hint}" in outcome.err


def test_a_strangers_protocol_is_shown_with_an_example(shown: Shown) -> None:
    pathlib.Path("mine.py").write_text(
        '"""Mine [bold]."""\nfrom tta_bench.protocols import Protocol, ProtocolConfig\n\n'
        'class Mine(Protocol):\n    """Ours."""\n    name = "mine"\n\n    class Config(ProtocolConfig):\n'
        '        """Attributes: pace: of it."""\n        variants = ("quick",)\n        pace: int\n\n'
        "    def parts(self, source):\n        yield source.shuffled('all', 0, [0])\n"
    )
    output = shown("protocols", "mine", "--plugin", "mine.py")
    assert "\nMine [bold].\n" in output
    assert item(output, "pace:") == "pace: int, required of it."
    assert "\n  quick\n" in output
    assert output.endswith("\n  protocol: {kind: mine, pace: …}\n")
    listed = shown("protocols", "--plugin", "mine.py", columns=120)
    assert re.search(r"^mine +file mine.py +quick +Ours\.", listed, re.MULTILINE)


# -- docs/protocols.md -------------------------------------------------------------------------------------------------

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "protocols.md").read_text()
LINES = re.findall(r"`(\{kind: .*?\})`", PAGE)


def test_every_kind_and_variant_is_on_the_page() -> None:
    given = [yaml.safe_load(line) for line in LINES]
    pairs = {(one["kind"], one.get("variant")) for one in given}
    assert {kind for kind, _ in pairs} == set(NAMES)
    variants = {(name, variant) for name in NAMES for variant in loaded(name).Config.variants}
    assert variants - pairs == set()
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == COMMON - {"adapt_images"} | {
        "variant", "delta"
    }  # fmt: skip


@pytest.mark.parametrize("line", dict.fromkeys(LINES))
def test_every_line_of_the_page_is_a_protocol(line: str) -> None:
    parts.read(PROTOCOLS, yaml.safe_load(line), installed())


def test_the_page_is_linked() -> None:
    assert "(docs/protocols.md)" in (ROOT / "README.md").read_text()
    assert "(protocols.md)" in (ROOT / "docs" / "plugins.md").read_text()


@pytest.mark.faults  # takes half a minute
def test_the_pages_protocol_runs_as_it_stands(run_cli: Cli, shown: Shown) -> None:
    [code] = re.findall(r"```python\n(# my_protocol\.py\n.*?)```", PAGE, re.DOTALL)
    assert len(code.splitlines()) < 25
    pathlib.Path("my_protocol.py").write_text(code)
    [command] = re.findall(r"^tta-bench (run .*my_protocol\.py.*)$", PAGE, re.MULTILINE)
    smaller = ["--limit", 150, "--only", "method=norm,model=resnet_bn", "--executor", "local", "--out", "out"]
    outcome = run_cli(*shlex.split(command), *smaller)
    assert outcome.code == 0, outcome.err
    rows = load_results("out").query("status == 'ok'")
    shifts = list(dict.fromkeys(rows["shift"]))
    assert len(shifts) == 7
    assert list(zip(rows["shift"], rows["visit"], rows["images"], strict=True)) == [
        *((shift, 0, 100) for shift in shifts), *((shift, 1, 50) for shift in shifts),
    ]  # fmt: skip
    assert "protocol: {kind: interleaved}" in shown("protocols", "interleaved", "--plugin", "my_protocol.py")
