"""Sentences with citations, as data; LaTeX, Markdown and the page write the citations in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tta_bench.citations import Citation

Piece = str | tuple[Citation, ...]  # text, or what is cited behind the text before
Passage = Sequence[Piece]
LONGEST_REASON = 300  # characters of a failure's text; tables of data and logs have all of it


def plain(passage: Passage) -> str:
    """The passage with authors and years: ``tent (Wang et al., 2021)``."""
    return "".join(piece if isinstance(piece, str) else _in_brackets(piece) for piece in passage)


def _in_brackets(cited: Sequence[Citation]) -> str:
    return f" ({'; '.join(dict.fromkeys(entry.short for entry in cited))})" if cited else ""


def bounded(text: str, longest: int = LONGEST_REASON) -> str:
    """``text`` in a line; its middle, where it has more than ``longest`` characters, is the number of those left out."""
    line = " ".join(text.split())
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} … ({len(line) - 2 * half:,} characters) … {line[-half:]}"


def listed(values: Iterable[str], word: str = "and") -> str:
    """``a, b and c``."""
    items = list(values)
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
