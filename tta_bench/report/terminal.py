"""What a person sees on the terminal."""

from __future__ import annotations

from rich.console import Console

from tta_bench.report.content import Content


def show(content: Content, console: Console) -> None:
    """Print the tables."""
    raise NotImplementedError
