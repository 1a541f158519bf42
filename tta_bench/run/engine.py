"""The engine of a trial: computes the passes through its networks in bfloat16, or compiled.

A method calls ``self.model(x)``, ``features``, ``embeddings``, ``token_features``, ``normed_tokens`` or ``stage_features``
and takes losses of what they return, as ever. Under an engine the matrix products inside run in the precision's dtype, and
the outputs are float32 again; compiled, a pass and its backward pass are one CUDA graph each. Losses, filters, optimizers
and scores stay outside.

Compiled are the passes of full batches, and of the numbers of images that a method names in ``compiled_batches``, once for
each set of adapted parameters: a short last batch, the part of a batch that passed a filter, and the head on its own run
as written. A child keeps what it compiled for all of its trials, and
Inductor's code stays on disk.
"""

from __future__ import annotations

import collections
import itertools
import os
import pathlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tta_bench import optimizers
from tta_bench.adapter import Adapter
from tta_bench.models import Pass, SourceModel
from tta_bench.precision import PRECISIONS, Mode
from tta_bench.run.meters import PassCounter
from tta_bench.snapshot import Untouched

_COLD = 3  # calls after a compilation that are not timed: a CUDA graph warms up in the first, is recorded in the second
_MOST_COMPILATIONS = 4  # of a pass with one batch size in a trial; with more, the network is another in each call
# Outputs of passes through which gradients come to the classifier: the logits, and the classifier's input. A pass that is
# not named has the logits first, and then features from before the classifier.
_AT_CLASSIFIER: dict[Pass, int] = {SourceModel._features: 0, SourceModel._embeddings: 2}


