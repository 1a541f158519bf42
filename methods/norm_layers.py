"""A base for methods that learn weight and bias of the normalisation layers by gradient descent."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tta_bench.adapter import Adapter, Context, Needs
from tta_bench.methods import transfer
from tta_bench.methods.functional import adapt_norm_affine, no_statistics, use_batch_statistics
from tta_bench.models import SourceModel


class NormAdapter(Adapter):
    """Training mode, BatchNorm with the batch's statistics, all but the affine parameters of the norm layers frozen.

    Its Config is an :class:`tta_bench.optimizers.OptimizerConfig`. A subclass has ``self.parameters`` and
    ``self.optimizer`` after ``setup``, and implements ``step``.
    """

    needs = Needs(backward=True, norm_kinds=("batch", "group", "layer"))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or no_statistics(model, context)

    def setup(self) -> None:
        self.model.train()
        use_batch_statistics(self.model)
        self.parameters = self.choose_parameters()
        self.optimizer = self.config.build(self.parameters)

    def choose_parameters(self) -> list[nn.Parameter]:
        """Freeze the model but for what is adapted, and return that."""
        return adapt_norm_affine(self.model)

    def complete_gradients(self) -> None:
        """What comes between the backward pass and the optimizer's step; nothing here."""

    def update(self, loss: Tensor, selected: Tensor | None = None) -> bool:
        """Take one optimizer step down ``loss``, but none where of ``selected`` (B,), if given, nothing is true.

        Returns:
            Whether the step was taken. The host waits for that while the device is busy with the backward pass.
        """
        any_selected = (lambda: True) if selected is None else transfer.fetch(selected.any())
        loss.backward()
        self.complete_gradients()
        if taken := bool(any_selected()):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return taken
