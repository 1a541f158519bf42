"""torchvision's ResNets, Vision Transformers and Swin Transformers, with torchvision's weights or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

import tta_bench.torchvision_repair  # noqa: F401  (before torchvision)
from tta_bench.data.geometry import Geometry
from tta_bench.data.labels import imagenet_labels
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig, Network, load_weights
from tta_bench.networks.checkpoints import Channels, Normalisation, load_file

# torchvision's first ViT files, IMAGENET1K_V1 among them, have the names of the MLP's layers before release 0.14.
_RENAMED = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}


class Torchvision(Network):
    """torchvision's ResNets, ViTs and Swin Transformers, with its weights or the user's own."""

    name = "torchvision"
    suite_keys = ("architecture",)

    class Config(ModelConfig):
        """A network of torchvision.

        Attributes:
            architecture: torchvision's name of the network (``resnet50``, ``vit_b_16``).
            weights_enum: torchvision's name of its weights (``IMAGENET1K_V1``), for their preprocessing, and for their
                values where ``weights`` is not given.
            weights: a file, or ``package:<installed package>/<file inside it>``; without ``weights_enum``, ``mean`` and
                ``std`` are required.
            checkpoint_key: the key in the file under which the weights are, where several fit.
            options: additional keyword arguments of torchvision's function of that name, as ``num_classes``.
            mean, std: per-channel normalisation, where it differs from that of ``weights_enum``.
            image_size: required image size in pixels, where it differs from that of ``weights_enum``.
        """

        architecture: str
        weights_enum: str | None = None
        weights: str | None = None
        checkpoint_key: str | None = None
        options: dict[str, Any] = {}
        mean: Channels | None = None
        std: Channels | None = None
        image_size: Annotated[int, Field(ge=1)] | None = None

        @model_validator(mode="after")
        def _origin(self) -> Torchvision.Config:
            if self.weights_enum is None and None in (self.weights, self.mean, self.std):
                text = "give weights_enum: (torchvision's weights), or weights: (a file) with mean: and std:"
                raise PydanticCustomError("origin", text)
            return self

    @property
    def tag(self) -> str:
        weights = f".{self.config.weights_enum}" if self.config.weights_enum else ""
        return f"torchvision/{self.config.architecture}{weights}"

    def asked(self) -> dict[str, Any]:
        return {"options": dict(self.config.options)} if self.config.options else {}

    def labels(self, net: nn.Module) -> Sequence[str] | None:
        """Those that the suite gives, else ImageNet's where ``weights_enum`` and the number of outputs are ImageNet's."""
        imagenet = (self.config.weights_enum or "").startswith("IMAGENET1K")
        if self.config.labels or not imagenet or self.num_classes(net) != len(imagenet_labels()):
            return super().labels(net)
        return imagenet_labels()

    # -- the network ---------------------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        net = self._random().eval()
        if self.config.weights is not None:
            self.remark = load_file(net, self.config, self.normalisation(net), in_order=False, rename=own_name)
        else:
            state = {own_name(name): tensor for name, tensor in self._fetched().items()}
            load_weights(net, state, self._where, in_order=False)
        return net

    def _random(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UsageError: torchvision has no such network or weights, or cannot build it from the options.
        """
        from torchvision import models

        config, options = self.config, {}
        if config.architecture not in (known := models.list_models(module=models)):
            message = f"torchvision has no classifier {config.architecture!r}"
            raise UsageError(Problem(message, self._where, hint=near_miss(config.architecture, known)))
        if published := self._published():
            options = {"num_classes": len(published.meta["categories"])}
            if config.architecture.startswith("vit_"):
                options["image_size"] = published.transforms().crop_size[0]
        try:
            net = models.get_model(config.architecture, weights=None, **{**options, **config.options})
        except Exception as error:  # whatever the architecture's constructor raises
            message = f"torchvision cannot build it: {type(error).__name__}: {error}"
            raise UsageError(Problem(message, self._where, hint="check its options")) from error
        if not isinstance(net, (models.ResNet, models.VisionTransformer, models.SwinTransformer)):
            message = f"kind torchvision has ResNets, ViTs and Swin Transformers, and {config.architecture} is none"
            hint = "use timm's network, or a plugin that subclasses Torchvision"
            raise UsageError(Problem(message, self._where, hint=hint))
        return net

    def _published(self) -> Any:
        """torchvision's description of the weights; None where the suite names none.

        Raises:
            UsageError: torchvision has no weights of that name.
        """
        from torchvision import models

        if (name := self.config.weights_enum) is None:
            return None
        known = [each.name for each in models.get_model_weights(self.config.architecture)]
        if name not in known:  # DEFAULT neither
            message = f"torchvision has no weights_enum {name!r} of {self.config.architecture}"
            if name == "DEFAULT":
                message = "DEFAULT does not name weights: torchvision changes what it means between releases"
            raise UsageError(Problem(message, self._where, hint=near_miss(name, known)))
        return models.get_model_weights(self.config.architecture)[name]

    def _fetched(self) -> dict[str, Tensor]:
        """The published weights, from torch's cache or the network.

        Raises:
            UsageError: they cannot be fetched.
        """
        try:
            state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                self._published().url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        except Exception as error:  # whatever the connection, the disk or the unpickler raises
            message = f"its weights cannot be fetched: {type(error).__name__}: {error}"
            hint = "offline, give a local file: weights: PATH"
            raise UsageError(Problem(message, self._where, hint=hint)) from error
        return state

    @property
    def _where(self) -> str:
        return f"model {self.config.name!r}"

    # -- images --------------------------------------------------------------------------------------------------------

    def normalisation(self, net: nn.Module) -> Normalisation:
        published = self._published()
        preset = published.transforms() if published else None
        return self.config.mean or tuple(preset.mean), self.config.std or tuple(preset.std)  # type: ignore[union-attr]

    def image_size(self, net: nn.Module) -> int | None:
        if self.config.image_size is not None:
            return int(self.config.image_size)
        if _is_vit(net):
            return int(net.image_size)  # type: ignore[arg-type]
        published = self._published()
        return int(published.transforms().crop_size[0]) if published else None

    def geometry(self, net: nn.Module) -> Geometry | None:
        """torchvision's preset for the weights: resize, then the centre crop."""
        if (published := self._published()) is None:
            return None
        preset = published.transforms()
        return Geometry(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def num_classes(self, net: nn.Module) -> int:
        return int(self.classifier(net).out_features)  # type: ignore[arg-type]

    def features(self, net: Any, x: Tensor) -> Tensor:
        if _is_vit(net):
            patches = net.conv_proj(x).flatten(2).transpose(1, 2)
            tokens: Tensor = net.encoder(torch.cat([net.class_token.expand(len(x), -1, -1), patches], 1))
            return tokens
        if _is_swin(net):
            maps: Tensor = net.permute(net.norm(net.features(x)))
            return maps
        out: Tensor = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in self.stages(net):
            out = stage(out)
        return out

    def head(self, net: Any, features: Tensor) -> Tensor:
        pooled = features[:, 0] if _is_vit(net) else net.avgpool(features).flatten(1)
        logits: Tensor = (net.heads if _is_vit(net) else self.classifier(net))(pooled)
        return logits

    def classifier(self, net: Any) -> nn.Module:
        linear: nn.Module = net.heads.head if _is_vit(net) else net.head if _is_swin(net) else net.fc
        return linear

    def stages(self, net: Any) -> list[nn.Module]:
        if _is_vit(net):
            return list(net.encoder.layers)
        if _is_swin(net):
            return list(net.features)[1::2]  # patch embeddings and mergings lie between them
        return super().stages(net)

    def is_transformer(self, net: nn.Module) -> bool:
        return _is_vit(net)

    def has_class_token(self, net: nn.Module) -> bool:
        return _is_vit(net)

    def channels_last(self, net: nn.Module) -> bool:
        return _is_swin(net)


def own_name(name: str) -> str:
    """Today's name of a tensor in torchvision's file."""
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _is_vit(net: nn.Module) -> bool:
    from torchvision.models import VisionTransformer

    return isinstance(net, VisionTransformer)


def _is_swin(net: nn.Module) -> bool:
    from torchvision.models import SwinTransformer

    return isinstance(net, SwinTransformer)
