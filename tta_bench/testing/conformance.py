"""The conformance suite: rules for every method, checked in seconds on the CPU.

Each rule is a function of a :class:`Bench` (a method with one small network) that yields violations. The rules run on
three random networks (BatchNorm and GroupNorm ResNets, a LayerNorm ViT) and real images (the embedded digits).
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tta_bench import optimizers
from tta_bench.adapter import Adapter, context_for
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.kinds.digits import load_split
from tta_bench.errors import Problem, UsageError, text_of
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.registry import Registry
from tta_bench.run.global_state import GlobalState
from tta_bench.run.loading import to_tensor
from tta_bench.run.meters import PassCounter, StepCounter
from tta_bench.testing import Secrets, find_leaks, prepared

BATCH = 8
_CPU = torch.device("cpu")
_RESNET = {"num_classes": 10, "layers": [1, 1, 1, 1]}
_GROUPS = {**_RESNET, "channels": [32] * 4, "norm_layer": "groupnorm"}
_VIT = {"num_classes": 10, "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
NETWORKS = {
    "batch": ModelSpec(
        name="batch", architecture="resnet18", options={**_RESNET, "channels": [8, 16, 16, 16]}, stem="cifar"
    ),
    "group": ModelSpec(name="group", architecture="resnet18", options=_GROUPS, stem="cifar"),
    "layer": ModelSpec(name="layer", architecture="vit_tiny_patch16_224", options=_VIT),
}


@dataclass(frozen=True)
class Finding:
    """A broken rule, the network ("batch", "group", "layer"), and a message with the numbers."""

    rule: str
    network: str
    message: str


@dataclass(frozen=True)
class ConformanceReport:
    """The result of :func:`check_method`.

    Attributes:
        findings: broken rules.
        skipped: network to the reason why the method skips it.
        rules: names of all rules.
        networks: names of all networks, skipped ones included.
    """

    findings: list[Finding]
    skipped: Mapping[str, str]
    rules: list[str]
    networks: list[str]


class Bench:
    """A method with one network: makes fresh adapters and batches."""

    def __init__(self, cls: type[Adapter], config: Mapping[str, Any], network: str, registry: Registry | None = None):
        self.cls, self.network = cls, network
        self.config = cls.Config.model_validate({**cls.example, **config}, context={"registry": registry})
        torch.manual_seed(0)
        net = build_network(NETWORKS[network]).requires_grad_(False)
        classifier: Any = net.get_classifier()  # type: ignore[operator]
        torch.nn.init.normal_(classifier.weight, std=0.5)  # spread the predictions
        self.model = SourceModel(net, (0.3,) * 3, (0.36,) * 3).eval()

    def adapter(self, batch_size: int = BATCH, model: SourceModel | None = None) -> Adapter:
        """A fresh adapter after ``setup`` and ``prepare``."""
        mine = copy.deepcopy(self.model if model is None else model)
        context = context_for(mine, batch_size, 32, _CPU, seed=0)
        return prepared(self.cls(mine, self.config, context), iter(self.batches(4, start=500)))

    def declines(self, batch_size: int = BATCH) -> str | None:
        """The method's reason to skip this network, or None."""
        return self.cls.skip(self.model, self.config, context_for(self.model, batch_size, 32, _CPU, seed=0))

    def batches(self, count: int, size: int = BATCH, start: int = 0) -> list[Tensor]:
        """Real digits in [0, 1]: ``count`` tensors (size, 3, 32, 32)."""
        images = _digits()
        return [images[start + i * size : start + (i + 1) * size].clone() for i in range(count)]


@functools.cache
def _digits() -> Tensor:
    return to_tensor(load_split().test_images.copy(), _CPU, torch.float32)


def _score_errors(scores: Any, batch: int, *, finite: bool = True, call: str = "step") -> Iterator[str]:
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (batch, 10):
        yield f"{call}() returned {shape}, expected ({batch}, 10)"
    elif finite and not scores.isfinite().all():
        yield f"{int((~scores.isfinite()).sum())} of {scores.numel()} scores are not finite"


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().nan_to_num(float("inf")).max()) for a, b in zip(one, other, strict=True))


