"""LAME: Laplacian adjusted maximum-likelihood estimation (Boudiaf et al. 2022, arXiv 2201.05718).

Objective, for the probabilities p_i of a batch: over distributions Y_i, minimise Σ_i KL(Y_i ‖ p_i) − Σ_ij K_ij·Y_iᵀY_j, K
being an affinity of the images' features (``affinity.py``), so that similar images are given the same class. The features
are the inputs of the classifier, scaled to length 1. The concave-convex procedure solves it: Y_i ← softmax(log p_i +
Σ_j K_ij·Y_j), for all rows at once, until the energy stands still. Adapted: nothing; evaluation mode, BatchNorm with the
source statistics. Each batch is a problem of its own, so that results depend on the batch size and on which images share a
batch. The scores graded are the probabilities Y.

Discrepancies between the authors' code and published copies:

- all agree in the formulas but not in the affinity: rbf with 5 neighbours (the authors, mariodoebler's copy), symmetric
  kNN with 5 (FOA's copy), kNN with 1 (the best of yuyongcan/Benchmark-TTA's search). A table of LAME should name it.
- ``knn`` does not count the image itself in the kNN affinity, but does in rbf. The code's option sigma is never used.
- rbf is NaN for a batch of one image or of equal ones (0/0); here the affinity is 1 there.

The updates stop when the energy changes by less than 1e-8 of its value. In float32 that is decided by rounding, so that
the number of updates, and with it the fourth digit of Y, may differ between machines; in float64 it does not.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from tta_bench import adapter
from tta_bench.adapter import Adapter, Preset
from tta_bench.methods.affinity import gaussian, inner_products, nearest_neighbours

_AFFINITIES = {"knn": nearest_neighbours, "rbf": gaussian, "linear": inner_products}
_EPS = 1e-10  # added to a probability
_LOG_FLOOR = 1e-20  # a probability's logarithm is taken of no less
_TOLERANCE = 1e-8  # relative change of the energy
_LOOK_EVERY = 10  # updates whose energies are read at once; those after the last are discarded


class Solution(NamedTuple):
    """Y (n, C), the number of updates made, and the last energy."""

    scores: Tensor
    iterations: int
    energy: float


class Lame(Adapter):
    """Probabilities corrected by the similarity of the images in a batch."""

    class Config(adapter.Config):
        """Attributes:
        affinity: what makes images similar: "knn", being among the nearest; "rbf", a Gaussian of the distance; "linear",
            the cosine.
        knn: number of neighbours ("knn"), or the neighbour whose distance is the Gaussian's width ("rbf").
        force_symmetry: take the mean of the affinity and its transpose.
        max_steps: updates at most.
        """

        affinity: Literal["knn", "rbf", "linear"] = "rbf"
        knn: int = Field(5, ge=1)
        force_symmetry: bool = False
        max_steps: int = Field(100, ge=1)

    presets = {
        "imagenet_vit_b16": Preset(
            {"affinity": "knn", "force_symmetry": True}, "FOA's code (arXiv 2404.01650), batch 64"
        ),
        "imagenet_resnet50_gn": Preset({}, "LAME's code (best/LAME/overall_best.yaml)"),
        "imagenet_resnet50_bn": Preset(
            {}, "LAME's code (best/LAME/overall_best.yaml); mariodoebler/test-time-adaptation, batch 64"
        ),
        "cifar10": Preset(
            {}, "LAME's code (best/LAME/overall_best.yaml); mariodoebler/test-time-adaptation, batch 200"
        ),
    }
    outputs = "probabilities"

    def setup(self) -> None:
        self.iterations, self.energy = 0, math.nan

    def step(self, x: Tensor) -> Tensor:
        scores, self.iterations, self.energy = self._solve(x)
        return scores

    def predict(self, x: Tensor) -> Tensor:
        """The same as ``step``: nothing is kept from one batch to the next."""
        return self._solve(x).scores

    @torch.no_grad()
    def _solve(self, x: Tensor) -> Solution:
        logits, features = self.model.embeddings(x)
        unit = torch.nn.functional.normalize(features.flatten(1))
        affinity = _AFFINITIES[self.config.affinity](unit, self.config.knn)
        if self.config.force_symmetry:
            affinity = 0.5 * (affinity + affinity.T)
        return minimise_energy(logits.softmax(1), affinity, self.config.max_steps)

    def stats(self) -> dict[str, float]:
        """iterations: updates made; energy: after the last."""
        return {"iterations": float(self.iterations), "energy": self.energy}


def minimise_energy(probabilities: Tensor, affinity: Tensor, max_steps: int) -> Solution:
    """The concave-convex procedure from Y = p, for p (n, C) and K (n, n); at least 3 updates, if ``max_steps`` allows."""
    unary = -(probabilities + _EPS).log()
    scores = (-unary).softmax(1)
    energies = [math.nan]  # after each update
    while len(energies) <= max_steps:
        made = []
        for _ in range(min(_LOOK_EVERY, max_steps + 1 - len(energies))):
            pairwise = affinity @ scores
            scores = (pairwise - unary).softmax(1)
            made.append((scores, _energy(scores, unary, pairwise)))
        first = len(energies)
        energies += torch.stack([energy for _, energy in made]).tolist()  # the host waits: are further updates needed?
        for number, (found, _) in enumerate(made, first):
            if number > 2 and abs(energies[number] - energies[number - 1]) <= _TOLERANCE * abs(energies[number - 1]):
                return Solution(found, number, energies[number])
    return Solution(scores, max_steps, energies[-1])


def _energy(scores: Tensor, unary: Tensor, pairwise: Tensor) -> Tensor:
    """Σ U·Y − P·Y + Y·log Y; P is of the Y before the update."""
    return (unary * scores - pairwise * scores + scores * scores.clamp(min=_LOG_FLOOR).log()).sum()
