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
        self.num_classes = num_classes
        self.classes: dict[int, list[MemoryItem]] = {}  # of the classes that have some

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    def __iter__(self) -> Iterator[MemoryItem]:
        """All items: classes ascending, within a class in the order of insertion."""
        return (item for label in sorted(self.classes) for item in self.classes[label])

    def add(self, image: Tensor, label: int, uncertainty: float) -> None:
        """Offer an image (3, H, W), which is copied if it is accepted; then all items age by one."""
        if self._make_room(label, self._score(0, uncertainty)):
            self.classes.setdefault(label, []).append(MemoryItem(image.clone(), uncertainty))
        for items in self.classes.values():
            for item in items:
                item.age += 1

    def _make_room(self, label: int, score: float) -> bool:
        """Whether a new item of class ``label`` is accepted; if need be, an item with a higher score is evicted for it."""
        own = len(self.classes.get(label, ()))
        if own >= self.size / self.num_classes:
            competing = [label]
        elif len(self) < self.size:
            return True
        else:
            longest = max(map(len, self.classes.values()))
            competing = [other for other, items in self.classes.items() if len(items) == longest]
        worst, crowded, index = max(
            (self._score(item.age, item.uncertainty), other, index)
            for other in competing
            for index, item in enumerate(self.classes[other])
        )  # of equal scores the last in order
        if worst > score:
            del self.classes[crowded][index]
            if not self.classes[crowded]:
                del self.classes[crowded]
        return worst > score

    def _score(self, age: int, uncertainty: float) -> float:
        """λ_t/(1 + e^(−age/M)) + λ_u·uncertainty/ln C; the item with the highest score is evicted."""
        timeliness = self.age_weight / (1 + math.exp(-age / self.size))
        return timeliness + self.uncertainty_weight * uncertainty / math.log(self.num_classes)
