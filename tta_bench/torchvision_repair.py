"""Make ``import timm`` work where torchvision's compiled extension cannot load.

torchvision's compiled operators are linked against one build of torch. With a CPU-only torch they do not load, and
``import torchvision`` (so ``import timm``) fails with ``operator torchvision::nms does not exist``: torchvision
registers meta kernels for two operators whose schemas only the compiled extension defines. Defining the two schemas
first is enough, because no classifier calls them. Every module that imports timm imports this one before it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # keeps the definitions alive


def _extension_loads() -> bool:
    """Whether torchvision's extension loads into this torch; true also where torchvision is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    folder = pathlib.Path(spec.origin).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = folder / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(str(library))
            except OSError:
                return False
            return True
    return False


def repair() -> None:
    """Define the missing operator schemas, once, and only where the compiled extension does not load."""
    global _library
    if _library is not None or hasattr(torch.ops.torchvision, "nms") or _extension_loads():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)


repair()
