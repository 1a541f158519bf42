"""ImageNet-C's corruptions between the published severities, by the functions of the ``imagecorruptions`` package.

Each of its functions starts with ``c = [five parameters][severity - 1]``. Here the same function is compiled with
``c = severity`` instead, so that it takes parameters; at integer severities both give the same pixels.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tta_bench.data.corrupt.strengths import PARAMETERS


def corrupt(image: np.ndarray, corruption: str, severity: float, options: dict[str, int]) -> np.ndarray:
    """Corrupt one image; draws from NumPy's global generator.

    Args:
        image: uint8 (H, W, 3).
        corruption: a name in :data:`PARAMETERS`.
        severity: above 0, up to 5.
        options: further arguments of the package's function.

    Returns:
        uint8 (H, W, 3).
    """
    parameters = PARAMETERS["imagenet"][corruption].at(severity)
    if corruption == "zoom_blur":
        end, step = parameters
        parameters = np.arange(1, end, step)
    return np.uint8(_function(corruption)(Image.fromarray(image), parameters, **options))  # type: ignore[return-value]


@functools.cache
def _function(corruption: str) -> Callable[..., Any]:
    """The package's function, with its parameters in place of a severity."""
    from imagecorruptions import corruptions as package

    tree = _TakesParameters().visit(ast.parse(inspect.getsource(getattr(package, corruption))))
    names = {**vars(package), "disk": _disk}
    exec(compile(ast.fix_missing_locations(tree), f"imagecorruptions {corruption}", "exec"), names)
    function: Callable[..., Any] = names[corruption]
    return function


class _TakesParameters(ast.NodeTransformer):
    """Replaces ``[…][severity - 1]`` by ``severity``."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.value, ast.List) and ast.unparse(node.slice) == "severity - 1":
            return ast.Name("severity", ast.Load())
        return node


def _disk(radius: float, alias_blur: float) -> np.ndarray:
    """The package's kernel; the package's own has an even width where a radius above 8 is no integer."""
    from imagecorruptions.corruptions import cv2

    reach, width = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    blurred: np.ndarray = cv2.GaussianBlur(disk / disk.sum(), ksize=(width, width), sigmaX=alias_blur)
    return blurred
