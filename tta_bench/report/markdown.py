"""The tables in markdown."""

from __future__ import annotations

import pathlib

from tta_bench.report.content import Content


def write(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the tables below ``folder``; returns the files."""
    raise NotImplementedError
