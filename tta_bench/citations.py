"""BibTeX entries of plugins: what a paper cites for the methods, optimizers, data, protocols and models that it uses.

An entry is in a file ``references.bib``: that of this package for the built-in plugins, the one beside a plugin file, or
those in a package's folder and its parents. Its ``keywords`` name the plugins that it belongs to, and may say of which
kind, and which values a field of their Config has; names and values are shell patterns::

    keywords = {rotta, continual:variant=rotta, protocols/*:adapt=eta*}

No plugin is imported for its citations, and they are part of no trial's key: the files hold no code.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tta_bench.code import HARNESS
from tta_bench.errors import Problem, UsageError
from tta_bench.registry import KINDS, PluginEntry, PluginKind, Registry

FILE = "references.bib"
_USE = re.compile(r"(?:([a-z]+)/)?([^\s:=/]+)(?::([a-z_]+)=(\S(?:.*\S)?))?")
_ENTRY = re.compile(r"@\s*([A-Za-z]+)\s*\{\s*")
_KEY = re.compile(r"([^\s,{}\"#%'()=~\\]+)\s*,")
_NAME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*")
_WORD = re.compile(r"[A-Za-z0-9]+")
_ACCENTED = re.compile(r"\{?\\([\"'`^~=.cvuHk])\s*\{?\\?([A-Za-z])\}?\}?")
_COMBINING = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "=": "\u0304", ".": "\u0307",
              "c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328"}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """A plugin that an entry belongs to.

    Attributes:
        kind: of the plugin, as its entry-point group ends: "methods"; empty: any.
        name: of the plugin; a shell pattern.
        field: of its Config that narrows it; or empty.
        pattern: shell pattern of that field's value.
    """

    kind: str
    name: str
    field: str = ""
    pattern: str = ""

    def names(self, name: str, kind: PluginKind) -> bool:
        """Whether the plugin is meant, with some values of its Config."""
        return self.kind in ("", word_of(kind)) and fnmatch.fnmatchcase(name, self.name)

    def matches(self, name: str, kind: PluginKind, values: Mapping[str, Any]) -> bool:
        """Whether the plugin with these values is meant; of a list, one element is enough."""
        value = values.get(self.field)
        texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        met = not self.field or any(fnmatch.fnmatchcase(str(text), self.pattern) for text in texts)
        return met and self.names(name, kind)


@dataclass(frozen=True)
class Citation:
    """A BibTeX entry.

    Attributes:
        key: what ``\\cite`` names.
        text: as its file has it, without the keywords.
        fields: their values in lower-case names, without the outer braces; without the keywords.
        uses: the plugins that it belongs to.
    """

    key: str
    text: str
    fields: Mapping[str, str] = field(compare=False, repr=False)
    uses: tuple[Use, ...] = field(compare=False, repr=False)

    @property
    def short(self) -> str:
        """``Wang et al., 2021``; the key where the entry lacks an author or a year."""
        names = [_surname(author) for author in _authors(self.fields.get("author", ""))]
        if not names or "year" not in self.fields:
            return self.key
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{who}, {self.fields['year']}"

    def narrowed(self, name: str, kind: PluginKind) -> str:
        """The values of a plugin's Config that it belongs to: ``variant=md or variant=ttab``; empty: all."""
        uses = [use for use in self.uses if use.names(name, kind)]
        return " or ".join(f"{use.field}={use.pattern}" for use in uses) if all(use.field for use in uses) else ""


def word_of(kind: PluginKind) -> str:
    """What keywords call a kind: "methods", "optimizers", "protocols", "datasets" or "models"."""
    return kind.group.rpartition(".")[2]


def plain(text: str) -> str:
    """A field's text without LaTeX's accents and braces."""
    accented = _ACCENTED.sub(lambda m: unicodedata.normalize("NFC", m[2] + _COMBINING[m[1]]), text)
    return " ".join(accented.replace("~", " ").replace("{", "").replace("}", "").split())


