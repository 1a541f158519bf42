"""T3A: test-time classifier adjustment module (Iwasawa and Matsuo, NeurIPS 2021, openreview e_yvNqkJKAW, Algorithm 1).

Objective: none. In place of the last linear layer stands a prototype for each class: the sum of the L2-normalised features
("supports") that the source classifier gave that class, those of lowest entropy. Supports at the start are the rows of the
classifier's weight (warm-up rows). For each batch: its features become supports, too; each class keeps the ``filter_k`` of
lowest entropy, and what is dropped never comes back; the scores are the products of the features with the normalised
prototypes. The batch's own images thus take part in the scores graded. Adapted: nothing in the network; evaluation mode,
BatchNorm with the source statistics.

A support's class and entropy are those that the source classifier gives it, bias included, for warm-up rows as well: a row
may count for another class than its own. A class without supports has a prototype of zeros: it scores 0, which is more
than a negative score, and can be predicted. The scores are no calibrated logits.

Discrepancies between the authors' code and published copies:

- ``filter_k: -1`` means to keep all supports, but in the authors' code, and FOA's copy, each class loses its support of
  highest entropy after every batch (``variant: official``), so that at batch size 1 none is left soon, and all scores are
  0; yuyongcan/Benchmark-TTA keeps all (``variant: keep_all``). The variants differ in nothing else.
- the codes' sorts are not stable; here, of supports with equal entropy, the earlier ones stay.

At most ``filter_k``·C supports of D numbers are held after a batch, and up to twice as many during it; for -1 there is no
bound.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from tta_bench import adapter
from tta_bench.adapter import Adapter, Needs, Preset
from tta_bench.methods.functional import softmax_entropy


class T3A(Adapter):
    """Prototypes of confident features in place of the last linear layer."""

    class Config(adapter.Config):
        """Attributes:
        filter_k: supports that a class keeps; -1: see the file's docstring.
        variant: what -1 means; see the file's docstring.
        """

        filter_k: Literal[-1] | Annotated[int, Field(ge=1)] = 20
        variant: Literal["official", "keep_all"] = "official"

    presets = {
        "imagenet_vit_b16": Preset({}, "FOA's code (arXiv 2404.01650), batch 64"),
        "imagenet_resnet50_bn": Preset({}, "yuyongcan/Benchmark-TTA, batch 64"),
        "cifar10": Preset({"filter_k": 100}, "yuyongcan/Benchmark-TTA, batch 64"),
    }
    needs = Needs(linear_head=True)

    @torch.no_grad()
    def setup(self) -> None:
        classifier: Any = self.model.classifier()
        rows = classifier.weight.detach()
        self.supports = rows.new_empty(0, rows.shape[1])
        self.entropies = rows.new_empty(0)
        self.labels = rows.new_empty(0, dtype=torch.int64)
        self._add(rows, classifier(rows))
        self.prototypes = self._prototypes()

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        logits, features = self.model.embeddings(x)
        self._add(features, logits)
        self._filter()
        self.prototypes = self._prototypes()
        return features @ self.prototypes.T

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Scores with the present prototypes, to which ``x`` adds nothing."""
        return self.model.embeddings(x)[1] @ self.prototypes.T

    def _add(self, features: Tensor, logits: Tensor) -> None:
        """Add supports (B, D) with their logits (B, C); all are then in order of class, and of entropy within it."""
        self.supports = torch.cat([self.supports, normalize(features)])  # only their directions are ever used
        self.labels = torch.cat([self.labels, logits.argmax(1)])
        self.entropies = torch.cat([self.entropies, softmax_entropy(logits)])
        order = self.entropies.argsort(stable=True)
        self._select(order[self.labels[order].argsort(stable=True)])

    def _filter(self) -> None:
        """Drop the supports of each class that are beyond its quota."""
        if self.config.filter_k == -1 and self.config.variant == "keep_all":
            return
        starts = self._starts()
        rank = torch.arange(len(self.labels), device=self.labels.device) - starts[self.labels]
        quota = self.config.filter_k if self.config.filter_k > 0 else starts.diff()[self.labels] - 1
        self._select(torch.nonzero(rank < quota).flatten())  # the host waits for the number of supports that stay

    def _select(self, index: Tensor) -> None:
        self.supports, self.labels, self.entropies = self.supports[index], self.labels[index], self.entropies[index]

    def _starts(self) -> Tensor:
        """The place of each class's first support, (C + 1,); the last number is that of all supports."""
        classes = torch.arange(self.model.num_classes + 1, device=self.labels.device)
        return torch.searchsorted(self.labels, classes)

    def _prototypes(self) -> Tensor:
        """(C, D). Sums over ranges have the same bits on every run, which ``index_add_`` on a GPU has not."""
        return normalize(torch.segment_reduce(self.supports, "sum", offsets=self._starts(), axis=0))

    def stats(self) -> dict[str, float | Tensor]:
        """supports: held; empty_classes: those without supports, which score 0."""
        return {"supports": float(len(self.labels)), "empty_classes": (self._starts().diff() == 0).sum()}
