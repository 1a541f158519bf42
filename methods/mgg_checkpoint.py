"""Checkpoints of MGG: tensors with their provenance, and the published files as they are."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tta_bench.adapter import locate_file
from tta_bench.files import write_atomically
from tta_bench.methods.mgg_memory import SHAPES

HOW_TO_GET_ONE = (
    "make one with 'tta-bench pretrain mgg SUITE', or give the published mgg_ckpt.pth (github.com/keikeiqi/MGTTA)"
)
_PREFIX = "seq_modeling_block."
_PUBLISHED = {
    "w_q": "q_proj.weight",
    "w_k": "k_proj.weight",
    "w_v": "v_proj.weight",
    "w_o": "o_proj.weight",
    "lr_weight": "learnable_ttt_lr_weight",
    "lr_bias": "learnable_ttt_lr_bias",
    "token_scale": "learnable_token_idx",
    "ln_weight": "ttt_norm_weight",
    "ln_bias": "ttt_norm_bias",
    "post_weight": "post_norm.weight",
    "post_bias": "post_norm.bias",
    "memory_weight": "W1",
    "memory_bias": "b1",
}


def read(path: str) -> dict[str, Tensor]:
    """φ by name from a checkpoint of ``tta-bench pretrain``, or from the published ``mgg_ckpt.pth``.

    Raises:
        ValueError: there is no such file, or it holds something else; the message says how to get a checkpoint.
    """
    file = locate_file(path)
    try:
        state = _tensors(file)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise ValueError(
            f"{file} is no checkpoint of mgg: {type(error).__name__}: {_first_sentence(error)}; {HOW_TO_GET_ONE}"
        ) from error
    if _PREFIX + _PUBLISHED["w_q"] in state:
        state = {own: state[_PREFIX + theirs] for own, theirs in _PUBLISHED.items() if _PREFIX + theirs in state}
    wrong = [
        name for name, (shape, _) in SHAPES.items()
        if name not in state or state[name].numel() != torch.Size(shape).numel()
    ]  # fmt: skip
    if wrong:
        raise ValueError(
            f"{file} is no checkpoint of mgg: {', '.join(wrong)} missing or of another size; {HOW_TO_GET_ONE}"
        )
    return {name: state[name].reshape(shape) for name, (shape, _) in SHAPES.items()}


def _tensors(file: pathlib.Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(file)
    loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    tensors: Mapping[str, Tensor] = loaded.get("model_state_dict", loaded)
    return tensors


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].strip()  # PyTorch goes on with advice to load unsafely


def provenance(path: str) -> dict[str, str]:
    """What the file says of how it was made; empty for files that say nothing."""
    file = locate_file(path)
    if file.suffix != ".safetensors":
        return {}
    import safetensors

    with safetensors.safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def read_statistics(path: str) -> tuple[Tensor, Tensor]:
    """(means, standard deviations), each (D,), from the published ``train_info.pt``, which holds them in the other order.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        std, mean = torch.load(locate_file(path), map_location="cpu", weights_only=True)
        return mean.flatten(), std.flatten()
    except Exception as error:  # a damaged or foreign pickle raises many kinds
        what = f"{path} holds no pair (standard deviations, means): {type(error).__name__}: {_first_sentence(error)}"
        raise ValueError(what) from error


def save(path: pathlib.Path, phi: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Write φ with its provenance, atomically."""
    import safetensors.torch

    content = safetensors.torch.save({name: phi[name].contiguous().float() for name in SHAPES}, dict(said))
    write_atomically(path, lambda stream: stream.write(content))