def _steps(adapter: Adapter, batches: list[Tensor]) -> list[Tensor]:
    """Scores of each batch; the generator is reseeded, so that runs can be compared."""
    adapter.context.generator.manual_seed(0)
    return [adapter.step(x.clone()).detach().clone() for x in batches]


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Copies of all tensors of the adapter's networks, containers and own objects, by path; optimizers are left out."""
    own = {name: value for name, value in vars(adapter).items() if name not in ("context", "config", "_initial")}
    return {path: tensor.detach().clone() for path, tensor in _tensors_within("", own, set())}


def _tensors_within(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    if id(value) in seen or isinstance(value, Tensor | torch.optim.Optimizer | type | ModuleType):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        children: Any = value.state_dict().items()
    elif isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple | deque):
        children = enumerate(value)
    else:
        children = getattr(value, "__dict__", {}).items()
    for name, child in children:
        yield from _tensors_within(f"{path}.{name}" if path else str(name), child, seen)


# -- rules -------------------------------------------------------------------------------------------------------------


def global_state_is_left_alone(bench: Bench) -> Iterator[str]:
    """torch's flags, functions of torch, timm and the harness, threads, directory and environment stay unchanged.

    This rule is first, because such changes would affect the other rules.
    """
    batches = bench.batches(3)  # loading the digits sets environment variables
    state = GlobalState()
    adapter = bench.adapter()
    _steps(adapter, batches)
    optimizers.stats(adapter)
    if adapter.predicts:
        adapter.predict(batches[0])
    adapter.reset()
    yield from (f"changes {name}" for name in state.changes())


def scores_have_the_right_shape(bench: Bench) -> Iterator[str]:
    """Scores are finite and (B, C)."""
    adapter = bench.adapter()
    for x in bench.batches(3):
        yield from _score_errors(adapter.step(x), BATCH)


