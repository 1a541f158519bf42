"""FOA equals the published code, number by number, on reference trajectories; its prompts, its CMA-ES, and what it costs."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from networks import NORM, SPECS, batches, ready, small_model
from pydantic import ValidationError
from torch import Tensor
from trajectories import play

from tta_bench.adapter import context_for
from tta_bench.methods import foa, prompts
from tta_bench.methods.evolution import EvolutionStrategy, import_cma
from tta_bench.methods.foa import Foa
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run.meters import PassCounter, StepCounter

CASES = ["foa.vit_narrow", "foa_single_prompt.vit_ln", "foa_small.vit_narrow"]
SMALL = {"num_prompts": 2, "popsize": 5}


def prepared(model: SourceModel | None = None, **config: Any) -> Any:
    """An adapter after ``prepare`` and the reset that follows it, as the runner makes it."""
    adapter: Any = ready(Foa, model or small_model("layer"), **(SMALL | config))
    result = adapter.prepare(iter(batches(4, seed=9)))
    adapter.reset()
    adapter.prepared = result
    return adapter


class Numbers:
    """What FOA computed in each batch."""

    def __init__(self) -> None:
        self.prompts, self.fitness, self.best = list[Tensor](), list[Tensor](), list[int]()
        self.history, self.sigma = list[Tensor](), list[float]()

    def __call__(self, adapter: Any) -> None:
        self.prompts.append(adapter.candidates)
        self.fitness.append(adapter.fitness)
        self.best.append(adapter.best)
        self.history.append(adapter.history.clone())
        self.sigma.append(adapter.strategy.sigma)

    def differences(self, arrays: Any) -> dict[str, float]:
        """The largest difference of each number from the stored one."""
        own = {name: torch.stack(getattr(self, name)).numpy() for name in ("prompts", "fitness", "history")}
        own |= {"sigma": np.array(self.sigma), "best": np.array(self.best)}
        own["initial_prompts"] = own["prompts"][0, -1].reshape(arrays["initial_prompts"].shape)
        return {name: float(np.abs(value - arrays[name]).max()) for name, value in own.items()}


# -- trajectories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_reference_trajectory_is_reproduced(case: str) -> None:
    numbers = Numbers()
    scores, adapter, _, arrays, _ = play(case, after_step=numbers)
    assert scores.shape == arrays["scores"].shape
    assert np.abs(scores - arrays["scores"]).max() < 1e-8
    assert {name: value for name, value in numbers.differences(arrays).items() if value >= 1e-8} == {}
    for name in ("mean", "std"):
        assert np.abs(adapter.prepared[name].numpy() - arrays[f"source_{name}"]).max() < 1e-8


@pytest.mark.parametrize("case", ["foa.vit_narrow", "foa_small.vit_narrow"])
def test_in_single_precision_a_trajectory_stays_near(case: str) -> None:
    numbers = Numbers()
    scores, adapter, _, arrays, _ = play(case, torch.float32, numbers)
    assert adapter.model.mean.dtype == torch.float32
    assert numbers.best == arrays["best"].tolist()
    assert 0 < np.abs(scores - arrays["scores"]).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"fitness_lambda": 0.41}, {"cma_seed": 8}, {"cma_seed": None}, {"popsize": 11}, {"num_prompts": 2}],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_a_small_change(change: dict[str, Any]) -> None:
    scores, _, _, arrays, _ = play("foa_small.vit_narrow", **change)
    assert np.abs(scores - arrays["scores"]).max() > 1e-6


# -- the fitness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "passes"), [(1, 11), (11, 6), (12, 4), (10**6, 1)])
def test_candidates_forwarded_together_or_one_by_one_give_the_same(
    images: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foa, "IMAGES_AT_ONCE", {"cpu": images})
    sizes = list[int]()

    class Watched(Foa):
        @torch.no_grad()
        def step(self, x: Tensor) -> Tensor:
            hook = self.model.net.register_forward_pre_hook(lambda _m, given: sizes.append(len(given[0])))
            scores = super().step(x)
            hook.remove()
            return scores

    numbers = Numbers()
    scores, _, _, arrays, _ = play("foa_small.vit_narrow", after_step=numbers, method=Watched)  # batches of 4
    assert np.abs(scores - arrays["scores"]).max() < 1e-10
    assert max(numbers.differences(arrays).values()) < 1e-10
    assert len(sizes) == 12 * passes
    assert sum(sizes) == 12 * 11 * 4


def by_hand(model: SourceModel, x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of a batch with prompts (P, D), block by block."""
    net: Any = model.net
    tokens = net._pos_embed(net.patch_embed(model.normalise(x)))
    tokens = torch.cat([tokens[:, :1], own.expand(len(x), -1, -1), tokens[:, 1:]], 1)
    features = []
    for block, norm in zip(net.blocks, [*(b.norm1 for b in net.blocks[1:]), net.norm], strict=True):
        tokens = block(tokens)
        features.append(norm(tokens)[:, 0])
    return net.head(features[-1]), torch.cat(features, 1)


