"""Intervals, tests and ranks against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tta_bench.report import statistics


def wrong(errors: list[float], images: int = 2000, seed: int = 0) -> np.ndarray:
    """(images, cells) independent verdicts."""
    return (np.random.default_rng(seed).random((images, len(errors))) < np.array(errors)).astype(np.float32)


def test_an_interval_is_that_of_the_binomial() -> None:
    values = wrong([0.3])
    low, high = statistics.interval(statistics.bootstrap(values, 10_000))
    error = float(values.mean())
    half = 1.96 * np.sqrt(error * (1 - error) / 2000)
    assert low[0] == pytest.approx(error - half, abs=0.002)
    assert high[0] == pytest.approx(error + half, abs=0.002)


def test_draws_are_the_same_for_every_table_of_as_many_images() -> None:
    values = wrong([0.3, 0.5])
    both, one = statistics.bootstrap(values), statistics.bootstrap(values[:, 1:])
    assert np.allclose(both[:, 1], one[:, 0])
    assert not np.allclose(both[:, 0], both[:, 1])


def test_resampling_images_keeps_their_cells_together() -> None:
    """Two methods that are wrong on the same images but one: their difference hardly varies, though each error does."""
    first = wrong([0.4])[:, 0]
    second = first.copy()
    second[np.flatnonzero(first == 0)[0]] = 1
    draws = statistics.bootstrap(np.stack([first, second], axis=1))
    assert draws[:, 0].std() > 0.005
    assert (draws[:, 1] - draws[:, 0]).std() < 0.001


def test_a_test_over_images_is_the_paired_t_test() -> None:
    values = wrong([0.30, 0.32])
    p = statistics.pair_tests(statistics.bootstrap(values, 4000), values.mean(0, keepdims=True))
    expected = stats.ttest_rel(values[:, 0], values[:, 1]).pvalue
    assert p[0, 1] == p[1, 0] == pytest.approx(expected, rel=0.1)
    assert p[0, 0] == 1


def test_a_difference_that_holds_for_one_order_of_the_stream_only_is_not_significant() -> None:
    values = wrong([0.30, 0.36])
    draws = statistics.bootstrap(values)
    error = values.mean(0)
    steady = np.stack([error, error, error])
    shaky = steady + np.array([[-0.06, 0.06], [0, 0], [0.06, -0.06]])
    assert statistics.pair_tests(draws, steady)[0, 1] < 0.01
    assert statistics.pair_tests(draws, shaky)[0, 1] > 0.2


BY_SEED = np.array([[30.0, 31.0], [30.4, 31.1], [29.5, 31.6], [30.2, 30.9]])


def test_a_test_over_seeds_alone_is_the_paired_t_test() -> None:
    """Where images add no variance: 4 seeds, 3 degrees of freedom."""
    draws = np.repeat(BY_SEED.mean(0, keepdims=True), 50, axis=0)
    expected = stats.ttest_rel(BY_SEED[:, 0], BY_SEED[:, 1]).pvalue
    assert statistics.pair_tests(draws, BY_SEED)[0, 1] == pytest.approx(expected, rel=1e-9)


def test_the_variances_of_images_and_seeds_add_and_freedom_is_welchs() -> None:
    """As Welch's test of the seeds' differences against a sample of very many images."""
    spread = np.linspace(-1, 1, 200)
    draws = BY_SEED.mean(0) + np.stack([0.5 * spread, -0.2 * spread], axis=1)
    of_images = np.var(0.7 * spread, ddof=1)
    differences = BY_SEED[:, 0] - BY_SEED[:, 1]
    many = 1e12
    expected = stats.ttest_ind_from_stats(
        differences.mean(),
        differences.std(ddof=1),
        len(differences),
        0.0,
        np.sqrt(of_images * many),
        many,
        equal_var=False,
    ).pvalue
    assert statistics.pair_tests(draws, BY_SEED)[0, 1] == pytest.approx(expected, rel=1e-6)


def test_methods_that_agree_on_every_image_are_alike_and_constant_differences_are_not() -> None:
    same = np.repeat(wrong([0.3]), 2, axis=1)
    assert statistics.pair_tests(statistics.bootstrap(same), same.mean(0, keepdims=True))[0, 1] == 1
    apart = np.stack([np.zeros(100), np.ones(100)], axis=1)
    assert statistics.pair_tests(statistics.bootstrap(apart), apart.mean(0, keepdims=True))[0, 1] == 0


def test_false_alarms_stay_at_the_level() -> None:
    """Of tests of methods that are equally good, about one in twenty is significant."""
    alarms = 0
    for seed in range(300):
        values = wrong([0.3, 0.3], images=400, seed=seed)
        alarms += statistics.pair_tests(statistics.bootstrap(values, 300), values.mean(0, keepdims=True))[0, 1] < 0.05
    assert 4 <= alarms <= 28  # 15 expected; 3.4 standard deviations


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert statistics.holm(np.array([0.01, 0.04, 0.03, np.nan])) == pytest.approx(
        [0.03, 0.06, 0.06, np.nan], nan_ok=True
    )
    assert statistics.holm(np.array([[0.5, 0.9]])) == pytest.approx(np.array([[1.0, 1.0]]))


def test_each_pair_counts_once() -> None:
    p = np.array([[1, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 1]])
    once = statistics.upper(p)
    assert np.isnan(once).sum() == 6
    assert (statistics.mirrored(once) == p).all()


def test_ranks_and_the_critical_difference_are_demsars() -> None:
    """Demšar (2006), section 3.2.2, works this out for 4 classifiers on 14 data sets: q 2.569, CD 1.25."""
    rng = np.random.default_rng(0)
    errors = rng.random((14, 4)) + np.array([2.0, 0.0, 1.0, 3.0])
    ranks = statistics.average_ranks(["c", "a", "b", "d"], errors)
    assert ranks is not None
    assert ranks.labels == ["a", "b", "c", "d"]
    assert ranks.critical == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=0.002)
    assert ranks.ranks.sum() == pytest.approx(10)
    assert ranks.p == pytest.approx(stats.friedmanchisquare(*errors.T).pvalue)


def test_ties_share_a_rank_and_a_method_without_all_cells_is_left_out() -> None:
    errors = np.array([[1.0, 1.0, 2.0, 9.0], [1.0, 1.0, 2.0, np.nan]])
    ranks = statistics.average_ranks(["a", "b", "c", "d"], errors)
    assert ranks is not None
    assert ranks.ranks.tolist() == [1.5, 1.5, 3.0]
    assert ranks.left_out == ["d"]
    assert list(ranks.cliques()) == [(0, 2)], "two blocks tell nothing apart"
    assert statistics.average_ranks(["a", "b"], errors[:, :2]) is None


def test_cliques_are_the_longest_stretches() -> None:
    ranks = statistics.Ranks(list("abcde"), np.array([1.0, 1.5, 2.4, 4.0, 4.2]), 10, 0.0, 1.0, [])
    assert list(ranks.cliques()) == [(0, 1), (1, 2), (3, 4)]
