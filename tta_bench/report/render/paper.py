"""What a paper takes besides the tables: ``references.bib``, and the setting in words with citations, ``setting.tex``."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from tta_bench.files import write_text
from tta_bench.report.citing import Cited
from tta_bench.report.content import Content
from tta_bench.report.render.latex import citation, escape


def write(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write ``references.bib`` and ``setting.tex`` to ``folder``; returns the files."""
    texts = {"references.bib": bibliography(content.cited), "setting.tex": setting(content)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def bibliography(cited: Cited) -> str:
    """The BibTeX file; what has no entry is named at its head, where BibTeX reads nothing."""
    return "\n\n".join([*_head(cited), *(entry.text for entry in cited.entries)]) + "\n"


def _head(cited: Cited) -> Iterator[str]:
    yield "Made by tta-bench report: data, source models, protocols, methods and optimizers of its tables."
    if cited.without:
        yield f"Without an entry: {', '.join(cited.without)}.".replace("@", "(at)")


def setting(content: Content) -> str:
    """The paragraph in LaTeX, to be ``\\input``."""
    pieces = [escape(p) if isinstance(p, str) else citation(entry.key for entry in p) for p in content.setting]
    warning = rf"\textbf{{{escape(content.warning)}.}} " if content.warning else ""
    return f"% Made by tta-bench report. Cites references.bib.\n{warning}{''.join(pieces)}\n"
