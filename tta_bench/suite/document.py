"""YAML with positions: plain Python data, and the line and column of each value.

PyYAML alone reads ``1e-3`` as text, ``no`` as False, ``10:30`` as 630, and silently keeps the last of two duplicate keys.
Here scalars follow YAML 1.2's core schema, duplicate keys are an error, and ``${VAR}`` and ``${VAR:-default}`` are
expanded. Tags are refused, and so is what is too large, too deep, or neither finite nor of 64 bits.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tta_bench.errors import Problem, UsageError

KeyPath = tuple[str | int, ...]  # mapping keys and list indices, from the top of the document

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip
MAX_BYTES = 1_000_000  # of a file; a parser in Python takes seconds for it
MAX_DEPTH = 40  # of nested values; pydantic's parser goes to about 200
MAX_VALUES = 50_000  # after aliases, each of which is a copy
_MAX_INT = 2**63  # what NumPy and torch take
_MAX_LINE = 160  # characters of a source line in a message

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def scalar(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema; a number out of range is infinite."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 25 and abs(int(text)) < _MAX_INT else math.inf
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses tags, and nesting that would exhaust the stack."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused("tags are not supported: write the value alone, a text in quotes", event)
        if self.depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_text(path: pathlib.Path) -> str:
    """The text of a file of YAML, which is UTF-8 whatever the locale.

    Raises:
        UsageError: it cannot be read, is too large, or is in another encoding.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(Problem(f"cannot be read: {error.strerror}", str(path))) from error
    if len(content) > MAX_BYTES:
        raise UsageError(Problem(f"larger than {MAX_BYTES:,} bytes", str(path), hint="a suite is a short text"))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text: byte 0x{content[error.start]:02x} on line {line}"
        raise UsageError(Problem(message, str(path), hint="save the file as UTF-8")) from error