@pytest.mark.parametrize("size", [8, 3])
def test_the_fitness_is_that_of_equation_5_whatever_the_size_of_the_batch(size: int) -> None:
    model = small_model("layer").double()
    adapter: Any = ready(Foa, model, **SMALL)
    adapter.prepared = adapter.prepare(x.double() for x in batches(4, seed=9))
    mean, std = adapter.prepared["mean"], adapter.prepared["std"]
    x = batches(1, size)[0].double()
    adapter.step(x)
    for candidate, fitness in zip(adapter.candidates, adapter.fitness, strict=True):
        logits, features = by_hand(model, x, candidate.view(2, 24))
        entropy = torch.distributions.Categorical(logits=logits).entropy().sum()
        gaps = (features.std(0) - std).square().sum() + (features.mean(0) - mean).square().sum()
        assert float(fitness) == pytest.approx(float(entropy + 0.4 * size / 64 * gaps), rel=1e-9)


def test_the_scores_are_those_of_the_best_prompts_with_the_shift_of_earlier_batches() -> None:
    model = small_model("layer").double()
    adapter: Any = ready(Foa, model, **SMALL)
    adapter.prepared = adapter.prepare(x.double() for x in batches(4, seed=9))
    first, second = (x.double() for x in batches(2))
    classifier, history = model.classifier(), torch.zeros(24, dtype=torch.float64)
    for number, x in enumerate((first, second, first)):
        scores = adapter.step(x)
        tokens = torch.stack([by_hand(model, x, c.view(2, 24))[1][:, -24:] for c in adapter.candidates])
        assert adapter.best == int(adapter.fitness.argmin())
        assert torch.equal(adapter.best_prompts, adapter.candidates[adapter.best])
        shift = adapter.prepared["mean"][-24:] - history if number else 0.0
        assert torch.allclose(scores, classifier(tokens[adapter.best] + shift), atol=1e-10)
        history = tokens.mean((0, 1)) if not number else 0.9 * history + 0.1 * tokens.mean((0, 1))
        assert torch.allclose(adapter.history, history, atol=1e-10)


def test_the_previous_best_is_a_candidate_again_as_they_were_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[list[np.ndarray]]()
    tell = EvolutionStrategy.tell

    def watched(strategy: EvolutionStrategy, vectors: Any, fitness: Any) -> None:
        told.append(vectors)
        tell(strategy, vectors, fitness)

    monkeypatch.setattr(EvolutionStrategy, "tell", watched)
    adapter, best = prepared(), None
    for x in batches(3):
        adapter.step(x)
        [*asked, previous] = told.pop()
        assert all(vector.dtype == np.float64 for vector in (*asked, previous))
        assert np.array_equal(np.stack([*asked, previous]).astype(np.float32), adapter.candidates)
        assert not np.array_equal(np.stack(asked), adapter.candidates[:-1]), "CMA-ES keeps what it drew"
        assert np.array_equal(previous, adapter.candidates[-1]), "the rounded vector is offered again"
        assert best is None or torch.equal(adapter.candidates[-1], best)
        best = adapter.best_prompts.clone()


