"""FOA: test-time model adaptation with only forward passes (Niu et al. 2024, arXiv 2404.01650).

Objective (equation 5): Σ entropy + λ·(B/64)·[Σ(σ_b − σ_S)² + Σ(μ_b − μ_S)²] over a batch of B images: the fitness. μ and σ
are mean and unbiased standard deviation of the class token's features (``alignment.py``), S those of clean source images
without prompts. Adapted: the numbers of P prompt tokens after the class token (``prompts.py``), by CMA-ES
(``evolution.py``). All weights are frozen; there is no backward pass. For each batch:

- the candidates (equation 6) are ``popsize`` of CMA-ES, then the best of the batch before. Each is forwarded, and CMA-ES
  is told all of them with their fitness, which ends a generation.
- the scores graded are those of the best candidate, its class token shifted towards the source (equations 7 to 9):
  e + (μ_S − h), where h averages the tokens of earlier batches over all candidates. The fitness is that without a shift.

``reset()`` forgets CMA-ES, prompts and h. The first batch afterwards draws prompts, which count as the best before, and
starts CMA-ES, again with ``cma_seed``. A batch in which no fitness is finite (one image alone, images of NaN) gets the
scores of the previous best, and teaches nothing.

Candidates are forwarded together, up to ``IMAGES_AT_ONCE`` images: up to rounding, the numbers are those one by one.
CMA-ES runs on the CPU, in float64. For the 2304 numbers of a ViT-B it takes 0.1 s a batch on one core, and 2 s more every
16 batches; its candidates then depend on LAPACK's rounding, so such trajectories differ between machines.

Published: λ = 0.4 on ImageNet-C and 0.2 on ImageNet-R, there among its 200 classes (here the harness's class mask).
``popsize`` 27 is 4 + ⌊3·ln(P·D)⌋ for a ViT-B; other widths need their own.

Discrepancies between paper and code: the code takes source statistics from the 50,000 validation images, and 32 suffice
in the paper; here ``source_images`` says how many. The code rounds a candidate to single precision before it is
forwarded, and offers the rounded one again; so here, to the network's precision. It does not pin ``cma``; 4.5.0 was
compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tta_bench import adapter
from tta_bench.adapter import Adapter, Context, Needs, Preset, SourceRequest
from tta_bench.methods import alignment
from tta_bench.methods.evolution import EvolutionStrategy, import_cma
from tta_bench.methods.functional import softmax_entropy
from tta_bench.methods.prompts import inserted, prompted_features, unsuitable, width, xavier_bound
from tta_bench.methods.transfer import to_device
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
        return super().skip(model, config, context) or unsuitable(model)

    def setup(self) -> None:
        total, batch_size = self.config.popsize + 1, self.context.batch_size
        at_once = min(total, max(1, IMAGES_AT_ONCE[self.context.device.type] // batch_size))
        self.compiled_batches = {at_once * batch_size, total % at_once * batch_size} - {0}
        import_cma()  # takes a second, which is not the first batch's
        self.strategy: EvolutionStrategy | None = None
        self.best_prompts = torch.empty(0)  # of the last batch, the drawn ones before the first, (P·D,), on the CPU
        self.history: Tensor | None = None  # h, (D,)
        self.candidates = torch.empty(0)  # of the last batch, CMA-ES's and the previous best, (K, P·D), on the CPU
        self.fitness = torch.empty(0)  # theirs, (K,), on the CPU
        self.best = -1  # the index of the best; −1: none, as no fitness is finite

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
        self.candidates = torch.cat([torch.from_numpy(asked).to(self.best_prompts), self.best_prompts[None]])
        fitness, tokens = self._evaluate(x)
        self.fitness = fitness.cpu()  # the host waits: CMA-ES runs there
        values = self.fitness.tolist()
        _, self.best = min(((f, i) for i, f in enumerate(values) if f < math.inf), default=(math.nan, -1))
        if self.best >= 0:
            strategy.tell([*asked, self.best_prompts.double().numpy()], values)
            self.best_prompts = self.candidates[self.best]
            self._update_history(tokens)
        return self._classify(tokens[self.best], shift)  # where there is no best, of the last: the previous best

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Shifted scores with the last batch's best prompts; the source model's before the first batch."""
        if self.strategy is None:
            return super().predict(x)
        with inserted(self.model, self._tokens(self.best_prompts)):
            _, token = self.model.embeddings(x)
        return self._classify(token, self._shift())

    def _start(self) -> EvolutionStrategy:
        """Draw prompts, which are the previous best, and start CMA-ES."""
        generator, config = self.context.generator, self.config
        seed = config.cma_seed
        if seed is None:
            seed = int(torch.randint(1, 2**31 - 1, (1,), generator=generator))
        numbers, bound = config.num_prompts * width(self.model), xavier_bound(self.model)
        drawn = torch.empty(numbers, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        self.best_prompts = drawn.to(self.model.mean.dtype)
        self.strategy = EvolutionStrategy(numbers, config.popsize, seed)
        return self.strategy

    def _tokens(self, vectors: Tensor) -> Tensor:
        """Vectors (…, P·D) as prompts on the device, (K, P, D)."""
        on_device = to_device(vectors, self.model.mean.device)
        return on_device.view(-1, self.config.num_prompts, width(self.model))

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fitness (K,) of each candidate, equation 5, and the class tokens (K, B, D) that the head classifies."""
        fitness, tokens = [], []
        at_once = IMAGES_AT_ONCE["cuda" if x.is_cuda else "cpu"]
        weight = self.config.fitness_lambda * len(x)
        for logits, features in prompted_features(self.model, x, self._tokens(self.candidates), at_once):
            distance = alignment.distance(features, self.prepared["mean"], self.prepared["std"])
            fitness.append(softmax_entropy(logits).sum() + weight * distance)
            tokens.append(features[:, -width(self.model) :].clone())
        return torch.stack(fitness), torch.stack(tokens)

    def _shift(self) -> Tensor | None:
        """d = μ_S − h, (D,), equations 7 and 8; None before there is an h."""
        return None if self.history is None else self.prepared["mean"][-len(self.history) :] - self.history

    def _update_history(self, tokens: Tensor) -> None:
        """Move h towards the mean of all candidates' tokens, equation 9."""
        mean = tokens.mean((0, 1))
        self.history = mean if self.history is None else 0.9 * self.history + 0.1 * mean

    def _classify(self, tokens: Tensor, shift: Tensor | None) -> Tensor:
        scores: Tensor = self.model.classifier()(tokens if shift is None else tokens + shift)
        return scores

    def stats(self) -> dict[str, float]:
        """best_fitness; best: that candidate's number (``popsize``: the previous best, −1: none); sigma: CMA-ES's step."""
        return {
            "best_fitness": float(self.fitness[self.best]) if self.best >= 0 else math.nan,
            "best": float(self.best),
            "sigma": math.nan if self.strategy is None else self.strategy.sigma,
        }
