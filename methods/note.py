"""NOTE: robust continual test-time adaptation against temporal correlation (Gong et al. 2022, arXiv 2208.05117).

Objective: over a memory of M test images, −(1/(M·C))·Σ_i Σ_c p_ic·log(p_ic + 1e-6), the mean over images and classes, with
p = softmax(z/``temperature``). Every BatchNorm2d is an instance-aware one (IABN, ``iabn.py``); adapted are weight and bias
of these layers, and with ``bn_momentum`` their running statistics. The memory is balanced over the predicted classes
(PBRS, ``reservoir.py``).

An image is predicted in evaluation mode, where its scores do not depend on the other images of the batch, and offered to
the memory with its arg-max as label. After every ``update_interval`` images, even in the middle of a batch, the memory is
``epochs`` times one batch in training mode. The scores graded are those before the update that follows the image.

**NOTE's source models are trained with IABN.** In a network trained with ordinary BatchNorm, IABN at k = 4 changes the
source model's predictions before anything is adapted; say so beside numbers from such a network.

Discrepancies between the published code and this:

- the code cuts the shuffled memory into batches of 128 (CIFAR) or 256: the same up to M of that size. Here, a larger
  memory is one batch, too.
- the code drops images after the last whole interval; here they are predicted and enter the memory.
- the code draws from Python's ``random``; here a generator of the method's own is drawn from, which a reset puts back, as
  the code starts a new process for each corruption: every shift that begins with a reset gets the same draws.
- LINs-lab/ttab leaves IABN out by default, adapts GroupNorm and LayerNorm, too, and updates once a batch of any size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tta_bench.adapter import Adapter, Context, Needs, Preset
from tta_bench.methods.functional import no_statistics
from tta_bench.methods.iabn import use_instance_aware_statistics
from tta_bench.methods.reservoir import Reservoir
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig

_EPS = 1e-6  # inside the logarithm of the entropy


class Note(Adapter):
    """Entropy minimisation on a prediction-balanced memory, with instance-aware batch normalisation."""

    class Config(OptimizerConfig):
        """Attributes:
        memory_size: images in the memory.
        update_interval: images between two updates.
        epochs: optimizer steps an update, each on the whole memory.
        bn_momentum: weight of the memory in the running statistics, for each step.
        iabn_k: k, standard errors by which an image's statistics must differ from the reference before they count.
        skip_threshold: positions up to which a map is normalised with the reference statistics alone.
        temperature: T, by which logits are divided in the loss.
        """

        optimizer: str = "adam"
        lr: float = 1e-4
        memory_size: int = Field(64, ge=1)
        update_interval: int = Field(64, ge=1)
        epochs: int = Field(1, ge=1)
        bn_momentum: float = Field(0.01, ge=0, le=1)
        iabn_k: float = Field(4.0, ge=0)
        skip_threshold: int = Field(1, ge=1)
        temperature: float = Field(1.0, gt=0)

    presets = {"cifar10": Preset({}, "NOTE's code (tta.sh), ResNet-18 trained with IABN")}
    needs = Needs(backward=True, norm_kinds=("batch",))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        if reason := super().skip(model, config, context):
            return reason
        layers = [module for module in model.net.modules() if isinstance(module, nn.BatchNorm2d)]
        if not layers or not all(layer.affine and layer.track_running_stats for layer in layers):
            return "instance-aware statistics need BatchNorm2d layers, each with weight, bias and running statistics"
        single = min(config.memory_size, config.update_interval) == 1  # the first update is on one image
        if single and no_statistics(model, dataclasses.replace(context, batch_size=1)):
            return "a memory of one image needs normalised maps larger than 1x1"
        return None

    def setup(self) -> None:
        config = self.config
        layers = use_instance_aware_statistics(self.model.net, config.iabn_k, config.skip_threshold, config.bn_momentum)
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        self.optimizer = config.build(parameter.requires_grad_() for parameter in parameters)
        self.memory = Reservoir(config.memory_size)
        self.compiled_batches = (config.memory_size,)
        self.images_seen = 0
        self.updates = 0
        self.losses: list[Tensor] = []
        self.generator: torch.Generator | None = None

    def step(self, x: Tensor) -> Tensor:
        if self.generator is None:
            self.generator = self._own_generator()
        self.updates, self.losses = 0, []
        scores = []
        while len(x):
            missing = self.config.update_interval - self.images_seen % self.config.update_interval
            scores.append(self._observe(x[:missing], self.generator))
            x = x[missing:]
            if self.images_seen % self.config.update_interval == 0:
                self._update()
        return torch.cat(scores)

    def _own_generator(self) -> torch.Generator:
        """A copy of ``context.generator``, which is itself never drawn from.

        It is made at the first batch, not at construction, since the harness seeds ``context.generator`` for the stream
        only after ``setup``: trials of different streams draw differently. A reset removes the copy, so that the next one
        stands where the first one stood.
        """
        generator = torch.Generator()
        generator.set_state(self.context.generator.get_state())
        return generator

    def _observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Predict images between two updates, as one batch, and offer them to the memory in order."""
        logits = self.predict(x)
        for image, label in zip(x, logits.argmax(1).tolist(), strict=True):
            self.memory.offer(image, label, generator)
        self.images_seen += len(x)
        return logits

    def _update(self) -> None:
        """Train on the memory."""
        self.model.train()
        images = torch.stack([*self.memory])
        for _ in range(self.config.epochs):
            probabilities = (self.model(images) / self.config.temperature).softmax(1)
            loss = -(probabilities * (probabilities + _EPS).log()).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.detach())
        self.model.eval()
        self.updates += 1

    def stats(self) -> dict[str, float | Tensor]:
        """updates: of the batch; loss: the mean over their steps; stored: images in the memory."""
        loss = torch.stack(self.losses).mean() if self.losses else float("nan")
        return {"updates": float(self.updates), "loss": loss, "stored": float(len(self.memory))}