# -- randomness, reset, predict ----------------------------------------------------------------------------------------


def drawn_prompts(generator: torch.Generator) -> Tensor:
    bound = math.sqrt(6 / (3 * 8 * 8 + 24))
    return torch.empty((1, 2, 24), dtype=torch.float32).uniform_(-bound, bound, generator=generator).flatten()


def test_the_first_batch_after_the_start_and_after_each_reset_draws_prompts() -> None:
    adapter = prepared()
    generator, own = adapter.context.generator, torch.Generator().manual_seed(0)
    assert torch.equal(generator.get_state(), own.get_state()), "neither setup, prepare nor reset has drawn"
    first, second = batches(2)
    started = []
    for _ in range(2):
        adapter.step(first)
        assert torch.equal(adapter.candidates[-1], drawn_prompts(own))
        started.append(adapter.candidates[:-1].clone())
        adapter.step(second)
        assert torch.equal(generator.get_state(), own.get_state()), "one draw"
        assert adapter.history is not None
        adapter.reset()
        assert (adapter.strategy, adapter.history, adapter.best) == (None, None, -1)
        assert torch.equal(generator.get_state(), own.get_state()), "not set back"
    assert torch.equal(*started), "CMA-ES starts again with its seed"


def test_without_a_seed_of_its_own_cma_es_gets_one_from_the_generator_before_the_prompts() -> None:
    adapter, own = prepared(cma_seed=None), torch.Generator().manual_seed(0)
    [x] = batches(1)
    for _ in range(2):
        adapter.step(x)
        seed = int(torch.randint(1, 2**31 - 1, (1,), generator=own))
        assert torch.equal(adapter.candidates[-1], drawn_prompts(own))
        assert np.array_equal(adapter.candidates[:-1].numpy(), EvolutionStrategy(48, 5, seed).ask().astype(np.float32))
        adapter.reset()


def test_predict_uses_the_best_prompts_and_the_shift_and_changes_nothing() -> None:
    pristine = small_model("layer")
    counter = PassCounter(pristine)
    adapter = prepared(copy.deepcopy(pristine))
    first, second = batches(2)
    assert torch.equal(adapter.predict(first), adapter.model(first)), "the source model before the first batch"
    adapter.step(first)
    drawn, numpys = adapter.context.generator.get_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    state = {name: value.clone() for name, value in vars(adapter).items() if isinstance(value, Tensor)}
    counter.read()
    scores = adapter.predict(second)
    assert counter.read() == (8, 0)
    own = adapter.best_prompts.view(2, 24)
    token = by_hand(adapter.model, second, own)[1][:, -24:] + adapter.prepared["mean"][-24:] - adapter.history
    assert torch.allclose(scores, adapter.model.classifier()(token), atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in vars(adapter).items() if isinstance(value, Tensor))
    assert torch.equal(adapter.context.generator.get_state(), drawn)
    assert np.random.get_state()[1].tolist() == numpys  # type: ignore[index,union-attr]
    never = prepared()
    for x in (first, second):
        expected = never.step(x)
    assert torch.equal(adapter.step(second), expected)
    assert not adapter.model.net._modules["norm_pre"]._forward_pre_hooks, "no prompts are left in the network"  # type: ignore[union-attr]


# -- batches that teach nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nan", "single"])
@pytest.mark.filterwarnings("ignore:var_mean")
def test_a_batch_without_a_fitness_gets_scores_and_teaches_nothing(bad: str) -> None:
    adapter, spared = prepared(), prepared()
    first, second, third = batches(3)
    for each in (adapter, spared):
        each.step(first)
    if bad == "nan":
        second[0] = float("nan")
    else:
        second = second[:1]
    expected = adapter.predict(second)
    scores = adapter.step(second)
    assert torch.allclose(scores, expected, atol=1e-5, equal_nan=True)
    assert int(scores.isnan().any(1).sum()) == (bad == "nan")
    assert (adapter.fitness.isnan().all(), adapter.stats()["best"]) == (True, -1)
    assert math.isnan(adapter.stats()["best_fitness"])
    assert torch.equal(adapter.step(third), spared.step(third))


