"""Weights in the user's files: which of several, wrappers' prefixes, a normalisation inside, what network they are of."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig, Network, fitted, load_weights, locate_weights
from tta_bench.networks.state_files import State, read_parts

Channels = tuple[float, float, float]
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel

UNNORMALISED: Normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_WRAPPERS = ("module.", "model.", "net.", "backbone.")
_COMPILED = "_orig_mod."  # of torch.compile, before the names of a network or of any part of it
_AVERAGED = "n_averaged"  # of torch's AveragedModel
_BUFFERS = (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"))
_TOLERANCE = 1e-4  # between equal values of a normalisation


class FileConfig(ModelConfig):
    """A network whose weights are in a file of the user's.

    Attributes:
        weights: the file, or ``package:<installed package>/<file inside it>``.
        checkpoint_key: the key in the file under which they are, where several fit.
        classes: number of classes.
        mean, std: per-channel normalisation, where it differs from the publication's.
    """

    weights: str
    checkpoint_key: str | None = None
    classes: Annotated[int, Field(ge=2)] = 10
    mean: Channels | None = None
    std: Channels | None = None

    @model_validator(mode="after")
    def _both(self) -> FileConfig:
        if (self.mean is None) != (self.std is None):
            raise PydanticCustomError("normalisation", "give mean: and std: together")
        return self


class FromFile(Network):
    """A network of the literature, whose weights are in a file. Its Config is a :class:`FileConfig`."""

    in_tag: ClassVar[frozenset[str]] = frozenset()  # fields of the Config that the tag, or the weights' shapes, tell

    @abc.abstractmethod
    def architecture(self) -> nn.Module:
        """The network with random weights; the names of its tensors are those of the published checkpoint."""

    def published(self) -> Normalisation:
        """The publication's normalisation."""
        return HALF

    def build(self) -> nn.Module:
        net = self.architecture().eval()
        self.remark = load_file(net, self.config, self.normalisation(net), in_order=False, rename=self.own_name)
        return net

    def own_name(self, name: str) -> str | None:
        """The network's name of a tensor in a file; None for one that it does not use."""
        return name

    def normalisation(self, net: nn.Module) -> Normalisation:
        own = self.config.mean, self.config.std
        return own if own[0] is not None else self.published()

    def asked(self) -> dict[str, Any]:
        options = self.config.model_dump(mode="json", exclude_defaults=True, exclude=_ELSEWHERE | self.in_tag)
        return {"options": options} if options else {}


_ELSEWHERE = frozenset(  # in the key by content
    {"name", "kind", "preset", "weights", "checkpoint_key", "mean", "std", "classes"}
)


def load_file(net: nn.Module, config: Any, normalisation: Normalisation, *, in_order: bool,
              rename: Callable[[str], str | None] = str) -> str:  # fmt: skip
    """Load the weights that a Config names into ``net``.

    Args:
        net: the network.
        config: with ``name``, ``weights`` and ``checkpoint_key``.
        normalisation: the source model's, which a file's own must agree with.
        in_order: see :func:`tta_bench.models.load_weights`.
        rename: from a tensor's name in the file to the network's; None for one that it does not use.

    Returns:
        What was read of a file that holds more than a state dict, for the start of a run; or empty.

    Raises:
        UsageError: there is no such file, it cannot be read, it does not fit the network or the normalisation, or
            several state dicts in it fit.
    """
    path = locate_weights(config.weights)
    where = f"model {config.name!r} ({path.name})"

    def prepared(state: State) -> tuple[State, Normalisation | None]:
        state, own = split_normalisation(unwrapped(state, net.state_dict()))
        return {new: tensor for name, tensor in state.items() if (new := rename(name)) is not None}, own

    key, (state, own) = _chosen(
        {key: prepared(state) for key, state in _offered(read_parts(path), config.checkpoint_key, where).items()},
        lambda state: not fitted(net, state, in_order=in_order)[1],
        where,
    )
    where += f", {key!r} in it" if key else ""
    load_weights(net, state, where, in_order=in_order, seems=seems_to_hold(state))
    if own is not None and not _agree(own, normalisation):
        mean, std = ([round(value, 4) for value in values] for values in own)
        message = (
            f"the weights' file normalises images with mean {mean} and standard deviation {std}, the suite does not"
        )
        raise UsageError(Problem(message, where, hint=f"write mean: {mean} and std: {std}"))
    return f"{config.name}: weights are {key!r} in {path.name}" if key else ""


def _offered(parts: Mapping[str, State], asked: str | None, where: str) -> Mapping[str, State]:
    """The state dicts of a file, or the one that the suite asks for."""
    if asked is None:
        return parts
    if asked not in parts:
        hint = near_miss(asked, [key for key in parts if key])
        raise UsageError(Problem(f"checkpoint_key: the file has no state dict {asked!r}", where, hint=hint))
    return {asked: parts[asked]}


