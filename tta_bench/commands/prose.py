"""Docstrings on a terminal."""

from __future__ import annotations

import re
import textwrap

from rich.text import Text

_BLOCKS = re.compile(r"\n\s*\n|\n(?=\s*[-*] )")  # between paragraphs, and before each item of a list


def reflowed(docstring: str, width: int, indent: int = 0, hanging: int | None = None) -> Text:
    """A docstring's paragraphs and lists, filled to ``width``.

    Args:
        docstring: its markup for code, double backquotes, becomes single ones.
        width: in columns.
        indent: of every line.
        hanging: indent of each paragraph's later lines, where it is another; a list's are below their item's text.
    """
    lines: list[str] = []
    in_list = False
    for block in _BLOCKS.split(docstring.strip().replace("``", "`")):
        item = block.lstrip().startswith(("- ", "* "))
        if lines and not (in_list and item):
            lines.append("")
        in_list = item
        later = indent + 2 if item else indent if hanging is None else hanging
        lines += textwrap.wrap(
            " ".join(block.split()), width, initial_indent=" " * indent, subsequent_indent=" " * later,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return Text("\n".join(lines))