class Engine:
    """How the networks of a child compute their passes.

    Args:
        mode: the precision, and whether to compile.
        device: of the networks.
        counter: of their passes; hooks are not part of compiled code, so that the engine counts for them.
        obstacle: why nothing can be compiled in this process, or empty.
    """

    def __init__(self, mode: Mode, device: torch.device, counter: PassCounter, obstacle: str = ""):
        self.survives_reset = Untouched()
        self._precision = PRECISIONS[mode.precision]
        self._device, self._counter = device, counter
        self._compiles, self._obstacle = mode.compile == "on" and not obstacle, obstacle
        self._cold_calls = _COLD if device.type == "cuda" else 0
        # passes whose gradients may still come: one backward pass empties it, since torch, too, waits for no second
        self._pending = weakref.WeakSet[Any]()
        self._compiled: dict[Pass, Callable[[SourceModel, Tensor], Any]] = {}
        if self._compiles:
            _configure_compiler()
        self.begin(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self

    @property
    def is_needed(self) -> bool:
        """Whether it computes passes in another way than they are written."""
        return self._compiles or self._precision.matrices is not None

    def facts(self) -> dict[str, Any]:
        """Why passes of this trial were not compiled, as a fact."""
        reasons = dict.fromkeys(filter(None, [self._obstacle, *self._obstacles]))
        return {"not_compiled": "; ".join(reasons)} if reasons else {}

    def begin(self, batch_size: int) -> None:
        """Begin a trial with this nominal batch size."""
        self._sizes = {batch_size}  # of the batches that are compiled
        self._calls = collections.Counter[tuple[Any, ...]]()
        self._compilations = collections.Counter[tuple[Any, ...]]()
        self._is_full = False  # whether the last pass had such a number of images
        self._cold = False
        self._pending.clear()
        self._obstacles = list[str]()  # why passes run as written

    def adjust(self, adapter: Adapter) -> None:
        """Adjust a method that has just been set up: its frozen weights, and the parts of it that can be compiled."""
        self.store_frozen(adapter)
        if self._compiles:
            self._sizes.update(adapter.compiled_batches)
            for owner in (adapter, *optimizers.found_on(adapter).values()):
                for name in getattr(owner, "compiled_parts", ()):
                    setattr(owner, name, self._part(name.strip("_"), getattr(owner, name)))

    def store_frozen(self, adapter: Adapter) -> None:
        """Store the frozen weights of a method's model, and of its networks that never change, in the matrices' dtype.

        Normalisation layers, classifiers, and whatever requires a gradient keep theirs. So do other networks of the
        method: a teacher that follows its student needs each of its digits.
        """
        dtype = self._precision.matrices
        if dtype is None:
            return
        models = (value for value in vars(adapter).values() if isinstance(value, SourceModel))
        constant = [model for model in models if isinstance(getattr(model, "survives_reset", None), Untouched)]
        for parameter in itertools.chain.from_iterable(map(_storable, [adapter.model, *constant])):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def __call__(self, model: SourceModel, computes: Pass, x: Tensor) -> Any:
        """The outputs of a pass."""
        if not self._compiles or computes is SourceModel._head or torch.compiler.is_compiling():
            return self._as_written(model, computes, x)
        key = (computes, x.shape, torch.is_grad_enabled())
        self._calls[key] += 1
        self._is_full = len(x) in self._sizes
        if not self._is_full or self._compilations[key] > _MOST_COMPILATIONS:
            return self._as_written(model, computes, x)
        before = _graphs()
        if not self._pending:  # else torch records the graph anew behind a pass that had no backward pass
            torch.compiler.cudagraph_mark_step_begin()
        try:
            outputs = self._function(computes)(model, x)
        except Exception as error:  # of many kinds; the method's own comes again from the pass as written
            return self._fall_back(key, error, model, x)
        if compiled := _graphs() > before:
            self._calls[key] = 1
            self._compilations[key] += 1
            if self._compilations[key] > _MOST_COMPILATIONS:
                self._obstacles.append(f"{computes.__name__.strip('_')}: compiled anew at each call")
        self._cold |= compiled or self._calls[key] <= self._cold_calls
        return self._handed_out(computes, outputs, x)

    def was_cold(self) -> bool:
        """Whether code was compiled, or a graph warmed up or recorded, since the last call."""
        cold, self._cold = self._cold, False
        return cold

    # -- as written ----------------------------------------------------------------------------------------------------

    def _as_written(self, model: SourceModel, computes: Pass, x: Tensor) -> Any:
        if self._precision.matrices is None:
            return computes(model, x)
        with torch.autocast(self._device.type, self._precision.matrices):
            outputs = computes(model, x)
        return _mapped(lambda tensor: tensor.to(self._precision.dtype), outputs)

    # -- compiled ------------------------------------------------------------------------------------------------------

    def _function(self, computes: Pass) -> Callable[[SourceModel, Tensor], Any]:
        if computes not in self._compiled:
            mode = "reduce-overhead" if self._device.type == "cuda" else None
            self._compiled[computes] = torch.compile(
                _named(computes, self._as_written), fullgraph=True, dynamic=False, mode=mode
            )
        return self._compiled[computes]

    def _fall_back(self, key: tuple[Any, ...], error: Exception, model: SourceModel, x: Tensor) -> Any:
        """The pass as written, now and for the rest of the trial; the row says why."""
        computes = key[0]
        outputs = self._as_written(model, computes, x)  # if it fails, too, that is the method's failure
        self._compilations[key] = _MOST_COMPILATIONS + 1
        self._report(computes.__name__.strip("_"), error)
        return outputs

    def _handed_out(self, computes: Pass, outputs: Any, x: Tensor) -> Any:
        """Copies of a graph's outputs, which its next replay overwrites; gradients that come back are counted."""
        counted = _AT_CLASSIFIER.get(computes, 1)
        self._counter.add_forwarded(len(x), at_classifier=counted > 0)
        copies = iter(_Copies.apply(self._counter, self._pending, counted, *_leaves(outputs)))
        return _mapped(lambda _: next(copies), outputs)

    # -- other code ----------------------------------------------------------------------------------------------------

    def _part(self, name: str, as_written: Callable[..., Any]) -> Callable[..., Any]:
        """A function, compiled; as written after a pass of a short batch, and from the first failure on."""
        compiled = torch.compile(as_written, fullgraph=True, dynamic=False)
        fails = False

        def part(*inputs: Tensor) -> Any:
            nonlocal fails
            before = _graphs()
            if self._is_full and not fails:
                try:
                    return compiled(*inputs)
                except Exception as error:
                    fails = True
                    self._report(name, error)
                finally:
                    self._cold |= _graphs() > before
            return as_written(*inputs)

        return part

    def _report(self, name: str, error: Exception) -> None:
        self._obstacles.append(f"{name}: {_reason(error)}")
        self._cold = True


class _Copies(torch.autograd.Function):
    """Copies of outputs that have a row for each image.

    In the first ``counted`` of them an image counts where the gradient of its rows is not all zero. The pass is one of
    ``pending`` until gradients come to any pass, or nothing is left that could send some to this one.
    """

    @staticmethod
    def forward(
        ctx: Any, counter: PassCounter, pending: weakref.WeakSet[Any], counted: int, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.counter, ctx.pending, ctx.counted = counter, pending, counted
        pending.add(ctx)
        ctx.set_materialize_grads(False)
        return tuple(torch._foreach_mul(outputs, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.pending.clear()
        rows = [gradient.flatten(1).any(1) for gradient in gradients[: ctx.counted] if gradient is not None]
        if rows:
            ctx.counter.add_backwarded(torch.stack(rows).any(0))
        return None, None, None, *gradients


def _storable(model: SourceModel) -> Iterator[nn.Parameter]:
    """The parameters of all layers but normalisation and classifiers, which methods call on their own."""
    classifiers = model.classifiers()
    for module in model.net.modules():
        if SourceModel.norm_kind(module) is None and not any(module is each for each in classifiers):
            yield from module.parameters(recurse=False)


def _named(computes: Pass, as_written: Callable[..., Any]) -> Callable[[SourceModel, Tensor], Any]:
    def compute(model: SourceModel, x: Tensor) -> Any:
        return as_written(model, computes, x)

    return compute


def _leaves(outputs: Any) -> Iterator[Tensor]:
    """The tensors of a pass's outputs, in the order of :func:`_mapped`."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        yield from itertools.chain.from_iterable(map(_leaves, outputs))


def _mapped(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Outputs with a function applied to each tensor."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    return type(outputs)(_mapped(function, each) for each in outputs)


def _reason(error: Exception) -> str:
    """An error of the compiler in one line, without the paragraphs of advice that follow."""
    paragraph = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {' '.join(paragraph.split()):.200}"


def _graphs() -> int:
    """How many graphs this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def prepare_compiler(device: torch.device, folder: pathlib.Path) -> str:
    """Set up torch's compiler in this process: code is kept in ``folder``; its own processes and threads are started.

    Returns:
        Why nothing can be compiled here, such as the lack of a C++ compiler; or empty.
    """
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[variable] = str(folder / name)
    _configure_compiler()
    warm = torch.compile(lambda x: torch.sin(x) + 1, dynamic=False)
    try:
        warm(torch.zeros(8, device=device))
    except Exception as error:
        return _reason(error)
    return ""


def _configure_compiler() -> None:
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    # by default a hook that a method registers after a pass was compiled is not noticed, and the pass goes on without it
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for name in ("recompile_limit", "cache_size_limit"):  # the second until torch 2.6
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    if hasattr(torch._inductor.config.triton, "cudagraph_unexpected_rerecord_limit"):  # each trial has new weights
        torch._inductor.config.triton.cudagraph_unexpected_rerecord_limit = 10**9
    # a backward pass is compiled with its forward pass, where the engine can fall back; not in older versions of torch
    if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._inductor.config.fx_graph_cache = True
    torch._functorch.config.enable_autograd_cache = True
