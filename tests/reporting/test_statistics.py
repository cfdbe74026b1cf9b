import math

import numpy as np
import pytest

from offset_equivariant.reporting.statistics import mean_and_std, paired_difference_interval, proportion_interval


def test_mean_and_std():
    mean, std = mean_and_std([8.0, 9.0, 13.0])
    assert mean == 10.0
    assert std == pytest.approx(math.sqrt(7.0))
    assert mean_and_std([8.5]) == (8.5, None)
    with pytest.raises(ValueError, match="values is empty"):
        mean_and_std([])


@pytest.mark.parametrize(
    ("errors", "n", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_against_published_values(errors, n, low, high):
    assert proportion_interval(errors, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("errors", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_proportions_are_refused(errors, n):
    with pytest.raises(ValueError, match=f"errors = {errors}, n = {n}"):
        proportion_interval(errors, n)


def test_paired_interval_against_the_formula_by_hand():
    # Differences 1, 0, 0, -1, 1: mean 0.2, sum of squared deviations 2.8, s = sqrt(0.7).
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([0, 1, 0, 1, 0], bool)
    half = 1.959963984540054 * math.sqrt(0.7 / 5)
    assert paired_difference_interval(a, b) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    half = 1.6448536269514722 * math.sqrt(0.7 / 5)
    assert paired_difference_interval(b, a, confidence=0.9) == pytest.approx((-0.2, -0.2 - half, -0.2 + half))


def test_paired_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        shared = rng.random(400)  # hard images are hard for both
        low, high = paired_difference_interval(shared + 0.1 * rng.random(400) < 0.3, shared < 0.25)[1:]
        # P(shared + 0.1 u < 0.3) = E[0.3 - 0.1 u] = 0.25.
        covered += low <= 0.0 <= high
    assert 0.93 < covered / 2000 < 0.97


def test_unequal_outcomes_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_difference_interval([0, 1, 0], [0, 1, 0, 1])
