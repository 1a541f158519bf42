"""Parameters of the 19 corruptions by severity: the published ones at 1 to 5, and those between by interpolation.

Between two published severities each parameter is interpolated linearly; below 1, linearly between "no effect" and
severity 1. Counts (radii of motion, offsets, passes, the flag for mud, JPEG quality) are then rounded, halves up. Shot
noise has no effect only at infinitely many photons: below 1 its standard deviation, which is proportional to 1/√c, is
linear. A JPEG is nearest to no effect at quality 100. At integer severities parameters are exactly the published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Strengths = Literal["imagenet", "cifar"]
Parameter = Any  # a number or a tuple of numbers, as a corruption's function takes it


@dataclass(frozen=True)
class Severities:
    """Parameters of one corruption.

    Attributes:
        none: without effect.
        published: at severities 1 to 5.
        counts: positions of the parameters that must be integers.
    """

    none: Parameter
    published: tuple[Parameter, ...]
    counts: tuple[int, ...] = ()

    def at(self, severity: float) -> Parameter:
        """The parameters at a severity above 0, up to 5."""
        low = int(severity)
        if low == severity:
            return self.published[low - 1]
        before, after = self.none if low == 0 else self.published[low - 1], self.published[low]
        if before == math.inf:
            return after / severity**2
        if not isinstance(after, tuple):
            return self._between(before, after, severity - low, 0)
        pairs = zip(before, after, strict=True)
        return tuple(self._between(a, b, severity - low, number) for number, (a, b) in enumerate(pairs))

    def _between(self, a: float, b: float, share: float, number: int) -> float:
        value = a + (b - a) * share
        return math.floor(value + 0.5) if number in self.counts else value


PARAMETERS: dict[Strengths, dict[str, Severities]] = {
    "imagenet": {
        "gaussian_noise": Severities(0, (0.08, 0.12, 0.18, 0.26, 0.38)),
        "shot_noise": Severities(math.inf, (60, 25, 12, 5, 3)),
        "impulse_noise": Severities(0, (0.03, 0.06, 0.09, 0.17, 0.27)),
        "speckle_noise": Severities(0, (0.15, 0.2, 0.35, 0.45, 0.6)),
        "gaussian_blur": Severities(0, (1, 2, 3, 4, 6)),
        "glass_blur": Severities((0, 1, 0), ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), (1, 2)),
        "defocus_blur": Severities((0, 0), ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
        "motion_blur": Severities((0, 0), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), (0,)),
        "zoom_blur": Severities((1, 0.01), ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
        "snow": Severities((0, 0, 3, 0.5, 10, 4, 1),
                           ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                            (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)), (4,)),
        "frost": Severities((1, 0), ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
        "fog": Severities((0, 2), ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
        "spatter": Severities((0.65, 0.3, 4, 0.69, 0, 0),
                              ((0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
                               (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1)), (5,)),
        "contrast": Severities(1, (0.4, 0.3, 0.2, 0.1, 0.05)),
        "brightness": Severities(0, (0.1, 0.2, 0.3, 0.4, 0.5)),
        "saturate": Severities((1, 0), ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
        "jpeg_compression": Severities(100, (25, 18, 15, 10, 7), (0,)),
        "pixelate": Severities(1, (0.6, 0.5, 0.4, 0.3, 0.25)),
        "elastic_transform": Severities(0, (250 * 0.05, 250 * 0.065, 250 * 0.085, 250 * 0.1, 250 * 0.12)),
    },
    "cifar": {
        "gaussian_noise": Severities(0, (0.04, 0.06, 0.08, 0.09, 0.10)),
        "shot_noise": Severities(math.inf, (500, 250, 100, 75, 50)),
        "impulse_noise": Severities(0, (0.01, 0.02, 0.03, 0.05, 0.07)),
        "speckle_noise": Severities(0, (0.06, 0.1, 0.12, 0.16, 0.2)),
        "gaussian_blur": Severities(0, (0.4, 0.6, 0.7, 0.8, 1)),
        "glass_blur": Severities((0, 1, 0), ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), (1, 2)),
        "defocus_blur": Severities((0, 0), ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
        "motion_blur": Severities((0, 0), ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), (0,)),
        "zoom_blur": Severities(1, (1.06, 1.11, 1.16, 1.21, 1.26)),
        "snow": Severities((0, 0, 1, 0.6, 8, 3, 1),
                           ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)), (4,)),
        "frost": Severities((1, 0), ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
        "fog": Severities((0, 3), ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
        "spatter": Severities((0.62, 0.1, 0.7, 0.7, 0, 0),
                              ((0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
                               (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1)), (5,)),
        "contrast": Severities(1, (0.75, 0.5, 0.4, 0.3, 0.15)),
        "brightness": Severities(0, (0.05, 0.1, 0.15, 0.2, 0.3)),
        "saturate": Severities((1, 0), ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
        "jpeg_compression": Severities(100, (80, 65, 58, 50, 40), (0,)),
        "pixelate": Severities(1, (0.95, 0.9, 0.85, 0.75, 0.65)),
        "elastic_transform": Severities((0, 0, 0), ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
                                                    (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    },
}  # fmt: skip
