"""Mean teachers (Tarvainen and Valpola 2017, arXiv 1703.01780): a network whose weights average those of its student."""

from __future__ import annotations

import copy

import torch

from tta_bench.models import SourceModel


def teacher_of(student: SourceModel) -> SourceModel:
    """A copy that no gradient reaches, in the same modes."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def average_weights(teacher: SourceModel, student: SourceModel, momentum: float) -> None:
    """teacher ← momentum·teacher + (1 − momentum)·student, in place, for every parameter; buffers stay."""
    for average, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
        average.lerp_(parameter, 1 - momentum)