def test_a_candidate_without_a_fitness_is_never_the_best() -> None:
    class Partly(Foa):
        def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
            fitness, tokens = super()._evaluate(x)
            return fitness.index_fill(0, fitness.argsort()[:3], float("nan")), tokens

    [x] = batches(1)
    adapter: Any = ready(Partly, small_model("layer"), **SMALL)
    adapter.prepared = adapter.prepare(iter(batches(4, seed=9)))
    with pytest.warns(UserWarning, match="set to the median"):
        assert adapter.step(x).isfinite().all()
    assert adapter.fitness.isnan().sum() == 3
    assert adapter.stats()["best_fitness"] == min(f for f in adapter.fitness.tolist() if f == f)


def test_statistics_have_the_same_keys_before_and_after_a_batch() -> None:
    adapter = prepared()
    assert [str(v) for v in adapter.stats().values()] == ["nan", "-1.0", "nan"]
    adapter.step(batches(1)[0])
    stats = adapter.stats()
    assert list(stats) == ["best_fitness", "best", "sigma"]
    assert stats["best_fitness"] == float(adapter.fitness.min())
    assert stats["sigma"] == adapter.strategy.sigma != 1


# -- costs -------------------------------------------------------------------------------------------------------------


def test_a_batch_costs_a_forward_for_each_candidate_and_one_more_and_nothing_else() -> None:
    pristine = small_model("layer")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter: Any = ready(Foa, copy.deepcopy(pristine), num_prompts=1)
    adapter.prepared = adapter.prepare(iter(batches(2)))
    assert counter.read() == (16, 0)
    weights = copy.deepcopy(adapter.model.state_dict())
    with steps.watching():
        for x in batches(2):
            adapter.step(x)
    assert (counter.read(), steps.read()) == ((2 * 28 * 8, 0), 0)
    assert all(torch.equal(value, weights[name]) for name, value in adapter.model.state_dict().items())
    assert not any(p.requires_grad for p in adapter.model.parameters())


# -- CMA-ES ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 320])  # from 300 on, the package draws in tell, too
def test_cma_es_draws_as_if_it_had_seeded_numpy_and_leaves_numpys_generator_alone(size: int) -> None:
    fitness = [float(i * 7 % 11) for i in range(11)]
    outside = np.random.get_state()
    np.random.seed(7)
    options = {"seed": 7, "popsize": 10, "maxiter": -1, "verbose": -1}
    published, extra = import_cma().CMAEvolutionStrategy(np.zeros(size), 1, options), np.full(size, 0.01)
    expected = []
    for _ in range(7):
        expected.append(published.ask())
        published.tell([*expected[-1], extra], [*fitness])
    np.random.set_state(outside)
    strategy = EvolutionStrategy(size, 10, seed=7)
    for generation in expected:
        asked = strategy.ask()
        assert np.array_equal(asked, generation)
        assert strategy.ask() is asked, "the same until it is told"
        strategy.tell([*asked, extra], fitness)
    assert strategy.sigma == published.sigma
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(outside, after, strict=True))


