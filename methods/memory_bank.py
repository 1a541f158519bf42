"""Category-balanced sampling with timeliness and uncertainty (RoTTA, Yuan et al. 2023, arXiv 2303.13899, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass
class MemoryItem:
    """A stored image (3, H, W), the entropy of its prediction, and its age in images seen since."""

    image: Tensor
    uncertainty: float
    age: int = 0


class MemoryBank:
    """Up to ``size`` images, balanced over the predicted classes; old and uncertain ones are evicted first.

    Args:
        size: M, its capacity.
        num_classes: C; the quota of a class is M/C, not rounded.
        age_weight, uncertainty_weight: λ_t and λ_u.
    """

    def __init__(self, size: int, num_classes: int, age_weight: float, uncertainty_weight: float):
        self.size, self.age_weight, self.uncertainty_weight = size, age_weight, uncertainty_weight
        self.classes: list[list[MemoryItem]] = [[] for _ in range(num_classes)]

    def __len__(self) -> int:
        return sum(map(len, self.classes))

    def __iter__(self) -> Iterator[MemoryItem]:
        """All items, class by class, in the order of insertion."""
        return (item for items in self.classes for item in items)

    def add(self, image: Tensor, label: int, uncertainty: float) -> None:
        """Offer an image (3, H, W), which is copied if it is accepted; then all items age by one."""
        if self._make_room(label, self._score(0, uncertainty)):
            self.classes[label].append(MemoryItem(image.clone(), uncertainty))
        for item in self:
            item.age += 1

    def _make_room(self, label: int, score: float) -> bool:
        """Whether a new item of class ``label`` is accepted; if need be, an item with a higher score is evicted for it."""
        own = self.classes[label]
        if len(own) >= self.size / len(self.classes):
            competing = [own]
        elif len(self) < self.size:
            return True
        else:
            longest = max(map(len, self.classes))
            competing = [items for items in self.classes if len(items) == longest]
        worst, items, index = max(
            (self._score(item.age, item.uncertainty), number, index)
            for number, items in enumerate(competing)
            for index, item in enumerate(items)
        )  # of equal scores the last in order
        if worst > score:
            del competing[items][index]
        return worst > score

    def _score(self, age: int, uncertainty: float) -> float:
        """λ_t/(1 + e^(−age/M)) + λ_u·uncertainty/ln C; the item with the highest score is evicted."""
        timeliness = self.age_weight / (1 + math.exp(-age / self.size))
        return timeliness + self.uncertainty_weight * uncertainty / math.log(len(self.classes))
