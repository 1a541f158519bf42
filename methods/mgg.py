"""MGG: test-time adaptation with a meta gradient generator (arXiv 2412.16901; its repository is called MGTTA).

Objective (section 3.2): the mean entropy of the batch plus ``alignment_weight`` times the distance of its feature
statistics from those of clean source images (``alignment.py``); ``objective: entropy`` leaves the second term out.
Adapted: weight and bias of the normalisation layers; BatchNorm with batch statistics. One forward and backward pass and
one update a batch, by the learned optimizer (``mgg_optimizer.py``, section 3.3) or, as an ablation, by any other. The
scores graded are those before the update. ``reset()`` forgets everything that was learnt at test time.

Discrepancies between paper and code: the authors' program has a learning rate of 5e-3 by default, their script and class
1e-3, which is taken here. Their source statistics come from all 50,000 validation images; here from ``source_images``.
Networks without a class token are this project's extension. There is one variant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from tta_bench.adapter import Declared, FilePath, Needs, Preset, SourceRequest
from tta_bench.methods import alignment, mgg_checkpoint
from tta_bench.methods.functional import softmax_entropy
from tta_bench.methods.mgg_optimizer import readable
from tta_bench.methods.mgg_pretraining import Pretraining, pretrain
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.optimizers import OptimizerConfig
from tta_bench.pretraining import PretrainJob


class Mgg(NormAdapter):
    """Entropy and feature alignment on the normalisation layers, with an optimizer learned by meta-training."""

    class Config(OptimizerConfig):
        """Attributes:
        checkpoint: of the learned optimizer; only with ``optimizer: mgg``.
        objective: "entropy+alignment", or "entropy" alone (which needs no source images).
        alignment_weight: λ.
        source_images: clean images that the source statistics are taken from, in batches of the test batch's size.
        source_statistics: a file with source statistics instead (the published ``train_info.pt``).
        """

        optimizer: str = "mgg"
        lr: float = 1e-3
        checkpoint: FilePath | None = None
        objective: Literal["entropy", "entropy+alignment"] = "entropy+alignment"
        alignment_weight: float = Field(0.4, ge=0)
        source_images: int = Field(2000, ge=2)
        source_statistics: FilePath | None = None

        @field_validator("checkpoint", mode="wrap")
        @classmethod
        def _readable(cls, value: Any, check: Callable[[Any], Any]) -> Any:
            return check(value) if value is None else readable(value, check)

    presets = {
        "imagenet_vit_b16": Preset(
            {}, "MGTTA's code (class default and run.sh), batch 64, source statistics of 50,000"
        ),
    }
    needs = NormAdapter.needs | Needs(source_images=True, checkpoint=True, min_batch=2)
    compiled_parts = ("_loss",)
    example = {"checkpoint": "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"}

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """Source images only where the loss needs them; that it needs a checkpoint is the optimizer's to say."""
        aligns = config.objective == "entropy+alignment"
        needs = dataclasses.replace(
            cls.needs, source_images=aligns and config.source_statistics is None, checkpoint=False
        )
        return dataclasses.replace(super().declared(config), needs=needs)

    def source_request(self) -> SourceRequest | None:
        return SourceRequest(self.config.source_images, self.context.batch_size) if self.needs.source_images else None

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        """The source's feature statistics: ``mean`` (D,) and ``std`` (D,)."""
        mean, std = alignment.source_statistics(self.model, source)
        return {"mean": mean, "std": std}

    def _source_statistics(self) -> tuple[Tensor, Tensor] | None:
        if self.config.objective == "entropy":
            return None
        if self.config.source_statistics is not None and not self.prepared:
            mean, std = mgg_checkpoint.read_statistics(self.config.source_statistics)
            self.prepared = {"mean": mean.to(self.model.mean), "std": std.to(self.model.mean)}
        return self.prepared["mean"], self.prepared["std"]

    def step(self, x: Tensor) -> Tensor:
        statistics = self._source_statistics()
        if statistics is None:
            logits = self.model(x)
            self.update(softmax_entropy(logits).mean())
        else:
            logits, features = alignment.logits_and_features(self.model, x)
            self.update(self._loss(logits, features, *statistics))
        scores: Tensor = logits.detach()
        return scores

    def _loss(self, logits: Tensor, features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return alignment.loss(logits, features, (mean, std), self.config.alignment_weight)

    Pretraining = Pretraining

    @classmethod
    def pretrain(cls, job: PretrainJob) -> str:
        """Meta-train the optimizer (section 3.4); see ``mgg_pretraining.py``."""
        return pretrain(job)
