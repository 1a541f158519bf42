"""Prediction-balanced reservoir sampling (PBRS; NOTE, Gong et al. 2022, arXiv 2208.05117)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Reservoir:
    """Up to ``size`` images, balanced over the predicted classes.

    While there is room, every image is stored. Then an image of a class that is not among the fullest takes the place of a
    random one of a random fullest class; one of a fullest class takes the place of a random one of its own class, with
    probability m/n (m: the class's images in memory, n: all that were ever predicted as it).

    Attributes:
        classes: the stored images, (3, H, W), of each class that has some, oldest first; at most ``size`` classes, so that
            no step takes longer with many classes.
        predicted: n of each class that was ever predicted.
    """

    def __init__(self, size: int):
        self.size = size
        self.classes: dict[int, list[Tensor]] = {}
        self.predicted: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    def __iter__(self) -> Iterator[Tensor]:
        """All images: classes ascending, within a class oldest first."""
        return (image for label in sorted(self.classes) for image in self.classes[label])

    def offer(self, image: Tensor, label: int, generator: torch.Generator) -> None:
        """Offer an image (3, H, W), which is copied if accepted; ``generator`` is drawn from once the memory is full."""
        self.predicted[label] = self.predicted.get(label, 0) + 1
        if len(self) < self.size or self._made_room(label, generator):
            self.classes.setdefault(label, []).append(image.clone())

    def _made_room(self, label: int, generator: torch.Generator) -> bool:
        """Whether a new image of class ``label`` is accepted; an image was then removed for it."""
        longest = max(map(len, self.classes.values()))
        fullest = sorted(number for number, images in self.classes.items() if len(images) == longest)
        if label not in fullest:
            label = fullest[_draw(len(fullest), generator)]
        elif torch.rand(1, dtype=torch.float64, generator=generator).item() > longest / self.predicted[label]:
            return False
        images = self.classes[label]
        del images[_draw(len(images), generator)]
        if not images:
            del self.classes[label]
        return True


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (1,), generator=generator))
