"""Networks of timm: by full tag with timm's weights, or an architecture with weights of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import nn

import tta_bench.torchvision_repair  # noqa: F401  (before timm)
from tta_bench.data.base import Geometry
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import ModelConfig, Network, SourceModel, load_weights, locate_weights, read_state


class ModelSpec(ModelConfig):
    """A timm network.

    Attributes:
        timm: full timm name with its tag, whose published weights and normalisation are used.
        architecture: timm architecture without weights, for weights of one's own (then ``mean`` and ``std`` are given).
        weights: None (timm's hub), a file, or ``package:<installed package>/<file inside it>``.
        options: further keyword arguments of ``timm.create_model``.
        stem: "cifar": a 3×3 stride-1 first convolution and no max-pooling, as ResNets for 32×32 images have.
        mean, std: per-channel normalisation where the weights' own configuration does not say it.
        image_size: side in pixels that the network needs, or None where any will do.
    """

    kind: str = "timm"
    timm: str | None = None
    architecture: str | None = None
    weights: str | None = None
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
    """Networks of timm."""

    name = "timm"
    place = ("timm", "architecture")

    class Config(ModelSpec):
        """See :class:`ModelSpec`; here it is complete."""

        @model_validator(mode="after")
        def _one_origin(self) -> Timm.Config:
            if (self.timm is None) == (self.architecture is None):
                raise PydanticCustomError("origin", "give either timm: (a full tag) or architecture: (with weights:)")
            if self.architecture and None in (self.weights, self.mean, self.std):
                raise PydanticCustomError("origin", "architecture: needs weights:, mean: and std: beside it")
            return self

    @property
    def tag(self) -> str:
        return str(self.config.tag)

    def build(self) -> nn.Module:
        spec: ModelSpec = self.config
        if spec.timm is not None and (wrong := check_timm_name(spec.timm)):
            raise UsageError(Problem(wrong[0], hint=wrong[1]))
        net = build_network(spec, pretrained=spec.weights is None and spec.timm is not None)
        if spec.weights is not None:
            path = locate_weights(spec.weights)
            load_weights(net, read_state(path), f"model {spec.name!r} ({path.name})")
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

    def asked(self) -> dict[str, Any]:
        spec: ModelSpec = self.config
        options = {"options": dict(spec.options)} if spec.options else {}
        return options | ({"stem": spec.stem} if spec.stem else {})


def load(spec: ModelSpec) -> SourceModel:
    """The pristine source model of ``spec``; see :meth:`tta_bench.models.Network.load`."""
    return Timm(spec).load()


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


def normalisation(spec: ModelSpec, net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std): the suite's where it gives them, else those of the weights' own configuration."""
    published = _published(net)
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
    return int(_published(net)["input_size"][-1])


def _published(net: nn.Module) -> Mapping[str, Any]:
    """What timm says of the weights that it published."""
    return getattr(net, "pretrained_cfg", None) or {}
