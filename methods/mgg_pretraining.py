"""Meta-training of MGG's optimizer (arXiv 2412.16901, section 3.4, Algorithm 1; the published code's pre-training).

A source model is adapted on small batches of a few unlabelled, corrupted source images with a small inner rate; each
loss's gradient is passed one update back, into the 164 parameters φ, which Adam then moves. The source model keeps
drifting from epoch to epoch; gradient moments and memories start anew. After every few epochs φ is tried as it will be
used, on held-out corruptions, and the best is kept. That selection looks at labels, as published; the checkpoint says
so.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Config
from tta_bench.files import write_atomically
from tta_bench.methods import alignment, mgg_memory
from tta_bench.methods.functional import adapt_norm_affine, use_batch_statistics
from tta_bench.methods.mgg_checkpoint import provenance, save
from tta_bench.methods.mgg_optimizer import MGG
from tta_bench.models import SourceModel
from tta_bench.preparation import CannotGoOn
from tta_bench.pretraining import PretrainJob
from tta_bench.streams import CLEAN, Shift, derived_seed

Statistics = tuple[Tensor, Tensor]


class Pretraining(Config):
    """Options; the defaults are the published ones but for the selection, which took every epoch and all 50,000 images.

    Attributes:
        images: unlabelled corrupted images that are trained on.
        batch_size: of meta-training.
        epochs: passes over them.
        lr: Adam's, for φ.
        inner_lr: α while training.
        alignment_weight: λ.
        corruptions, severity: held-out ones, of which no test is made.
        source_images: clean images that the source statistics are taken from.
        selection_images: of each held-out corruption, for choosing the epoch.
        selection_lr, selection_batch: α and batch size there, as at test time.
        every: epochs between selections; the last epoch is always tried.
    """

    images: int = Field(128, ge=2)
    batch_size: int = Field(2, ge=2)
    epochs: int = Field(40, ge=1)
    lr: float = Field(1e-2, gt=0)
    inner_lr: float = Field(1e-4, gt=0)
    alignment_weight: float = Field(0.4, ge=0)
    corruptions: tuple[str, ...] = ("speckle_noise", "spatter", "gaussian_blur", "saturate")
    severity: int = Field(5, ge=1, le=5)
    source_images: int = Field(2000, ge=2)
    selection_images: int = Field(256, ge=1)
    selection_lr: float = Field(1e-3, gt=0)
    selection_batch: int = Field(64, ge=2)
    every: int = Field(5, ge=1)


# -- one update of φ ---------------------------------------------------------------------------------------------------


class MetaTrainer:
    """φ, its Adam, and the drifting source model.

    Args:
        phi: start values.
        model: is adapted in place; only ``parameters`` move.
        parameters: the adapted ones.
        statistics: the source's.
        options: learning rates and λ.
    """

    def __init__(
        self, phi: Mapping[str, Tensor], model: SourceModel, parameters: list[Any], statistics: Statistics,
        options: Pretraining,
    ):  # fmt: skip
        self.phi = {name: value.detach().clone().requires_grad_(True) for name, value in phi.items()}
        self.adam = torch.optim.Adam(self.phi.values(), lr=options.lr)
        self.model, self.parameters, self.statistics, self.options = model, parameters, statistics, options
        self.sizes = [p.numel() for p in parameters]
        self.forget()

    def forget(self) -> None:
        """Start an epoch: no moments, the learned initial memory, no update to pass a gradient through."""
        n, like = sum(self.sizes), self.parameters[0]
        self._m = self._v = torch.zeros(n, dtype=like.dtype, device=like.device)
        self._steps = torch.zeros((), device=like.device)
        self._memory = mgg_memory.initial_memory(self.phi, n)  # W⁰ and b⁰ learn through the first update alone
        self._delta: Tensor | None = None

    def step(self, x: Tensor) -> float:
        """One batch (B, 3, H, W): the loss, its gradient into φ through the update before, the next update.

        Raises:
            CannotGoOn: the loss is not finite.
        """
        _, loss = alignment.objective(self.model, x, self.statistics, self.options.alignment_weight)
        value = loss.item()
        if not math.isfinite(value):
            raise CannotGoOn(f"the loss is {value}")
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])
        self.pass_back(gradient)
        self.adam.step()
        self.adam.zero_grad()  # to None: Adam then leaves alone what got no gradient, as W⁰ mostly
        self._advance(gradient)
        return value

    def pass_back(self, gradient: Tensor) -> None:
        """Add −α·gᵀ∂Δ/∂φ to φ's gradient, where Δ is the update before; it is used once."""
        if self._delta is not None:
            self._delta.backward(-self.options.inner_lr * gradient)
        self._delta = None

    def _advance(self, gradient: Tensor) -> None:
        self._steps += 1
        self._m, self._v, u = mgg_memory.moments(self._m, self._v, gradient, self._steps)
        delta, memory = mgg_memory.update(self.phi, u, self._memory)
        self._delta, self._memory = delta, mgg_memory.Memory(*(part.detach() for part in memory))
        changes = [part.view_as(p) for part, p in zip(delta.detach().split(self.sizes), self.parameters, strict=True)]
        with torch.no_grad():
            torch._foreach_add_(self.parameters, changes, alpha=-self.options.inner_lr)


