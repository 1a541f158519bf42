"""The report as one HTML file that opens from disk."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from tta_bench.report.content import Content
from tta_bench.report.figures import Figure


def write(content: Content, figures: Sequence[Figure], path: pathlib.Path) -> pathlib.Path:
    """Write the page to ``path``."""
    raise NotImplementedError
