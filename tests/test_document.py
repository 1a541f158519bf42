"""YAML with positions: YAML 1.2 scalars, duplicate keys, variables."""

from __future__ import annotations

import pathlib

import pytest

from tta_bench.errors import Problem, UsageError
from tta_bench.suite.document import parse, read_text


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


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{k}: &{k} [{','.join([f'*{before}'] * 10)}]\n" for before, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [("key: &a [*a]", "nested deeper than 40 levels", "f:1:6"),
     ("key: " + "[" * 5000, "nested deeper than 40 levels", "f:1:46"),
     ("".join(f"k{i}: &k{i} [*k{i - 1}]\n" if i else "k0: &k0 [x]\n" for i in range(60)), "nested deeper than 40 levels", "f:1:10"),
     (BOMB, "more than 50,000 values", "f:1:24"),
     ("key: !!python/object:os.system [x]", "tags are not supported", "f:1:6"), ("key: !word 5", "tags are not supported", "f:1:6")],
)  # fmt: skip
def test_what_would_exhaust_memory_or_stack_is_refused_at_its_place(text: str, message: str, where: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(text, "f")
    [problem] = caught.value.problems
    assert problem.where == where
    assert len(str(problem)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [("9" * 5000, "a number must be finite"), (str(2**63), "a number must be finite"), ("1e400", "a number must be finite"),
     (".nan", "a number must be finite"), ("-.inf", "a number must be finite"), ('"a\\0"', "NUL"), ('"\\ud800"', "surrogate")],
)  # fmt: skip
def test_a_value_that_no_suite_can_have_is_a_problem_and_the_rest_is_read(text: str, message: str) -> None:
    document = parse(f"key: {text}\nother: 5", "f")
    [problem] = document.problems
    assert message in problem.message
    assert problem.where == "f:1:6"
    assert document.data["other"] == 5


def test_the_largest_numbers_are_read_exactly() -> None:
    assert parse(f"[{2**63 - 1}, -{2**63 - 1}, 1e308]", "f").data == [2**63 - 1, -(2**63) + 1, 1e308]


def test_a_long_line_is_shown_around_its_fault() -> None:
    document = parse("{" + "k: 1, " + ", ".join(f"key{i}: {i}" for i in range(2000)) + ", k: 2}", "f")
    [problem] = document.problems
    line, carets = problem.source.splitlines()
    assert len(line) < 200
    start = carets.index("^")
    assert line[start : start + carets.count("^")] == "k"


@pytest.mark.parametrize(
    ("encoding", "message"), [("utf-16", "byte 0xff on line 1"), ("latin-1", "byte 0xfc on line 2")]
)
def test_another_encoding_than_utf_8_is_named_with_its_line(
    tmp_path: pathlib.Path, encoding: str, message: str
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("name: a\n# gr\xfc\xdfe\n", encoding=encoding)
    with pytest.raises(UsageError, match=message) as caught:
        read_text(path)
    assert caught.value.problems[0].where == str(path)
    assert caught.value.problems[0].hint == "save the file as UTF-8"


def test_many_problems_and_long_ones_have_a_short_text() -> None:
    long = Problem("x" * 10_000 + "end", "f:1:1", hint="\x1b[31m red")
    assert len(str(long)) < 1200
    assert "end: " not in str(long)
    assert str(long).endswith("hint: \\x1b[31m red")
    text = str(UsageError([Problem(f"problem {i}", "f") for i in range(5000)]))
    assert len(text) < 3200
    assert text.startswith("f: problem 0\n")
    assert text.splitlines()[-1] == f"… and {5000 - len(text.splitlines()) + 1} more"
