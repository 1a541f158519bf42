"""The interface of a method.

A method adapts a source model online, on unlabelled images, while it predicts. The harness calls, in this order:
``declared`` and ``skip`` (class methods), the constructor, ``setup``, ``prepare`` (if ``source_request`` asks for images),
then for each batch ``step`` or ``predict``, and ``reset`` where the stream has one. ``reset`` restores the adapter's
attributes; a network that never changes is declared :func:`constant`, which saves its copy.

A method sees the image batch, its Config, the Context and unlabelled source batches; never labels, corruption names or
data paths.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib.metadata
import operator
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict
from torch import Tensor

from tta_bench.code import file_sha256
from tta_bench.files import located
from tta_bench.models import SourceModel
from tta_bench.registry import PluginEntry
from tta_bench.snapshot import Snapshot, Untouched

if TYPE_CHECKING:
    from tta_bench.wrapping import wrap

__all__ = [
    "Adapter", "Config", "Context", "Declared", "FilePath", "Needs", "Preset", "SourceRequest", "constant", "locate_file",
    "wrap",
]  # fmt: skip


Network = TypeVar("Network", bound=torch.nn.Module)


def locate_file(path: str) -> pathlib.Path:
    """The file that a hyperparameter names: a path, or ``package:<installed package>/<file inside it>``.

    Raises:
        ValueError: there is no such file.
    """
    try:
        file = located(path)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    if file is None:
        raise ValueError(f"no such file: {path}")
    return file


def _existing_file(path: str) -> str:
    locate_file(path)
    return path


@dataclass(frozen=True)
class _FileValued:
    """Marks a field whose value is a file: a trial's key has the file's SHA-256 instead of its name."""


FilePath = Annotated[str, AfterValidator(_existing_file), _FileValued()]


def is_file(annotation: Any, metadata: Iterable[Any] = ()) -> bool:
    """Whether a field with this annotation and metadata is declared as :data:`FilePath`, ``None`` allowed or not."""
    marks = (*metadata, *getattr(annotation, "__metadata__", ()))
    if any(isinstance(mark, _FileValued) for mark in marks):
        return True
    return any(is_file(inner) for inner in getattr(annotation, "__args__", ()))


class Config(BaseModel):
    """Base of every method's hyperparameters. Unknown fields are refused, as are numbers that are not finite; instances
    are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def files(self) -> dict[str, str]:
        """The path of each field declared as :data:`FilePath` that is set, by field name."""
        named = [name for name, info in type(self).model_fields.items() if is_file(info.annotation, info.metadata)]
        return {name: str(locate_file(getattr(self, name))) for name in named if getattr(self, name) is not None}

    def plugins(self) -> dict[str, PluginEntry]:
        """Other plugins named by the values, by role (``{"optimizer": …}``); their code is part of a trial's key."""
        return {}

    def plugin_needs(self) -> Needs:
        """The needs of those plugins (their class attribute ``needs``)."""
        own = (getattr(entry.load(), "needs", Needs()) for entry in self.plugins().values())
        return functools.reduce(operator.or_, own, Needs())

    def keyed(self) -> dict[str, Any]:
        """The values in a trial's key: files by content, and no field at its default.

        A new field thus leaves existing keys unchanged; a changed default changes the class's code, and so the keys.
        """
        files, values = self.files(), self.model_dump(mode="json")
        return {
            name: {"sha256": file_sha256(files[name])} if name in files else values[name]
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.default or field.is_required()
        }


@dataclass(frozen=True)
class Preset:
    """Published hyperparameters for one setting.

    Attributes:
        values: fields of the method's Config that differ from its defaults; a function of the batch size is a rule, such
            as for the learning rate of small batches.
        citation: their source (paper and table, or repository and file).
    """

    values: Mapping[str, Any | Callable[[int], Any]]
    citation: str

    def resolve(self, batch_size: int) -> dict[str, Any]:
        """The values for a batch size."""
        return {name: value(batch_size) if callable(value) else value for name, value in self.values.items()}


