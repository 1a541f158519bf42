"""timm networks: a full tag with timm's weights, or an architecture with the user's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import nn

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench.data.geometry import Geometry
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig, Network, SourceModel
from tta_bench.networks.checkpoints import load_file


class ModelSpec(ModelConfig):
    """A timm network.

    Attributes:
        timm: full timm name with its tag, whose published weights and normalisation are used.
        architecture: timm architecture, for the user's own ``weights``; ``mean`` and ``std`` are then required.
        weights: None (timm's hub), a file, or ``package:<installed package>/<file inside it>``.
        checkpoint_key: the key in the file under which the weights are, where several fit.
        options: additional keyword arguments of ``timm.create_model``.
        stem: "cifar": a 3×3 stride-1 first convolution and no max-pooling, as ResNets for 32×32 images have.
        mean, std: per-channel normalisation, where it differs from that of the weights' configuration.
        image_size: required image size in pixels, or None for any.
    """

    kind: str = "timm"
    timm: str | None = None
    architecture: str | None = None
    weights: str | None = None
    checkpoint_key: str | None = None
    options: dict[str, Any] = {}
    stem: Literal["cifar"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None

    @property
    def tag(self) -> str:
        """The full timm tag, or the architecture."""
        return self.timm or str(self.architecture)


class Timm(Network):
    """Networks from timm, with its weights or the user's own."""

    name = "timm"
    suite_keys = ("timm", "architecture")

    class Config(ModelSpec):
        """See :class:`ModelSpec`; checked for completeness."""

        @model_validator(mode="after")
        def _one_origin(self) -> Timm.Config:
            if (self.timm is None) == (self.architecture is None):
                raise PydanticCustomError("origin", "give either timm: (a full tag) or architecture: (with weights:)")
            if self.architecture and None in (self.weights, self.mean, self.std):
                raise PydanticCustomError("origin", "architecture: requires weights:, mean: and std:")
            return self

    @property
    def tag(self) -> str:
        return str(self.config.tag)

    def build(self) -> nn.Module:
        spec: ModelSpec = self.config
        if spec.timm is not None and (error := check_timm_name(spec.timm)):
            raise UsageError(Problem(error[0], hint=error[1]))
        net = build_network(spec, pretrained=spec.weights is None and spec.timm is not None)
        if spec.weights is not None:
            self.remark = load_file(net, spec, normalisation(spec, net), in_order=True)
        return net

    def normalisation(self, net: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
        return normalisation(self.config, net)

    def image_size(self, net: nn.Module) -> int | None:
        return needed_image_size(self.config, net)

    def geometry(self, net: nn.Module) -> Geometry | None:
        """timm's evaluation transform: resize to crop / crop_pct, then the centre crop."""
        if self.config.timm is None:
            return None
        published = _published(net)
        crop = int(published["input_size"][-1])
        return Geometry(int(crop // published["crop_pct"]), crop, published["interpolation"])

    def labels(self, net: nn.Module) -> Sequence[str] | None:
        """Those that the suite gives, else those of the weights that the tag names."""
        if self.config.labels or self.config.timm is None:
            return super().labels(net)
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        published = _published(net)  # timm tells the sets apart by their numbers of classes, which are all different
        known = infer_imagenet_subset(dict(published)) if published.get("num_classes") == net.num_classes else None
        return ImageNetInfo(known).label_names() if known else None

    def asked(self) -> dict[str, Any]:
        spec: ModelSpec = self.config
        options = {"options": dict(spec.options)} if spec.options else {}
        return options | ({"stem": spec.stem} if spec.stem else {})


def load(spec: ModelSpec) -> SourceModel:
    """The pristine source model of ``spec``; see :meth:`tta_bench.models.Network.load`."""
    return Timm(spec).load()


def check_timm_name(name: str) -> tuple[str, str] | None:
    """(message, hint) where ``name`` is not a full timm tag; None where it is."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return f"timm has no model {architecture!r}", near_miss(architecture, timm.list_models())[:400]
    tags = timm.list_pretrained(f"{architecture}.*")
    if not tag:
        return (
            f"{name!r} does not name its weights: timm changes what such aliases mean between releases",
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
    except Exception as error:  # whatever the architecture's constructor or the hub's client raises
        action = "its weights cannot be fetched" if pretrained else "timm cannot build it"
        hint = "offline, give a local file: weights: PATH" if pretrained else "check its options"
        raise UsageError(
            Problem(f"{action}: {type(error).__name__}: {error}", f"model {spec.name!r}", hint=hint)
        ) from error
    if spec.stem == "cifar":
        first = getattr(net, "conv1", None)
        if not (isinstance(first, nn.Conv2d) and hasattr(net, "maxpool")):
            message = f"stem: cifar is for ResNets whose first layer is one convolution; {spec.tag} has another"
            raise UsageError(Problem(message, f"model {spec.name!r}", hint="leave stem out"))
        net.conv1 = nn.Conv2d(3, first.out_channels, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return net.eval()


def normalisation(spec: ModelSpec, net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) from the suite, else from the weights' configuration."""
    published = _published(net)
    return tuple(spec.mean or published["mean"]), tuple(spec.std or published["std"])


def needed_image_size(spec: ModelSpec, net: nn.Module) -> int | None:
    """Image size in pixels that the weights require, or None where the suite does not set it."""
    if spec.image_size is not None:
        return spec.image_size
    if "img_size" in spec.options:
        size = spec.options["img_size"]
        return int(size[0] if isinstance(size, list | tuple) else size)
    if spec.timm is None:
        return None
    return int(_published(net)["input_size"][-1])


def _published(net: nn.Module) -> Mapping[str, Any]:
    """timm's configuration of its published weights."""
    return getattr(net, "pretrained_cfg", None) or {}
