"""RoTTA: robust test-time adaptation in dynamic scenarios (Yuan et al. 2023, arXiv 2303.13899).

Objective (section 3.4): over a memory of test images, the cross-entropy between the student on their augmented copies and
its mean teacher on the images as they are, each weighted by e^(−a)/(1 + e^(−a)), with a = age/``memory_size``. The memory
is balanced over the predicted classes (section 3.3, ``memory_bank.py``). Adapted: weight and bias of the normalisation
layers; every BatchNorm is a robust one (section 3.2, ``robust_bn.py``), and student and teacher have their own statistics.
One update after every ``update_frequency`` images, even in the middle of a batch; after it the teacher moves towards the
student. The scores graded are the teacher's, in evaluation mode, before the updates of the batch.

Discrepancies between published copies:

- the authors' code trains only BatchNorm and has no ``reset()``. Here, as in mariodoebler/test-time-adaptation, LayerNorm
  and GroupNorm are trained as well (they have no robust statistics), and a reset restores both networks with their
  statistics, the optimizer, the memory and the count. On BatchNorm networks the two copies agree.
- the age weights are float32 in both, whatever the precision of the network; so they are here.
- a comment in the authors' code calls ``update_frequency`` the size of the memory; they are two settings.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Adapter, Needs, Preset
from tta_bench.methods.augmentation import augment
from tta_bench.methods.ensemble import blend
from tta_bench.methods.functional import adapt_norm_affine
from tta_bench.methods.memory_bank import MemoryBank
from tta_bench.methods.robust_bn import use_robust_statistics
from tta_bench.methods.soft_losses import soft_cross_entropy
from tta_bench.methods.transfer import to_device
from tta_bench.optimizers import OptimizerConfig

_EPS = 1e-6  # inside the logarithm of the uncertainty


class Rotta(Adapter):
    """A student of its mean teacher on a balanced memory, with robust batch normalisation."""

    class Config(OptimizerConfig):
        """Attributes:
        memory_size: M, images in the memory.
        update_frequency: images between two updates.
        nu: ν, the teacher's step towards the student after an update.
        alpha: α, the weight of the batch in the robust statistics.
        lambda_t: weight of an image's age in the score by which it is evicted.
        lambda_u: weight of its uncertainty in that score.
        """

        optimizer: str = "adam"
        lr: float = 1e-3
        memory_size: int = Field(64, ge=1)
        update_frequency: int = Field(64, ge=1)
        nu: float = Field(0.001, ge=0, le=1)
        alpha: float = Field(0.05, ge=0, le=1)
        lambda_t: float = Field(1.0, ge=0)
        lambda_u: float = Field(1.0, ge=0)

    presets = {
        "imagenet_resnet50_bn": Preset({}, "mariodoebler/test-time-adaptation (cfgs/imagenet_c/rotta.yaml), batch 64"),
        "imagenet_vit_b16": Preset(
            {}, "mariodoebler/test-time-adaptation (cfgs/imagenet_c/rotta.yaml, which its benchmark runs), batch 64"
        ),
        "cifar10": Preset({}, "RoTTA's code (configs/adapter/rotta.yaml), batch 64"),
    }
    needs = Needs(backward=True, norm_kinds=("batch", "group", "layer"))

    def setup(self) -> None:
        config = self.config
        use_robust_statistics(self.model.net, config.alpha)
        self.optimizer = config.build(adapt_norm_affine(self.model))
        self.compiled_batches = (config.memory_size,)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.memory = MemoryBank(config.memory_size, self.model.num_classes, config.lambda_t, config.lambda_u)
        self.images_seen = 0
        self.losses: list[Tensor] = []

    def step(self, x: Tensor) -> Tensor:
        logits = self.predict(x)
        probabilities = logits.softmax(1)
        uncertainties = -(probabilities * (probabilities + _EPS).log()).sum(1)
        self.losses = []
        predicted = torch.stack([logits.argmax(1), uncertainties.double()], 1)
        for image, (label, uncertainty) in zip(x, predicted.tolist(), strict=True):  # the host waits: it has the memory
            self.memory.add(image, int(label), uncertainty)
            self.images_seen += 1
            if self.images_seen % self.config.update_frequency == 0:
                self.losses.append(self._update())
        return logits

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The teacher's logits."""
        logits: Tensor = self.teacher(x)
        return logits

    def _update(self) -> Tensor:
        """Train the student on the memory, then move the teacher; returns the loss."""
        self.model.train()
        self.teacher.train()  # moves its robust statistics
        images = torch.stack([item.image for item in self.memory])
        target = self.predict(images)
        logits = self.model(augment(images, self.context.generator, "cotta"))
        loss = (to_device(self._age_weights(), logits.device) * soft_cross_entropy(logits, target)).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        blend(self.teacher.parameters(), self.model.parameters(), 1 - self.config.nu)
        self.model.eval()
        self.teacher.eval()
        return loss.detach()

    def _age_weights(self) -> Tensor:
        """e^(−a)/(1 + e^(−a)), a = age/M: (items,), float32 in any precision, as in the published code."""
        ages = torch.tensor([item.age / self.config.memory_size for item in self.memory], dtype=torch.float32)
        decay = torch.exp(-ages)
        return decay / (1 + decay)

    def stats(self) -> dict[str, float | Tensor]:
        """updates: of the batch; loss: their mean; stored: images in the memory."""
        loss = torch.stack(self.losses).mean() if self.losses else float("nan")
        return {"updates": float(len(self.losses)), "loss": loss, "stored": float(len(self.memory))}