def test_the_method_is_loaded_without_cma_and_importing_that_changes_no_global_state() -> None:
    code = """
import os, random, sys, threading, warnings
import numpy as np
from tta_bench.methods import evolution, foa
assert "cma" not in sys.modules
def state():
    return (repr(np.random.get_state()), np.get_printoptions(), np.geterr(), list(warnings.filters), random.getstate(),
            dict(os.environ), os.listdir(), [t.name for t in threading.enumerate()])
before = state()
evolution.import_cma()
assert "cma" in sys.modules
for now, then in zip(state(), before):
    assert now == then, (now, then)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_package_the_method_is_skipped_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name == "cma":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    assert reason(small_model("layer")) is None
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert reason(small_model("layer")) == "not installed: pip install cma"


# -- networks ----------------------------------------------------------------------------------------------------------


def reason(model: SourceModel, batch_size: int = 8) -> str | None:
    return Foa.skip(model, Foa.Config(), context_for(model, batch_size, 32, torch.device("cpu"), 0))


def vit(architecture: str = "vit_tiny_patch16_224", **options: Any) -> SourceModel:
    values = {**SPECS["layer"].options, **options}
    net = build_network(ModelSpec(name="vit", architecture=architecture, options=values))
    return SourceModel(net.requires_grad_(False), NORM, NORM).eval()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: vit(), None),
        (lambda: vit("vit_base_patch32_clip_224"), None),  # norm_pre is a LayerNorm
        (lambda: vit(reg_tokens=4), "the network has 5 tokens before the patches, not the class token alone"),
        (lambda: vit(class_token=False, global_pool="avg"), "the model has no class token"),
        (lambda: vit(global_pool="avg"), "the network does not classify its class token as the final norm returns it"),
        (lambda: vit(fc_norm=True), "the network does not classify its class token as the final norm returns it"),
        (lambda: vit("vit_base_patch16_rope_224", global_pool="token"),
         "the network's rotary position embeddings leave no place for prompts"),
        (lambda: vit("vit_base_patch16_xp_224", class_token=True, global_pool="token"),
         "the network's blocks do not each begin with a norm layer, with one more at the end"),
        (lambda: vit("deit_tiny_distilled_patch16_224"), "the model's classifier is not a linear layer but Linear and Linear"),
        (lambda: vit("beit_base_patch16_224"), "the network has no norm_pre: prompts need a ViT as timm builds it"),
        (lambda: small_model("batch"), "the model has no class token"),
    ],
    ids=["vit", "pre_norm", "registers", "no_token", "average", "fc_norm", "rotary", "parallel", "distilled", "beit", "resnet"],
)  # fmt: skip
def test_a_network_without_a_part_is_skipped_with_a_reason(make: Any, expected: str | None) -> None:
    model = make()
    assert reason(model) == expected
    if expected is None:
        [x] = batches(1)
        adapter = prepared(model)
        assert adapter.step(x).isfinite().all()


def test_one_image_is_too_small_a_batch() -> None:
    assert reason(small_model("layer"), 1) == "batch size 1 is below the 2 that the method needs"


def test_prompts_stand_between_the_class_token_and_the_patches_of_their_images() -> None:
    model, seen = small_model("layer"), list[Tensor]()
    net: Any = model.net
    hook = net.blocks[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    x, own = batches(1, 2)[0], torch.arange(2 * 3 * 24.0).view(2, 3, 24)
    with torch.no_grad():
        model(x)
        assert len([*prompts.prompted_features(model, x, own, images=4)]) == 2
    hook.remove()
    plain, prompted = seen
    assert prompted.shape == (4, 1 + 3 + 16, 24)
    for number, tokens in enumerate(prompted):  # both images with the first prompts, both with the second
        assert torch.equal(tokens[1:4], own[number // 2])
        assert torch.equal(tokens[[0, *range(4, 20)]], plain[number % 2])


# -- hyperparameters ---------------------------------------------------------------------------------------------------


def test_the_preset_is_the_published_one() -> None:
    config: Any = Foa.Config(**Foa.presets["imagenet_vit_b16"].resolve(64))
    assert (config.num_prompts, config.fitness_lambda, config.popsize, config.cma_seed) == (3, 0.4, 27, 2020)
    adapter: Any = ready(Foa, small_model("layer"), batch_size=16, source_images=32)
    assert (adapter.source_request().images, adapter.source_request().batch_size) == (32, 16)
    assert (adapter.needs.backward, adapter.needs.source_images, adapter.needs.min_batch) == (False, True, 2)


@pytest.mark.parametrize(
    "value",
    [{"num_prompts": 0}, {"fitness_lambda": -1}, {"popsize": 3}, {"cma_seed": -1}, {"cma_seed": 2**32}, {"lr": 1}],
)
def test_values_out_of_range_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Foa.Config(**value)