@dataclass(frozen=True)
class Needs:
    """Requirements of a method; each is a column of the results.

    A class declares the most that it can need; :meth:`Adapter.declared` narrows it for given hyperparameters.

    Attributes:
        backward: it takes backward passes.
        source_images: it uses clean unlabelled source images before adapting.
        checkpoint: it needs a learned checkpoint.
        min_batch: the smallest batch it can adapt on; smaller ones are predicted with ``predict``.
        norm_kinds: kinds of normalisation layers, of which the model must have one ("batch", "group", "layer");
            empty: any model.
        class_token: the model must be a transformer with a class token.
        linear_head: the model's classifier must be a linear layer.
        packages: distributions (names as for ``pip install``) that must be installed.
    """

    backward: bool = False
    source_images: bool = False
    checkpoint: bool = False
    min_batch: int = 1
    norm_kinds: tuple[str, ...] = ()
    class_token: bool = False
    linear_head: bool = False
    packages: tuple[str, ...] = ()

    def lacking(self, model: SourceModel, batch_size: int) -> str | None:
        """The first unmet requirement, as a reason to skip; None where all are met."""
        if self.norm_kinds and not any(model.norm_kind(module) in self.norm_kinds for module in model.net.modules()):
            return f"the model has no {' or '.join(self.norm_kinds)} normalisation layer"
        if self.class_token and not model.has_class_token:
            return "the model has no class token"
        if self.linear_head and (kinds := [type(part).__name__ for part in model.classifiers()]) != ["Linear"]:
            return f"the model's classifier is not a linear layer but {' and '.join(kinds)}"
        if batch_size < self.min_batch:
            return f"batch size {batch_size} is below the {self.min_batch} that the method needs"
        if absent := [name for name in self.packages if not _installed(name)]:
            return f"not installed: pip install {' '.join(absent)}"
        return None

    def __or__(self, other: Needs) -> Needs:
        """The combined requirements, such as of a method and its optimizer."""
        return Needs(**{f.name: _both(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)})

    def columns(self) -> dict[str, Any]:
        """Each need as a column of the results, ``needs_<name>``; tuples are joined by commas."""
        return {f"needs_{k}": ",".join(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _both(one: Any, other: Any) -> Any:
    return tuple(dict.fromkeys(one + other)) if isinstance(one, tuple) else max(one, other)


@dataclass(frozen=True)
class Declared:
    """A method's declarations for given hyperparameters.

    Attributes:
        needs: its requirements; those of its optimizer are added.
        outputs: what ``step`` and ``predict`` return, "logits" or "probabilities".
        reset_keeps: dotted paths of attributes that ``reset`` does not restore.
    """

    needs: Needs
    outputs: Literal["logits", "probabilities"]
    reset_keeps: tuple[str, ...]


@dataclass(frozen=True)
class SourceRequest:
    """Number of clean, unlabelled source images that ``prepare`` uses, and their batch size."""

    images: int
    batch_size: int


@dataclass(frozen=True)
class Context:
    """What a method may know about its trial.

    Attributes:
        num_classes: number of classes C.
        batch_size: nominal batch size; a segment's last batch may be smaller.
        image_size: height and width of the images in pixels.
        device: of the images and the model.
        generator: a CPU generator, the method's only source of randomness. In ``setup`` and ``prepare`` its seed depends
            on the trial's seed alone, so that streams share what ``prepare`` returned; afterwards on the stream, too.
    """

    num_classes: int
    batch_size: int
    image_size: int
    device: torch.device
    generator: torch.Generator


def constant(network: Network) -> Network:
    """Declare that a network never changes, such as a frozen copy of the source model; returns it frozen, in eval mode.

    ``reset`` neither copies nor restores it; its passes are counted like any copy's. A deep copy of it is not constant.
    """
    network.eval().requires_grad_(False)
    network.survives_reset = Untouched()  # type: ignore[assignment]
    return network


_Config = Config  # inside Adapter, the name Config is the method's own


class Adapter(abc.ABC):
    """Base class of every method. Subclass it, give it a Config, implement ``step``.

    ``needs``, ``outputs`` and ``reset_keeps`` are class constants. Where they depend on hyperparameters, the class has the
    most general values and ``declared`` returns the actual ones, which an instance has as attributes.
    """

    name: ClassVar[str] = ""  # used for plugin files; an installed package's entry point has the name
    Config: ClassVar[type[Config]] = Config
    presets: ClassVar[Mapping[str, Preset]] = {}
    needs: Needs = Needs()
    outputs: Literal["logits", "probabilities"] = "logits"
    reset_keeps: tuple[str, ...] = ()
    predicts: ClassVar[bool] = True  # False: it has no ``predict``, and streams that need one are skipped
    shares_prepared: ClassVar[bool] = True  # False: ``prepare`` is called in every trial
    example: ClassVar[Mapping[str, Any]] = {}  # values of Config's fields that have no default, for ``tta-bench check``
    compiled_parts: ClassVar[Sequence[str]] = ()  # methods of tensors alone that ``compile: on`` compiles, too
    compiled_batches: Collection[int] = ()  # images of passes, besides the nominal batch size, that it compiles

    def __init__(self, model: SourceModel, config: _Config, context: Context):
        self.model = model
        self.config: Any = config
        self.context = context
        declared = self.declared(config)
        self.needs = declared.needs | config.plugin_needs()
        self.outputs, self.reset_keeps = declared.outputs, declared.reset_keeps
        self.prepared: dict[str, Tensor] = {}
        self._initial: Snapshot | None = None

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """``needs``, ``outputs`` and ``reset_keeps`` for these hyperparameters; called before there is an instance.

        By default the class constants; override some with ``dataclasses.replace(super().declared(config), …)``.
        """
        return Declared(cls.needs, cls.outputs, cls.reset_keeps)

    @classmethod
    def skip(cls, model: SourceModel, config: _Config, context: Context) -> str | None:
        """The reason why this method cannot run with this model, or None. The default checks the declared needs."""
        return (cls.declared(config).needs | config.plugin_needs()).lacking(model, context.batch_size)

    def setup(self) -> None:
        """Choose the adapted parameters, set modes, build the optimizer. The model is in eval mode, all frozen."""

    def source_request(self) -> SourceRequest | None:
        """The source images that ``prepare`` uses; None where it uses none."""
        return None

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        """Learn from clean unlabelled images, (B, 3, H, W) in [0, 1]; the result becomes ``self.prepared``."""
        return {}

    @abc.abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """Predict a batch, and adapt on it.

        Args:
            x: images, (B, 3, H, W) in [0, 1].

        Returns:
            The graded scores, (B, C): logits, or probabilities if ``outputs`` is "probabilities".
        """

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Scores (B, C) for ``x`` (B, 3, H, W) in [0, 1] in the current state; changes nothing.

        By default the model's logits, or their softmax if ``outputs`` is "probabilities".
        """
        logits: Tensor = self.model(x)
        return logits.softmax(1) if self.outputs == "probabilities" else logits

    def remember(self) -> None:
        """Save the state that ``reset`` restores. The harness calls it once, between ``setup`` and ``prepare``."""
        self._initial = Snapshot.of(
            self, self.reset_keeps, leave=("_initial", "config", "prepared"), alone=[self.context.generator]
        )

    def reset(self) -> None:
        """Restore, in place, the state after ``setup``: model, optimizer, plain attributes, except ``reset_keeps``.

        ``self.prepared`` keeps the result of ``prepare``. ``context.generator`` is not rewound, under any attribute name:
        otherwise every shift would get the same draws. The method's own generators are restored.

        Raises:
            RuntimeError: ``remember`` was never called.
        """
        if self._initial is None:
            raise RuntimeError("reset() before remember(): the harness saves the state after setup()")
        self._initial.restore()

    def checkpoint_origin(self) -> str:
        """Origin of the method's checkpoint, as a short text; a column of the results.

        Empty: that of its optimizer's checkpoint (see :mod:`tta_bench.optimizers`).
        """
        return ""

    def stats(self) -> Mapping[str, float | Tensor]:
        """Statistics of the last step, always with the same keys; they become columns ``stat_<key>``.

        A 0-dim tensor is read at the end of the segment, or of 1,000 batches, so that nothing waits for the device. The
        harness adds the statistics of the method's optimizers.
        """
        return {}


def context_for(model: SourceModel, batch_size: int, image_size: int, device: torch.device, seed: int) -> Context:
    """A Context whose generator is seeded with ``seed``."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(seed)
    return Context(model.num_classes, batch_size, image_size, device, generator)


def __getattr__(name: str) -> Any:
    """``wrap``, whose module builds on this one."""
    if name == "wrap":
        from tta_bench.wrapping import wrap

        return wrap
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
