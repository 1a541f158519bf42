"""Methods from published code as it is: a module whose ``forward`` adapts and returns the scores.

:func:`wrap` makes an Adapter of it. The module keeps its own copies of weights, its own optimizer and its own ``reset()``;
passes, updates, times and results are measured as for any method. The global generators are seeded from the trial's own
before the module is built and before each batch, so that trials do not depend on each other.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from tta_bench.adapter import Adapter, Config, Needs, SourceRequest, constant

Build = Callable[..., nn.Module]
_BACKWARD = Needs(backward=True)
_ANY_LENGTH: Mapping[type, Any] = {list: list[Any], tuple: tuple[Any, ...], dict: dict[str, Any], type(None): Any}


class Wrapped(Adapter):
    """An Adapter around a published module; :func:`wrap` makes its subclasses."""

    build: ClassVar[Build]
    normalised: ClassVar[bool]
    own_reset: ClassVar[bool]
    source: ClassVar[SourceRequest | None]
    predictor: ClassVar[Any]
    shares_prepared = False  # the module is built from the source images

    def setup(self) -> None:
        self._pristine = None if self.own_reset else constant(copy.deepcopy(self._network))
        self._source: list[Tensor] = []
        self._used = False
        self._seed_of_build = self._draw()  # kept, so that a reset builds the same module and draws nothing
        if self.source is None:
            self._construct(())

    def source_request(self) -> SourceRequest | None:
        return self.source

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        """Build the module with the source images, which are kept if a reset builds it again."""
        self._construct(source if self.own_reset else self._kept(source))
        return {}

    def step(self, x: Tensor) -> Tensor:
        self._used = True
        _seed(self._draw())
        scores = self.module(self._input(x))
        if not isinstance(scores, Tensor):
            kind = type(self.module).__name__
            raise TypeError(f"forward() of {kind} returned {type(scores).__name__}, not a tensor of scores")
        return scores.detach().clone()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """What ``predict`` of :func:`wrap` returns."""
        scores: Tensor = self.predictor(self.module, self._input(x))
        return scores

    def remember(self) -> None:
        """Nothing: the module, or building it anew, restores the state."""

    def reset(self) -> None:
        """Call the module's own ``reset()``, or build it anew; nothing where no batch has come since."""
        if not self._used:
            return
        if self.own_reset:
            self.module.reset()  # type: ignore[operator]
        else:
            self._network = copy.deepcopy(self._pristine)
            self._construct(self._source)
        self._used = False

    @property
    def _network(self) -> Any:
        """What the module is built from: the network, or one that normalises its input."""
        return self.model.net if self.normalised else self.model

    @_network.setter
    def _network(self, network: Any) -> None:
        if self.normalised:
            self.model.net = network
        else:
            self.model = network

    def _input(self, x: Tensor) -> Tensor:
        return self.model.normalise(x) if self.normalised else x

    def _construct(self, source: Iterable[Tensor]) -> None:
        """Build the module from the network, as published code loads it: in eval mode, every weight with a gradient."""
        _seed(self._seed_of_build)
        network = self._network.eval().requires_grad_(True)
        batches = () if self.source is None else ([*map(self._input, source)],)
        self.module = self.build(network, self.config, *batches)
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"build() of {self.name!r} returned {type(self.module).__name__}, not a torch.nn.Module")
        if self.own_reset and not callable(getattr(self.module, "reset", None)):
            kind = type(self.module).__name__
            raise TypeError(f"{kind} has no reset(): write wrap({self.name!r}, …, reset='rebuild')")

    def _kept(self, source: Iterator[Tensor]) -> list[Tensor]:
        self._source = [*source]
        return self._source

    def _draw(self) -> int:
        """The next seed of the global generators, from the trial's own."""
        return int(torch.randint(2**31 - 1, (1,), generator=self.context.generator))


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def wrap(
    name: str, build: Build, *, hyperparameters: Mapping[str, Any] | type[Config] | None = None, normalised: bool = True,
    needs: Needs = _BACKWARD, reset: Literal["own", "rebuild"] = "own", source: SourceRequest | None = None,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    outputs: Literal["logits", "probabilities"] = "logits",
) -> type[Wrapped]:  # fmt: skip
    """A method from published code as it is: a module whose ``forward(x)`` adapts and returns the scores (B, C).

    Call it at the top level of a plugin's module: ``tent_authors = wrap("tent-authors", build)``.

    Args:
        name: the method's name in a suite.
        build: ``build(net, config)`` returns the module; with ``source``, ``build(net, config, batches)``. ``net`` is a
            deep copy of the source network in eval mode, all of whose parameters require a gradient.
        hyperparameters: names and defaults, which give the types; or a Config class.
        normalised: whether ``net`` takes normalised images; else it takes those in [0, 1] and normalises them itself.
        needs: requirements of the method.
        reset: "own" calls the module's ``reset()``; "rebuild" calls ``build`` again with a new copy.
        source: clean, unlabelled source images: a list of batches for ``build``, normalised as ``net`` takes them.
        predict: ``predict(module, x)`` returns scores without adapting. Without it, streams are skipped in which some
            batches are not adapted on.
        outputs: what ``forward`` returns, "logits" or "probabilities".

    Raises:
        ValueError: ``reset`` or a hyperparameter is not valid.
    """
    if reset not in ("own", "rebuild"):
        raise ValueError(f"reset must be 'own' or 'rebuild', it is {reset!r}")
    caller = sys._getframe(1).f_globals["__name__"]  # the plugin's module, to which the class belongs
    attributes = {
        "name": name,
        "__module__": caller,
        "__doc__": build.__doc__ or f"{name}: published code, wrapped.",
        "Config": _config(caller, hyperparameters),
        "needs": dataclasses.replace(needs, source_images=source is not None),
        "outputs": outputs,
        "predicts": predict is not None,
        "build": staticmethod(build),
        "normalised": normalised,
        "own_reset": reset == "own",
        "source": source,
        "predictor": None if predict is None else staticmethod(predict),
    }
    return type("".join(part.title() for part in name.replace("_", "-").split("-")), (Wrapped,), attributes)


def _config(module: str, hyperparameters: Mapping[str, Any] | type[Config] | None) -> type[Config]:
    """A Config with a field for each hyperparameter, of its default's type."""
    if isinstance(hyperparameters, type):
        return hyperparameters
    values = dict(hyperparameters or {})
    if taken := [field for field in values if hasattr(Config, field)]:
        raise ValueError(f"a hyperparameter cannot be called {taken[0]!r}: every Config has an attribute of that name")
    fields: Any = {field: (_ANY_LENGTH.get(type(value), type(value)), value) for field, value in values.items()}
    config: type[Config] = pydantic.create_model("Config", __base__=Config, __module__=module, **fields)
    try:
        config().model_dump_json()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the hyperparameters of wrap() must be numbers, texts, lists or mappings: {error}") from error
    return config
