"""FOA: test-time model adaptation with only forward passes (Niu et al. 2024, arXiv 2404.01650).

Objective (equation 5): Σ entropy + λ·(B/64)·[Σ(σ_b − σ_S)² + Σ(μ_b − μ_S)²] over a batch of B images, a candidate's fitness;
μ and σ are mean and unbiased standard deviation of the class token's features (``alignment.py``, as in MGG), S those of clean
source images without prompts. Adapted: the numbers of P prompt tokens after the class token (``prompts.py``), by CMA-ES
(``evolution.py``). All weights are frozen; there is no backward pass. For each batch:

- candidates (equation 6): ``popsize`` of CMA-ES, then the best of an earlier batch. All are forwarded and told, one generation.
- the scores graded are those of the best candidate, with the shift (equations 7 to 9) of the class token towards the
  source: e + (μ_S − h), h an average of the earlier batches' mean tokens, over all candidates. The fitness is unshifted.

``reset()`` forgets CMA-ES, prompts and h; the first batch afterwards draws prompts and starts CMA-ES, again with
``cma_seed``. Candidates are forwarded together, up to ``IMAGES_AT_ONCE`` images; the numbers differ from those one by one by
rounding alone. CMA-ES runs on the CPU in float64 and keeps a (P·D)² matrix: with 2304 numbers, 0.1 s a batch on one core, and
2 s every 16 batches. At that size LAPACK's rounding reaches the candidates, so trajectories differ between machines.

Where the batch has no finite fitness (one image alone, images of NaN), the scores are those of the earlier best, and nothing
is learnt from it. Published: batch 64, λ = 0.4 on ImageNet-C, 0.2 on ImageNet-R (there with a mask of its classes, which is
left out here); popsize 27 is 4 + ⌊3·ln(P·D)⌋ for the 2304 numbers of ViT-B.

Discrepancies between paper and code: the source statistics come from the 50,000 validation images in the code, from 32 images
in the paper; here from ``source_images``. The code rounds a candidate to the network's precision before it is forwarded and
offered again, and CMA-ES keeps what it drew; so here. The repository does not pin ``cma``: the trajectories are 4.5.0's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tta_bench import adapter
from tta_bench.adapter import Adapter, Context, Needs, Preset, SourceRequest
from tta_bench.methods import alignment, prompts
from tta_bench.methods.evolution import EvolutionStrategy, import_cma
from tta_bench.methods.functional import softmax_entropy
from tta_bench.models import SourceModel

IMAGES_AT_ONCE = {"cpu": 64, "cuda": 256}  # by device; the outputs of a ViT-B's blocks for 256 images take 2 GB


class Foa(Adapter):
    """Prompts by CMA-ES, and a shift of the class token."""

    class Config(adapter.Config):
        """Attributes:
        num_prompts: P, prompt tokens.
        fitness_lambda: λ, the weight of the feature statistics in the fitness.
        popsize: candidates of CMA-ES for each batch; one more is forwarded.
        cma_seed: of CMA-ES's draws, at the start and after each reset; None: drawn from the trial's generator.
        source_images: clean images that the source statistics are taken from, in batches of the test batch's size.
        """

        num_prompts: int = Field(3, ge=1)
        fitness_lambda: float = Field(0.4, ge=0)
        popsize: int = Field(27, ge=4)
        cma_seed: int | None = Field(2020, ge=0, lt=2**32)
        source_images: int = Field(2000, ge=2)

    presets = {
        "imagenet_vit_b16": Preset({}, "FOA's code (main.py), batch 64, source statistics of 50,000"),
    }
    needs = Needs(source_images=True, min_batch=2, class_token=True, linear_head=True, packages=("cma",))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or prompts.unsuitable(model)

    def setup(self) -> None:
        import_cma()  # takes a second, which is not the first batch's
        self.strategy: EvolutionStrategy | None = None
        self.prompts = torch.empty(0)  # the previous best, (P·D,), on the CPU
        self.history: Tensor | None = None  # h, (D,)
        self.candidates = torch.empty(0)  # of the last batch, (K, P·D), on the CPU
        self.fitness = torch.empty(0)  # theirs, (K,), on the CPU
        self.best = -1  # the index of the best; −1: none has a finite fitness

    def source_request(self) -> SourceRequest:
        return SourceRequest(self.config.source_images, self.context.batch_size)

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        """The source's feature statistics: ``mean`` (depth·D,) and ``std`` (depth·D,)."""
        mean, std = alignment.source_statistics(self.model, source)
        return {"mean": mean, "std": std}

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        strategy, shift = self.strategy or self._start(), self._shift()
        asked = strategy.ask()
        self.candidates = torch.cat([torch.from_numpy(asked).to(self.prompts), self.prompts[None]])
        fitness, tokens = self._evaluate(x)
        self.fitness = fitness.cpu()  # the only wait for the device
        values = self.fitness.tolist()
        _, self.best = min(((f, i) for i, f in enumerate(values) if f < math.inf), default=(math.nan, -1))
        if self.best >= 0:
            strategy.tell([*asked, self.prompts.double().numpy()], values)
            self.prompts = self.candidates[self.best]
            self._remember(tokens)
        return self._classify(tokens[self.best], shift)  # the last, the earlier best, where none is the best

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Shifted scores with the best prompts so far; the source model's before the first batch."""
        if self.strategy is None:
            return super().predict(x)
        with prompts.inserted(self.model, self._tokens(self.prompts)):
            _, token = self.model.embeddings(x)
        return self._classify(token, self._shift())

    def _start(self) -> EvolutionStrategy:
        """Draw prompts, which are the previous best, and start CMA-ES."""
        generator, config = self.context.generator, self.config
        seed = config.cma_seed
        if seed is None:
            seed = int(torch.randint(1, 2**31 - 1, (1,), generator=generator))
        numbers, bound = config.num_prompts * prompts.width(self.model), prompts.xavier_bound(self.model)
        drawn = torch.empty(numbers, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        self.prompts = drawn.to(self.model.mean.dtype)
        self.strategy = EvolutionStrategy(numbers, config.popsize, seed)
        return self.strategy

    def _tokens(self, vectors: Tensor) -> Tensor:
        """Vectors (…, P·D) as prompts on the device, (K, P, D)."""
        return vectors.to(self.model.mean.device).view(-1, self.config.num_prompts, prompts.width(self.model))

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fitness (K,) of each candidate, equation 5, and the class tokens (K, B, D) that the head classifies."""
        fitness, tokens = [], []
        at_once = IMAGES_AT_ONCE.get(x.device.type, IMAGES_AT_ONCE["cpu"])
        weight = self.config.fitness_lambda * len(x)
        for logits, features in prompts.prompted_features(self.model, x, self._tokens(self.candidates), at_once):
            distance = alignment.distance(features, self.prepared["mean"], self.prepared["std"])
            fitness.append(softmax_entropy(logits).sum() + weight * distance)
            tokens.append(features[:, -prompts.width(self.model) :].clone())
        return torch.stack(fitness), torch.stack(tokens)

    def _shift(self) -> Tensor | None:
        """d = μ_S − h, (D,), equations 7 and 8; None before there is an h."""
        return None if self.history is None else self.prepared["mean"][-len(self.history) :] - self.history

    def _remember(self, tokens: Tensor) -> None:
        """Move h towards the mean of all candidates' tokens, equation 9."""
        mean = tokens.mean((0, 1))
        self.history = mean if self.history is None else 0.9 * self.history + 0.1 * mean

    def _classify(self, tokens: Tensor, shift: Tensor | None) -> Tensor:
        scores: Tensor = self.model.classifier()(tokens if shift is None else tokens + shift)
        return scores

    def stats(self) -> dict[str, float]:
        """best_fitness; best: its candidate's number, ``popsize`` for the earlier best, −1 for none; sigma: the step size."""
        return {
            "best_fitness": float(self.fitness[self.best]) if self.best >= 0 else math.nan,
            "best": float(self.best),
            "sigma": math.nan if self.strategy is None else self.strategy.sigma,
        }