@dataclass
class Document:
    """A parsed file.

    Attributes:
        name: the file's name in messages.
        lines: its source lines.
        data: plain dicts, lists and scalars.
    """

    name: str
    lines: list[str]
    data: Any = None
    _problems: list[tuple[KeyPath, Problem]] = field(default_factory=list)
    _overrides: dict[KeyPath, str] = field(default_factory=dict)
    _keys: dict[KeyPath, yaml.Node] = field(default_factory=dict)
    _values: dict[KeyPath, yaml.Node] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """Errors found while parsing (duplicate keys, unset variables), except in values that were overridden."""
        return [problem for path, problem in self._problems if self._override(path) is None]

    def override(self, keys: list[str], value: Any, origin: str) -> None:
        """Replace the value at ``keys``; problems with it are then reported at ``origin`` instead of a line.

        Args:
            keys: of mappings, or the index of a mapping in a list.
            value: the new value.
            origin: where it is given.

        Raises:
            UsageError: an ancestor is neither a mapping nor a list of mappings.
        """
        *parents, last = keys
        if len(keys) > MAX_DEPTH:
            raise UsageError(Problem(f"a key of more than {MAX_DEPTH} parts", where=origin))
        node, path = self.data, list[str | int]()
        for parent in parents:
            in_list = isinstance(node, list)
            if in_list and parent not in map(str, range(len(node))):
                raise _not_a_mapping(path[-1], node, origin)
            path.append(int(parent) if in_list else parent)
            node = node[int(parent)] if in_list else node.setdefault(parent, {})
            if not isinstance(node, dict | list):
                raise _not_a_mapping(parent, node, origin)
        if not isinstance(node, dict):
            raise _not_a_mapping(path[-1], node, origin)
        node[last] = value
        self._overrides[*path, last] = origin

    def _override(self, path: KeyPath) -> str | None:
        """The origin of the value at ``path``, or of a value inside it that the file lacks; None: it is in the file."""
        for length in range(len(path), 0, -1):
            if origin := self._overrides.get(path[:length]):
                return origin
        if path in self._values:
            return None
        return next((origin for key, origin in self._overrides.items() if path and key[: len(path)] == path), None)

    def written(self, path: KeyPath) -> str:
        """The scalar at ``path`` as it is written, with its variables; empty where the file has none there."""
        if self._override(path) is not None:
            return ""
        node = self._values.get(path)
        return str(node.value) if isinstance(node, yaml.ScalarNode) else ""

    def problem(self, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at ``path`` (or at its nearest ancestor in the file), with the source line and a caret."""
        if origin := self._override(path):
            return Problem(message, where=origin, hint=hint)
        inside = [origin for key, origin in self._overrides.items() if path and key[: len(path)] == path]
        hint = "; ".join(filter(None, [hint, *(f"{origin} is part of it" for origin in inside)]))
        nodes = self._keys if at_key else self._values
        node = nodes.get(path)
        while node is None and path:
            node = self._keys.get(path) or self._values.get(path)
            path = path[:-1]
        return self._at(node or self._values.get(()), message, hint)

    def _at(self, node: yaml.Node | None, message: str, hint: str) -> Problem:
        if node is None:
            return Problem(message, where=self.name, hint=hint)
        start, end = node.start_mark, node.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        width = end.column - start.column if end.line == start.line else len(line) - start.column
        return Problem(message, f"{self.name}:{start.line + 1}:{start.column + 1}",
                       _source(line, start.line, start.column, width), hint)  # fmt: skip

    # -- reading ---------------------------------------------------------------------------------------------------

    def _convert(self, node: yaml.Node, path: KeyPath, environment: Mapping[str, str]) -> Any:
        self._values[path] = node
        if len(path) > MAX_DEPTH:
            raise UsageError(self._at(node, f"nested deeper than {MAX_DEPTH} levels", "an alias inside what it names?"))
        if len(self._values) > MAX_VALUES:
            raise UsageError(self._at(node, f"more than {MAX_VALUES:,} values", "an alias is a copy of what it names"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, environment)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert(child, (*path, i), environment) for i, child in enumerate(node.value)]
        text = self._expand(node, path, environment)
        if text is None:
            return ""  # the problem is recorded; validation accepts an empty text, so it is reported once
        value = scalar(text) if isinstance(node, yaml.ScalarNode) and node.style is None else text
        if fault := _fault(value):
            self._problems.append((path, self._at(node, *fault)))
            return 1 if isinstance(value, float) else ""
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, environment: Mapping[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or _fault(key_node.value):
                self._problems.append(((*path, ""), self._at(key_node, "a key must be a word", "put text in quotes")))
                continue
            key = str(key_node.value)
            if key in result:
                first = self._keys[(*path, key)].start_mark.line + 1
                problem = self._at(key_node, f"duplicate key {key!r}", f"first given on line {first}")
                self._problems.append(((*path, key), problem))
                continue
            self._keys[(*path, key)] = key_node
            result[key] = self._convert(value_node, (*path, key), environment)
        return result

    def _expand(self, node: yaml.Node, path: KeyPath, environment: Mapping[str, str]) -> str | None:
        """The text of a scalar with its variables expanded; None where one is not set."""
        unset: list[str] = []

        def value(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if environment.get(name):
                return environment[name]
            if default is not None:  # as in a shell, ':-' also replaces an empty variable
                return default
            if name not in environment:
                unset.append(name)
            return ""

        text = VARIABLE.sub(value, node.value)
        for name in unset:
            hint = f"export {name}=…, or write ${{{name}:-default}}"
            self._problems.append((path, self._at(node, f"the variable {name} is not set", hint)))
        return None if unset else text


def _fault(value: Any) -> tuple[str, str] | None:
    """(message, hint) where a suite cannot have the value; None where it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number must be finite, and an integer have at most 64 bits", "write one in range"
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        return "a text with a character that is none (NUL, or half of a surrogate pair)", "leave it out"
    return None


def _source(line: str, number: int, column: int, width: int) -> str:
    """A source line with its number, and carets below columns ``column`` to ``column + width``; a long line in part."""
    if len(line) > _MAX_LINE:
        first = max(0, column - _MAX_LINE // 4)
        line, column = f"… {line[first : first + _MAX_LINE]} …", column - first + 2
    carets = "^" * max(1, min(width, len(line) - column))
    return f"{number + 1:>6} | {line}\n" + " " * 7 + "| " + " " * column + carets


def _not_a_mapping(key: str | int, value: Any, origin: str) -> UsageError:
    entries = len(value) if isinstance(value, list) and any(isinstance(item, dict) for item in value) else 0
    hint = f"it is a list: name an entry by its index, {key}.0 to {key}.{entries - 1}" if entries else ""
    return UsageError(Problem(f"{key!r} is not a mapping", where=origin, hint=hint))


def parse(text: str, name: str, environment: Mapping[str, str] | None = None) -> Document:
    """Parse YAML text.

    Args:
        text: the file's content.
        name: the file's name in messages.
        environment: variables by name; ``os.environ`` by default.

    Raises:
        UsageError: the text is not YAML, or is too deep or too large. Problems that leave the rest readable are in
            ``Document.problems``.
    """
    document = Document(name, text.splitlines())
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        line = document.lines[mark.line] if mark and mark.line < len(document.lines) else ""
        source = _source(line, mark.line, mark.column, 1) if mark and line else ""
        start = error.context_mark
        hint = (
            f"{error.context}, which begins on line {start.line + 1}"
            if start and mark and start.line != mark.line
            else ""
        )
        raise UsageError(Problem(f"not valid YAML: {error.problem}", where, source, hint)) from error
    except yaml.YAMLError as error:
        raise UsageError(Problem(f"not valid YAML: {error}", name)) from error
    if node is not None:
        document.data = document._convert(node, (), os.environ if environment is None else environment)
    return document
