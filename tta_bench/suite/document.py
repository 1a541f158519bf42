"""YAML with positions: plain Python data, and where in the file each piece of it stands.

PyYAML alone reads ``1e-3`` as text, ``no`` as False, ``10:30`` as 630, and keeps the last of two equal keys without a
word. Here scalars follow YAML 1.2's core schema, equal keys are a problem, and ``${VAR}`` and ``${VAR:-default}`` are
expanded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tta_bench.errors import Problem, UsageError

Path = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def scalar(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


@dataclass
class Document:
    """A parsed file.

    Attributes:
        name: how messages call the file.
        lines: its source lines.
        data: plain dicts, lists and scalars.
        problems: what parsing itself found (duplicate keys, unset variables).
    """

    name: str
    lines: list[str]
    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    _keys: dict[Path, yaml.Node] = field(default_factory=dict)
    _values: dict[Path, yaml.Node] = field(default_factory=dict)

    def problem(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at ``path`` (or at its nearest ancestor that is in the file), with the source line and a caret."""
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
        number = f"{start.line + 1:>6} | "
        caret = " " * 7 + "| " + " " * start.column + "^" * max(1, width)
        return Problem(message, f"{self.name}:{start.line + 1}:{start.column + 1}", f"{number}{line}\n{caret}", hint)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _convert(self, node: yaml.Node, path: Path, environment: Mapping[str, str]) -> Any:
        self._values[path] = node
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, environment)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert(child, (*path, i), environment) for i, child in enumerate(node.value)]
        text = self._expand(node, environment)
        if text is None:
            return ""  # already a problem; an empty text gives rise to no second one
        return scalar(text) if isinstance(node, yaml.ScalarNode) and node.style is None else text

    def _mapping(self, node: yaml.MappingNode, path: Path, environment: Mapping[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                first = self._keys[(*path, key)].start_mark.line + 1
                self.problems.append(self._at(key_node, f"duplicate key {key!r}", f"it is already on line {first}"))
                continue
            self._keys[(*path, key)] = key_node
            result[key] = self._convert(value_node, (*path, key), environment)
        return result

    def _expand(self, node: yaml.Node, environment: Mapping[str, str]) -> str | None:
        known = len(self.problems)

        def value(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            # as in a shell, ':-' also stands in for an empty variable
            found = environment.get(name) or (environment.get(name) if default is None else default)
            if found is None:
                hint = f"export {name}=…, or write ${{{name}:-default}}"
                self.problems.append(self._at(node, f"the variable {name} is not set", hint))
                return ""
            return found

        text = _VARIABLE.sub(value, node.value)
        return text if len(self.problems) == known else None


def parse(text: str, name: str, environment: Mapping[str, str] | None = None) -> Document:
    """Parse YAML text.

    Args:
        text: the file's content.
        name: how messages call the file.
        environment: where variables are looked up; ``os.environ`` by default.

    Raises:
        UsageError: the text is not YAML at all. Problems that leave the rest readable are in ``Document.problems``.
    """
    document = Document(name, text.splitlines())
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        source = f"{mark.line + 1:>6} | {document.lines[mark.line]}" if mark and mark.line < len(document.lines) else ""
        begun = error.context_mark
        hint = (
            f"{error.context}, which begins on line {begun.line + 1}"
            if begun and mark and begun.line != mark.line
            else ""
        )
        raise UsageError(Problem(f"not valid YAML: {error.problem}", where, source, hint)) from error
    except yaml.YAMLError as error:
        raise UsageError(Problem(f"not valid YAML: {error}", name)) from error
    if node is not None:
        document.data = document._convert(node, (), os.environ if environment is None else environment)
    return document