def _chosen(
    offered: Mapping[str, tuple[State, Normalisation | None]], fits: Callable[[State], bool], where: str
) -> tuple[str, tuple[State, Normalisation | None]]:
    """The one state dict that fits, with its key; where none does, the largest, for the message.

    Raises:
        UsageError: several fit, of different values.
    """
    fitting = [key for key, (state, _) in offered.items() if fits(state)]
    if any(not _equal(offered[fitting[0]][0], offered[key][0]) for key in fitting[1:]):
        message = f"the weights of {len(fitting)} keys of the file fit: {', '.join(map(repr, fitting))}"
        raise UsageError(Problem(message, where, hint=f"choose one of them, as checkpoint_key: {fitting[0]}"))
    key = fitting[0] if fitting else max(offered, key=lambda key: len(offered[key][0]))
    return key, offered[key]


def _equal(one: State, other: State) -> bool:
    return set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def unwrapped(state: State, own: Container[str] = ()) -> State:
    """Without the prefixes that wrappers give to all of a network's tensors.

    Wrappers are DataParallel, a normalisation in front, torch.compile, a running mean of weights; ``own`` are the
    network's names, which are left alone.
    """
    state = {name.replace(_COMPILED, ""): tensor for name, tensor in state.items() if name != _AVERAGED}
    buffers = {name for pair in _BUFFERS for name in pair}
    while (names := [name for name in state if name not in buffers]) and not any(name in own for name in names):
        prefix = next((each for each in _WRAPPERS if all(name.startswith(each) for name in names)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def split_normalisation(state: State) -> tuple[State, Normalisation | None]:
    """The tensors without those of a normalisation, and its mean and standard deviation (3 values each), or None."""
    for names in _BUFFERS:
        if all(name in state and state[name].numel() in (1, 3) for name in names):
            mean, std = (state[name].flatten().expand(3).tolist() for name in names)
            return {name: tensor for name, tensor in state.items() if name not in names}, (mean, std)
    return state, None


def _agree(one: Normalisation, other: Normalisation) -> bool:
    pairs = [pair for values in zip(one, other, strict=True) for pair in zip(*values, strict=True)]
    return all(abs(a - b) <= _TOLERANCE for a, b in pairs)


def seems_to_hold(state: Mapping[str, Tensor]) -> str:
    """The network that a file seems to hold, and its kind in a suite; empty where no kind is recognised."""
    return next((describe(state) for mark, describe in _MARKS.items() if mark in state), "")


def _wide_resnet(state: Mapping[str, Tensor]) -> str:
    depth = 6 * _count(state, r"block1\.layer\.(\d+)\.") + 4
    width = len(state["block1.layer.0.conv1.weight"]) // 16
    return f"a WideResNet (kind: wide_resnet, depth: {depth}, width: {width}{_classes(state, 'fc')})"


def _resnext(state: Mapping[str, Tensor]) -> str:
    depth, first = 9 * _count(state, r"stage_1\.(\d+)\.") + 2, state.get("stage_1.0.conv_conv.weight")
    groups = "" if first is None else f", cardinality: {len(first) // first.shape[1]}, base_width: {first.shape[1]}"
    return f"a ResNeXt for CIFAR (kind: resnext, depth: {depth}{groups}{_classes(state, 'classifier')})"


def _small_resnet(state: Mapping[str, Tensor]) -> str:
    depth, width = 6 * _count(state, r"layer1\.(\d+)\.") + 2, len(state["layer3.0.conv1.weight"]) // 64
    norm = "BatchNorm, groups: null" if "bn.running_mean" in state else "GroupNorm"
    return f"a ResNet-{depth} for CIFAR with {norm} (kind: resnet26, width: {width}{_classes(state, 'fc')})"


def _classes(state: Mapping[str, Tensor], layer: str) -> str:
    return f", classes: {len(state[f'{layer}.bias'])}" if f"{layer}.bias" in state else ""


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


# A tensor that only this network has (among those below it), and its description.
_MARKS = {
    "block1.layer.0.conv1.weight": _wide_resnet,
    "conv_1_3x3.weight": _resnext,
    "layer4.0.conv1.weight": lambda _: "a ResNet of torchvision or timm (kind: torchvision or timm)",
    "layer3.0.conv1.weight": _small_resnet,
    "encoder.layers.encoder_layer_0.ln_1.weight": lambda _: "torchvision's Vision Transformer (kind: torchvision)",
    "features.1.0.attn.qkv.weight": lambda _: "torchvision's Swin Transformer (kind: torchvision)",
    "blocks.0.attn.qkv.weight": lambda _: "timm's Vision Transformer (kind: timm)",
    "layers.0.blocks.0.attn.qkv.weight": lambda _: "timm's Swin Transformer (kind: timm)",
}