# -- the whole procedure -----------------------------------------------------------------------------------------------


@dataclass
class _State:
    """What a stopped run goes on from. ``best`` is φ of the best selection so far, of ``best_epoch`` with its score."""

    epoch: int = 0
    best_epoch: int = -1
    best_score: float = -1.0
    best: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)  # epoch to mean accuracy, per cent


class _Data:
    """The images of the procedure, drawn once from the job's seed."""

    def __init__(self, job: PretrainJob, options: Pretraining):
        self.job, self.options = job, options
        total = len(job.labels)
        shifts = [Shift(name, options.severity) for name in options.corruptions]
        rng = np.random.default_rng(derived_seed("mgg", "train", job.seed))
        drawn = rng.choice(total * len(shifts), size=min(options.images, total * len(shifts)), replace=False)
        self.train = self._pixels([(shifts[i // total], int(i % total)) for i in drawn])
        self.selection = {shift: self._draw("selection", shift, options.selection_images) for shift in shifts}
        self.clean = self._draw("source", CLEAN, options.source_images)

    def _draw(self, purpose: str, shift: Shift, count: int) -> np.ndarray:
        rng = np.random.default_rng(derived_seed("mgg", purpose, shift.id, self.job.seed))
        return rng.permutation(len(self.job.labels))[:count]

    def _pixels(self, drawn: Sequence[tuple[Shift, int]]) -> Tensor:
        images: list[Tensor] = [torch.empty(0)] * len(drawn)
        for shift in dict.fromkeys(shift for shift, _ in drawn):
            places = [i for i, (s, _) in enumerate(drawn) if s == shift]
            rows = np.array([drawn[i][1] for i in places])
            for place, image in zip(places, self.job.images(shift, rows)(rows), strict=True):
                images[place] = image
        return torch.stack(images)

    def epoch(self, number: int) -> Iterator[Tensor]:
        """The training images in batches, shuffled for this epoch; a last batch of one is left out."""
        rng = np.random.default_rng(derived_seed("mgg", "epoch", number, self.job.seed))
        for batch in torch.from_numpy(rng.permutation(len(self.train))).split(self.options.batch_size):
            if len(batch) > 1:
                yield self.train[batch.to(self.train.device)]

    def batches(self, shift: Shift, rows: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        """(images, labels) of source images ``rows``, in batches as at test time."""
        take = self.job.images(shift, rows)
        for start in range(0, len(rows), self.options.selection_batch):
            index = rows[start : start + self.options.selection_batch]
            yield take(index), self.job.labels[index]


def pretrain(job: PretrainJob) -> str:
    """Run the procedure, or what is left of it; returns what to tell the user.

    Raises:
        CannotGoOn: the loss is not finite; the best checkpoint so far, if there is one, is kept.
    """
    if job.out.is_file() and provenance(str(job.out)).get("finished") == job.provenance["asked"]:
        return "already made"
    options: Any = job.options
    data = _Data(job, options)
    model = adapted(job.model())
    statistics = alignment.source_statistics(model, (x for x, _ in data.batches(CLEAN, data.clean)))
    generator = torch.Generator().manual_seed(derived_seed("mgg", "phi", job.seed))
    phi = {name: value.to(job.device) for name, value in mgg_memory.initial_parameters(generator).items()}
    trainer = MetaTrainer(phi, model, adapt_norm_affine(model), statistics, options)
    state = _resume(job, trainer)
    for epoch in range(state.epoch + 1, options.epochs + 1):
        _epoch(job, data, trainer, state, epoch)
    _save(job, state, finished=True)
    _state_file(job).unlink(missing_ok=True)
    return f"best after epoch {state.best_epoch}: {state.best_score:.1f} % correct on the held-out corruptions"


def adapted(model: SourceModel) -> SourceModel:
    """The model in the modes in which MGG adapts it."""
    model.train()
    use_batch_statistics(model)
    return model


def _epoch(job: PretrainJob, data: _Data, trainer: MetaTrainer, state: _State, epoch: int) -> None:
    options: Any = job.options
    start = time.perf_counter()
    trainer.forget()
    try:
        losses = [trainer.step(x) for x in data.epoch(epoch)]
    except CannotGoOn as error:
        kept = (
            f"the checkpoint of epoch {state.best_epoch} is kept: {job.out}" if state.best else "there is no checkpoint"
        )
        raise CannotGoOn(f"{error} in epoch {epoch} of {options.epochs}; {kept}") from error
    said = f"epoch {epoch} of {options.epochs}, loss {np.mean(losses):.4f}"
    state.epoch = epoch
    if epoch % options.every == 0 or epoch == options.epochs:
        score = _select(job, data, trainer)
        state.scores[str(epoch)] = score
        said += f", {score:.1f} % correct on the held-out corruptions"
        if score > state.best_score:
            state.best_epoch, state.best_score = epoch, score
            state.best = {name: value.detach().cpu().clone() for name, value in trainer.phi.items()}
            _save(job, state, finished=False)
    _remember(job, trainer, state)
    job.say(f"{said}, {time.perf_counter() - start:.1f} s")


def _select(job: PretrainJob, data: _Data, trainer: MetaTrainer) -> float:
    """Per cent correct of φ as it will be used, a fresh model for each held-out corruption; mean over them."""
    options: Any = job.options
    scores = []
    for shift, rows in data.selection.items():
        model = adapted(job.model())
        optimizer = MGG(adapt_norm_affine(model), options.selection_lr, trainer.phi)
        right = 0
        for x, labels in data.batches(shift, rows):
            if len(x) == 1:  # has no deviation; predicted without adapting, as the harness does
                logits = model(x)
            else:
                logits, loss = alignment.objective(model, x, trainer.statistics, options.alignment_weight)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            right += int((logits.argmax(1).cpu().numpy() == labels).sum())
        scores.append(100.0 * right / len(rows))
    return float(np.mean(scores))


# -- what is kept ------------------------------------------------------------------------------------------------------


def _save(job: PretrainJob, state: _State, *, finished: bool) -> None:
    options: Any = job.options
    said = {
        **job.provenance,
        "epochs": f"{state.epoch} of {options.epochs}",
        "selected_epoch": str(state.best_epoch),
        "selection": "labelled",
        "selection_scores": json.dumps(state.scores),
        "summary": f"{job.provenance['source_model']} of {job.provenance['suite']}, seed {job.seed}, "
        f"epoch {state.best_epoch} of {options.epochs}, selection: labelled",
        "finished": job.provenance["asked"] if finished else "no",
    }
    save(job.out, state.best, said)


def _state_file(job: PretrainJob) -> Any:
    return job.out.with_name(job.out.name + ".state")


def _remember(job: PretrainJob, trainer: MetaTrainer, state: _State) -> None:
    buffer = io.BytesIO()
    kept = {
        "asked": job.provenance["asked"],
        "phi": {name: value.detach() for name, value in trainer.phi.items()},
        "adam": trainer.adam.state_dict(),
        "theta": [p.detach() for p in trainer.parameters],
        "state": vars(state),
    }
    torch.save(kept, buffer)
    write_atomically(_state_file(job), lambda stream: stream.write(buffer.getvalue()))


def _resume(job: PretrainJob, trainer: MetaTrainer) -> _State:
    """The state that an earlier run of the same job left, put into ``trainer``; else a new one."""
    file = _state_file(job)
    if not file.is_file():
        return _State()
    kept = torch.load(file, map_location=job.device, weights_only=True)
    if kept["asked"] != job.provenance["asked"]:
        job.say("an earlier run with other options was left unfinished; starting anew")
        return _State()
    with torch.no_grad():
        for name, value in kept["phi"].items():
            trainer.phi[name].copy_(value)
        for parameter, value in zip(trainer.parameters, kept["theta"], strict=True):
            parameter.copy_(value)
    trainer.adam.load_state_dict(kept["adam"])
    state = _State(**kept["state"])
    state.best = {name: value.cpu() for name, value in state.best.items()}
    job.say(f"going on after epoch {state.epoch}")
    return state
