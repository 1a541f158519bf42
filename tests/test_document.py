"""YAML with positions: YAML 1.2 scalars, duplicate keys, variables."""

from __future__ import annotations

import pytest

from tta_bench.errors import UsageError
from tta_bench.suite.document import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("no", "no"), ("off", "off"), ("10:30", "10:30"), ("007", 7), ("true", True), ("~", None),
     ("'1'", "1"), ("-2.5", -2.5), ("2024-01-01", "2024-01-01")],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse(f"key: {text}", "f").data == {"key": value}


def test_a_duplicate_key_is_placed_and_names_the_first_line() -> None:
    document = parse("a: 1\nb: 2\na: 3\n", "f.yaml")
    [problem] = document.problems
    assert problem.where == "f.yaml:3:1"
    assert "duplicate key 'a'" in problem.message
    assert "line 1" in problem.hint
    assert document.data["a"] == 1


def test_variables_are_expanded_with_defaults_and_typed() -> None:
    environment = {"ROOT": "/data", "EMPTY": ""}
    text = 'root: "${ROOT}/x"\nn: ${N:-5}\nempty: ${EMPTY:-other}\nlost: ${LOST}'
    document = parse(text, "f", environment)
    assert document.data == {"root": "/data/x", "n": 5, "empty": "other", "lost": ""}
    [problem] = document.problems
    assert "LOST is not set" in problem.message
    assert problem.where == "f:4:7"
    assert "^" in problem.source


def test_text_that_is_no_yaml_says_where() -> None:
    with pytest.raises(UsageError, match=r"f:3:\d+: not valid YAML"):
        parse("a: 1\nb: [1, 2\nc: 3", "f")