def _authors(text: str) -> list[str]:
    """The authors, which ``and`` separates outside braces."""
    authors, depth = [""], 0
    for word in text.split():
        if word == "and" and depth == 0:
            authors.append("")
        else:
            authors[-1] = f"{authors[-1]} {word}".strip()
        depth += word.count("{") - word.count("}")
    return [author for author in authors if author]


def _surname(author: str) -> str:
    if author.startswith("{") and author.endswith("}"):
        return plain(author)  # a group's name
    family, comma, _ = plain(author).partition(",")
    words = family.split()
    if comma:
        return family
    first = next((i for i, word in enumerate(words[:-1]) if word[0].islower()), len(words) - 1)
    return " ".join(words[first:])  # Van der Name


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> list[Citation]:
    """The entries of a file.

    Raises:
        UsageError: it cannot be read, or has more of BibTeX than entries in braces, each with a key of its own and
            ``keywords``: ``@string``, ``@preamble``, ``@comment`` or ``#``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(f"the references cannot be read: {error}", str(path))) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> list[Citation]:
    """The entries in ``text``; ``name`` is the file's in messages.

    Raises:
        UsageError: see :func:`read`.
    """
    entries: dict[str, Citation] = {}
    position = text.find("@")
    while position >= 0:
        entry, end = _Reader(text, name, position).entry()
        if entry.key in entries:
            raise _wrong(text, name, position, f"the key {entry.key} is there twice")
        entries[entry.key] = entry
        position = text.find("@", end)
    return list(entries.values())


def _wrong(text: str, name: str, position: int, message: str) -> UsageError:
    where = f"{name}:{text.count(chr(10), 0, position) + 1}"
    hint = "an entry is @type{key, name = {value}, …, keywords = {plugin, plugin:field=pattern}}"
    return UsageError(Problem(message, where, hint=hint))


class _Reader:
    """Reads one entry that begins at ``start``."""

    def __init__(self, text: str, name: str, start: int):
        self.text, self.name, self.start = text, name, start

    def error(self, message: str, position: int | None = None) -> UsageError:
        return _wrong(self.text, self.name, self.start if position is None else position, message)

    def entry(self) -> tuple[Citation, int]:
        """The entry, and the position after it."""
        opened = _ENTRY.match(self.text, self.start)
        if not opened or opened[1].lower() in ("string", "preamble", "comment"):
            raise self.error("an @ that begins no entry in braces")
        named = _KEY.match(self.text, opened.end())
        if not named:
            raise self.error("an entry without a key")
        fields, cut, position = dict[str, str](), (0, 0), named.end()
        while not self.text[position:].lstrip().startswith("}"):
            begin = position
            field_name, value, position = self.field(begin, named[1])
            if field_name in fields:
                raise self.error(f"{named[1]} has the field {field_name} twice", begin)
            fields[field_name] = value
            cut = (begin, position) if field_name == "keywords" else cut
        end = self.text.index("}", position) + 1
        if not fields.get("keywords", "").strip():
            raise self.error(f"{named[1]} has no keywords: it belongs to no plugin")
        uses = tuple(self.use(word, named[1]) for word in fields.pop("keywords").split(",") if word.strip())
        kept = self.text[self.start : cut[0]] + self.text[cut[1] : end]
        return Citation(named[1], kept.strip(), fields, uses), end

    def use(self, word: str, key: str) -> Use:
        found = _USE.fullmatch(word.strip())
        if not found or found[1] not in (None, *map(word_of, KINDS)):
            raise self.error(f"{key} has the keyword {word.strip()!r}, which names no plugin")
        return Use(found[1] or "", found[2], found[3] or "", found[4] or "")

    def field(self, position: int, key: str) -> tuple[str, str, int]:
        """(name in lower case, value without its delimiters, the position after the comma)."""
        found = _NAME.match(self.text, position)
        if not found:
            raise self.error(f"{key} is not closed, or has a field without a value", position)
        value, end = self.value(found.end(), key)
        rest = re.compile(r"[ \t]*(,?)").match(self.text, end)
        after = rest.end() if rest and rest[1] else end
        if not (rest and rest[1]) and not self.text[end:].lstrip().startswith("}"):
            raise self.error(f"{key} has no comma or brace after the field {found[1]}", found.start(1))
        return found[1].lower(), value, after

    def value(self, position: int, key: str) -> tuple[str, int]:
        opening = self.text[position : position + 1]
        if opening not in ('"', "{"):
            word = _WORD.match(self.text, position)
            if not word:
                raise self.error(f"{key} has a field without a value", position)
            return word[0], word.end()
        depth = 0
        for place in range(position, len(self.text)):
            character = self.text[place]
            depth += (character == "{") - (character == "}")
            closes = depth == 0 and (character == "}" if opening == "{" else character == '"' and place > position)
            if closes:
                return self.text[position + 1 : place], place + 1
        raise self.error(f"{key} has a value that is not closed", position)


# -- the entries of plugins --------------------------------------------------------------------------------------------


class Library:
    """The entries of registered plugins, and of plugin files that need not be registered.

    Args:
        registry: the plugins.
        files: plugin files; beside each there may be references.

    Attributes:
        problems: with files that cannot be read, one each; their entries are missing.
    """

    def __init__(self, registry: Registry, files: Iterable[pathlib.Path] = ()):
        self.problems: list[Problem] = []
        self.registry = registry
        self._beside = list(dict.fromkeys(file.parent / FILE for file in files))
        self._read: dict[pathlib.Path, list[Citation]] = {}

    def of(self, name: str, values: Mapping[str, Any], kind: PluginKind) -> list[Citation]:
        """The entries of a plugin with these values of its Config, in the order of their file."""
        return [entry for entry in self._entries(name, kind) if any(u.matches(name, kind, values) for u in entry.uses)]

    def nearest(self, name: str, values: Mapping[str, Any], kind: PluginKind) -> list[Citation]:
        """Of these, the ones that a field chose; where it chose none, all. They stand beside the plugin's name."""
        entries = self.of(name, values, kind)
        chosen = [e for e in entries if any(u.field and u.matches(name, kind, values) for u in e.uses)]
        return chosen or entries

    def named(self, name: str, kind: PluginKind) -> list[Citation]:
        """The entries of a plugin with whatever values."""
        return [e for e in self._entries(name, kind) if any(u.names(name, kind) for u in e.uses)]

    def _entries(self, name: str, kind: PluginKind) -> Iterator[Citation]:
        registered = [entry for entry in self.registry.entries(kind) if entry.name == name]
        places = [file for entry in registered for file in places_of(entry)] if registered else self._beside
        for file in dict.fromkeys(places):
            yield from self._of_file(file)

    def _of_file(self, file: pathlib.Path) -> list[Citation]:
        if file not in self._read:
            try:
                self._read[file] = read(file) if file.is_file() else []
            except UsageError as error:
                self._read[file] = []
                self.problems += error.problems
        return self._read[file]


def places_of(entry: PluginEntry) -> list[pathlib.Path]:
    """Where a plugin's entries may be; a distribution of a single module has no folder of its own, so no place."""
    if entry.file is not None:
        return [entry.file.parent / FILE]
    top, *inner = entry.target.partition(":")[0].split(".")
    if top == HARNESS:
        inner = []  # one file for all kinds: many a paper is both a method and a protocol
    spec = importlib.util.find_spec(top)  # of a top-level package: nothing is imported
    folders = [pathlib.Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    below = [folder.joinpath(*inner[:depth]) for depth in range(len(inner), -1, -1) for folder in folders]
    return [folder / FILE for folder in below if folder.is_dir()]
