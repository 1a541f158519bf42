"""LAME: its affinities, its updates and its guards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import batches, ready, small_model
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from tta_bench.methods import affinity
from tta_bench.methods.affinity import distances, gaussian, inner_products, nearest_neighbours
from tta_bench.methods.lame import Lame, minimise_energy

ANGLES = torch.tensor([0.0, 0.1, 0.3, 1.5], dtype=torch.float64)
ROWS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
APART = 2 * ((ANGLES[:, None] - ANGLES).abs() / 2).sin()  # chords


def test_neighbours_are_counted_without_the_row_itself_and_row_by_row() -> None:
    assert nearest_neighbours(ROWS, 1).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert nearest_neighbours(ROWS, 2).tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    others = (1 - torch.eye(4)).tolist()
    assert nearest_neighbours(ROWS, 3).tolist() == nearest_neighbours(ROWS, 50).tolist() == others


def test_of_equal_rows_the_first_is_left_out() -> None:
    assert nearest_neighbours(torch.ones(3, 2), 1).tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("knn", "nearest"), [(2, [0.1, 0.1, 0.2, 1.2]), (4, [1.5, 1.4, 1.2, 1.5]), (9, [1.5, 1.4, 1.2, 1.5])]
)
def test_the_width_of_the_gaussian_is_a_mean_distance_that_counts_the_row_itself(
    knn: int, nearest: list[float]
) -> None:
    sigma = sum(2 * math.sin(angle / 2) for angle in nearest) / 4
    assert torch.allclose(gaussian(ROWS, knn), torch.exp(-APART.square() / (2 * sigma**2)), rtol=0, atol=1e-12)


def test_the_linear_affinity_is_the_cosine() -> None:
    assert torch.allclose(inner_products(ROWS, 1), (ANGLES[:, None] - ANGLES).cos(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("rows", [torch.ones(1, 3) / 3**0.5, torch.ones(4, 3) / 3**0.5])
def test_where_distances_are_zero_the_gaussian_is_one(rows: Tensor) -> None:
    assert gaussian(rows, 5).tolist() == torch.ones(len(rows), len(rows)).tolist()


def test_distances_are_those_of_the_difference() -> None:
    """Rows 1e-12 apart: the Gram matrix loses them among the rounding of numbers near 1."""
    rows = normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    rows[1] = rows[0]
    rows[1, 0] += 1e-12
    found = distances(rows)
    assert found.diagonal().tolist() == [0.0] * 40
    assert found[0, 1] == pytest.approx(1e-12, rel=1e-3)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize(
    ("chunk", "most"), [(30 * 7 * 4, 30 * 7 * 4), (30 * 7 * 5 - 1, 30 * 7 * 4), (1, 30 * 30), (10**6, 30 * 30 * 7)]
)
def test_the_difference_is_made_in_chunks_of_rows(chunk: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(affinity, "_CHUNK", chunk)
    with Largest() as largest:
        found = distances(rows)
    assert largest.numbers == max(most, 30 * 30)  # the result has 30·30
    assert torch.allclose(found, (rows[:, None] - rows).norm(dim=2), rtol=0, atol=1e-15)


# -- the method --------------------------------------------------------------------------------------------------------


def test_without_affinity_the_probabilities_stay_and_three_updates_are_made() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    scores, iterations, energy = minimise_energy(p, torch.zeros(2, 2, dtype=torch.float64), 100)
    assert torch.allclose(scores, (p + 1e-10) / (1 + 3e-10), rtol=1e-12, atol=0)
    assert iterations == 3
    assert energy == pytest.approx(-2 * math.log(1 + 3e-10), abs=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_more_updates_than_asked_for(steps: int) -> None:
    p = torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    expected = p
    for _ in range(steps):
        expected = (p.log() + torch.ones(2, 2) @ expected).softmax(1)
    scores, iterations, _ = minimise_energy(p, torch.ones(2, 2), steps)
    assert iterations == steps
    assert torch.allclose(scores, expected, atol=1e-6)


def test_similar_images_agree() -> None:
    """Two sure images pull a third to their class, if it is as similar to them as they are to each other."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55]])
    assert minimise_energy(p, torch.ones(3, 3), 100).scores.argmax(1).tolist() == [0, 0, 0]
    assert minimise_energy(p, torch.eye(3), 100).scores.argmax(1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
@pytest.mark.parametrize("images", [torch.rand(1, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)], ids=["one", "equal"])
def test_one_image_and_equal_images_have_finite_scores(kind: str, images: Tensor) -> None:
    adapter: Any = ready(Lame, small_model("batch"), batch_size=len(images), affinity=kind)
    scores = adapter.step(images)
    assert torch.allclose(scores.sum(1), torch.ones(len(images)))
    assert math.isfinite(adapter.energy)
    if len(images) == 1 and kind == "knn":  # no neighbour
        assert torch.allclose(scores, adapter.model(images).softmax(1), atol=1e-6)
    if len(images) == 1 and kind != "knn":  # the image itself
        assert scores.max() > adapter.model(images).softmax(1).max()


def test_features_with_positions_of_one_pixel_are_flattened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they enter a classifier that is a 1×1 convolution."""
    adapter: Any = ready(Lame, small_model("batch"))
    [x] = batches(1)
    expected, embeddings = adapter.step(x), adapter.model.embeddings
    monkeypatch.setattr(adapter.model, "embeddings", lambda x: (embeddings(x)[0], embeddings(x)[1][..., None, None]))
    assert torch.equal(adapter.step(x), expected)