def deterministic(bench: Bench) -> Iterator[str]:
    """Two fresh adapters give the same bits, whatever the state of the global generators."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(_steps(bench.adapter(), bench.batches(3)))
    if largest := _difference(*runs):
        yield f"two fresh adapters differ by {largest:.3g}; draw from context.generator alone"


def reset_restores(bench: Bench) -> Iterator[str]:
    """After reset(), with the state in reset_keeps cleared, scores and all tensors equal a fresh adapter's.

    The tensors are those of teachers, statistics and memories, too, which may reach the scores much later.
    """
    used = bench.adapter()
    _steps(used, bench.batches(3))
    yield from _reset_as_fresh(bench, used)


def _reset_as_fresh(bench: Bench, used: Adapter) -> Iterator[str]:
    fresh = bench.adapter()
    kept = {path: copy.deepcopy(_at(used, path)) for path in used.reset_keeps}
    state = used.context.generator.get_state()
    used.reset()
    if not torch.equal(state, used.context.generator.get_state()):
        yield "reset() rewound context.generator: every shift would get the same draws"
    for path, before in kept.items():
        if not _same(before, _at(used, path)):
            yield f"reset_keeps names {path!r}, but reset() changed it"
        _clear(used, path, _at(fresh, path))
    initial, restored = _tensors(fresh), _tensors(used)
    if left := [path for path in restored if path not in initial]:
        yield f"after reset() {left[0]} is left, which a fresh adapter does not have"
    if differing := [path for path in initial if path not in restored or not _bitwise(initial[path], restored[path])]:
        yield f"after reset() {differing[0]} differs from a fresh adapter's"
    expected, actual = (_steps(adapter, bench.batches(3, start=100)) for adapter in (fresh, used))
    if largest := _difference(expected, actual):
        yield f"after reset() scores differ from a fresh adapter's by {largest:.3g}; does reset() miss some state?"


def _at(adapter: Adapter, path: str) -> Any:
    node: Any = adapter
    for name in path.split("."):
        node = getattr(node, name, None)
    return node


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return len(one) == len(other)
    return type(one) is type(other) and (not isinstance(one, int | float | str) or one == other)


def _clear(adapter: Adapter, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    owner = _at(adapter, ".".join(parents)) if parents else adapter
    now = getattr(owner, name)
    if isinstance(now, dict):
        now.clear()
        now.update(copy.deepcopy(value))
    else:
        setattr(owner, name, copy.deepcopy(value))


def predict_changes_nothing(bench: Bench) -> Iterator[str]:
    """predict() leaves every tensor of the adapter, statistics included, and all later scores unchanged."""
    predicting, reference = bench.adapter(), bench.adapter()
    actual, expected = [], []
    if not predicting.predicts:
        return
    for x, other in zip(bench.batches(3), bench.batches(3, start=200), strict=True):
        state = _tensors(predicting)
        predicting.predict(other)
        after = _tensors(predicting)
        changed = [name for name in state if name not in after or not _bitwise(state[name], after[name])]
        if changed:
            yield f"predict() changed {', '.join(changed[:3])}"
            return
        actual += _steps(predicting, [x])
        expected += _steps(reference, [x])
    if largest := _difference(expected, actual):
        yield f"scores after predict() differ by {largest:.3g}"


def _bitwise(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def scores_are_of_the_declared_kind(bench: Bench) -> Iterator[str]:
    """step() and predict() return what ``outputs`` declares: probabilities have rows that sum to 1, logits have not."""
    adapter = bench.adapter()
    first, second = bench.batches(2)
    returned = [("step", adapter.step(first))]
    returned += [("predict", adapter.predict(second))] if adapter.predicts else []
    for call, scores in returned:
        errors = [*_score_errors(scores, BATCH, call=call)]
        yield from errors
        kind = "probabilities" if not errors and _is_distribution(scores) else "logits"
        if not errors and kind != adapter.outputs:
            yield f"outputs is {adapter.outputs!r}, but {call}() returned {kind}"


def _is_distribution(scores: Tensor) -> bool:
    return bool((scores >= 0).all() and (scores.sum(1) - 1).abs().max() < 1e-3)


def no_look_ahead(bench: Bench) -> Iterator[str]:
    """The scores returned for a batch do not change during later batches."""
    first, second = bench.batches(2)
    adapter = bench.adapter()
    returned = adapter.step(first)
    before = returned.detach().clone()
    adapter.step(second)
    if largest := _difference([before], [returned.detach()]):
        yield f"the scores returned for the first batch changed by {largest:.3g} during the second; return a copy"


def other_batch_sizes(bench: Bench) -> Iterator[str]:
    """Batch size 1, and a last batch of another size."""
    adapter = bench.adapter()
    adapter.step(bench.batches(1)[0])
    short = bench.batches(1, size=3)[0]
    act = adapter.step if adapter.needs.min_batch <= 3 else adapter.predict
    if act == adapter.step or adapter.predicts:
        yield from (f"a last batch of 3: {error}" for error in _score_errors(act(short), 3))
    if bench.declines(batch_size=1) is None:
        single = bench.adapter(batch_size=1)
        for x in bench.batches(2, size=1):
            yield from (f"batch size 1: {error}" for error in _score_errors(single.step(x), 1))


def everything_filtered_out(bench: Bench) -> Iterator[str]:
    """A batch without reliable predictions (all classes equally likely) leaves scores and weights finite."""
    uniform = copy.deepcopy(bench.model)
    classifier: Any = uniform.classifier()
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    adapter = bench.adapter(model=uniform)
    for x in bench.batches(2):
        yield from _score_errors(adapter.step(x), BATCH)
    bad = [name for name, p in adapter.model.named_parameters() if not p.isfinite().all()]
    if bad:
        yield f"{bad[0]} is not finite afterwards"


def constant_images(bench: Bench) -> Iterator[str]:
    """A batch of one grey image repeated, and one of black, give finite scores."""
    adapter = bench.adapter()
    for value in (0.5, 0.0):
        for error in _score_errors(adapter.step(torch.full((BATCH, 3, 32, 32), value)), BATCH):
            yield f"images of {value}: {error}"


def nan_is_healed_by_reset(bench: Bench) -> Iterator[str]:
    """After a batch whose scores are NaN, reset() restores everything."""
    adapter = bench.adapter()
    poisoned = bench.batches(1)[0]
    poisoned[0] = float("nan")
    adapter.step(poisoned)
    yield from _reset_as_fresh(bench, adapter)


def needs_are_true(bench: Bench) -> Iterator[str]:
    """The method does what it declares in ``needs``."""
    pristine = copy.deepcopy(bench.model)
    counter, steps = PassCounter(pristine), StepCounter()
    with steps.watching():
        adapter = bench.adapter(model=pristine)
        counter.read(), steps.read()
        _steps(adapter, bench.batches(3))
    needs = optimizers.needs(adapter)
    (_, backwarded), updates = counter.read(), steps.read()
    if not needs.backward and (backwarded or updates):
        yield f"declared backward-free, but {backwarded} images were backwarded and {updates} updates taken"
    asks = adapter.source_request() is not None
    if asks != needs.source_images:
        does = "asks for some" if asks else "is None"
        yield f"needs.source_images is {needs.source_images}, but source_request() {does}"


def only_declared_parameters_change(bench: Bench) -> Iterator[str]:
    """Parameters that require no gradient after setup(), and all tensors of constant networks, keep their values."""
    adapter = bench.adapter()
    now = {name: p for name, p in adapter.model.named_parameters() if not p.requires_grad} | _constant(adapter)
    frozen = {name: value.detach().clone() for name, value in now.items()}
    _steps(adapter, bench.batches(3))
    for name, before in frozen.items():
        if not torch.equal(before, now[name].detach()):
            change = float((before - now[name].detach()).abs().max())
            yield f"{name} requires no gradient, yet changed by {change:.3g}"
            return


def _constant(adapter: Adapter) -> dict[str, Tensor]:
    networks = {
        k: v for k, v in vars(adapter).items() if isinstance(v, nn.Module) and getattr(v, "survives_reset", False)
    }
    return {
        f"{attribute}.{name}": value for attribute, net in networks.items() for name, value in net.state_dict().items()
    }


def no_secret_in_reach(bench: Bench) -> Iterator[str]:
    """No label, corruption name or later image is reachable from the adapter."""
    split = load_split()
    later = split.test_images[4 * BATCH : 6 * BATCH]
    secrets = Secrets([split.test_labels, split.test_labels[: 4 * BATCH]], frozenset(), frozenset(NAMES), later)
    adapter = bench.adapter()
    _steps(adapter, bench.batches(4))
    yield from find_leaks({"adapter": adapter}, secrets)


def stats_keep_their_keys(bench: Bench) -> Iterator[str]:
    """stats() returns numbers, or 0-dim tensors, with the same keys after every step."""
    adapter, seen = bench.adapter(), set[tuple[str, ...]]()
    for x in bench.batches(3):
        adapter.step(x)
        stats = optimizers.stats(adapter)
        seen.add(tuple(sorted(stats)))
        if bad := [key for key, value in stats.items() if not _is_number(value)]:
            yield f"stats()[{bad[0]!r}] is not a number"
            return
    if len(seen) > 1:
        yield f"stats() changed its keys: {' then '.join(str(list(keys)) for keys in seen)}"


def _is_number(value: Any) -> bool:
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


RULES: list[Callable[[Bench], Iterator[str]]] = [
    global_state_is_left_alone,
    scores_have_the_right_shape, deterministic, reset_restores, predict_changes_nothing, scores_are_of_the_declared_kind,
    no_look_ahead, other_batch_sizes, everything_filtered_out, constant_images, nan_is_healed_by_reset, needs_are_true,
    only_declared_parameters_change, no_secret_in_reach, stats_keep_their_keys,
]  # fmt: skip


def check_method(
    cls: type[Adapter], config: Mapping[str, Any] | None = None, registry: Registry | None = None
) -> ConformanceReport:
    """Check a method against every rule.

    Args:
        cls: the Adapter class.
        config: fields of its Config, such as required ones.
        registry: plugins that they may name; the installed ones by default.

    Raises:
        UsageError: its Config refuses ``config``.
    """
    findings, skipped = [], {}
    for network in NETWORKS:
        try:
            bench = Bench(cls, config or {}, network, registry)
        except ValueError as error:
            hint = "give the required fields: --config KEY=VALUE"
            raise UsageError(
                Problem(f"{cls.__name__}.Config refuses {dict(config or {})}: {error}", hint=hint)
            ) from error
        if reason := bench.declines():
            skipped[network] = reason
            continue
        findings += [Finding(rule.__name__, network, message) for rule in RULES for message in _run(rule, bench)]
    if len(skipped) == len(NETWORKS):
        findings.append(Finding("runs_somewhere", "all", f"skipped everywhere: {'; '.join(skipped.values())}"))
    return ConformanceReport(findings, skipped, [rule.__name__ for rule in RULES], list(NETWORKS))


def _run(rule: Callable[[Bench], Iterator[str]], bench: Bench) -> list[str]:
    try:
        return list(rule(bench))
    except (Exception, SystemExit) as error:  # an exception of the method breaks the rule
        return [f"raised {type(error).__name__}: {text_of(error)}"]
