import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from offset_equivariant.statistics import (
    ErrorSummary,
    mean_and_std,
    median_interval,
    paired_difference_interval,
    paired_mean_ratio,
    paired_median_difference,
    paired_median_ratio,
    proportion_interval,
    summarise_errors,
    widened_by_seeds,
)


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


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_wilson_interval_is_where_the_score_reaches_the_quantile(confidence):
    for p in proportion_interval(81, 263, confidence):
        score = abs(81 / 263 - p) / math.sqrt(p * (1 - p) / 263)
        assert score == pytest.approx(statistics.NormalDist().inv_cdf(0.5 + confidence / 2))


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


def test_error_summary_by_hand():
    errors = [7.0, 1.0, 3.0, 2.0, 20.0, 5.0, 4.0, 6.0, 9.0]  # sorted: 1 2 3 4 5 6 7 9 20
    summary = summarise_errors(errors)
    assert summary.mean == pytest.approx(57 / 9)
    assert (summary.median, summary.trimean) == (5, (3 + 2 * 5 + 7) / 4)
    assert (summary.best_quarter, summary.worst_quarter) == (2, 12)  # three of nine
    assert summary.percentile_95 == pytest.approx(9 + 0.6 * 11)
    assert summarise_errors([4.0]) == ErrorSummary(4, 4, 4, 4, 4, 4)


@settings(deadline=None)
@given(st.lists(st.floats(0, 180), min_size=2, max_size=60))
def test_error_summary_against_the_standard_library(errors):
    summary = summarise_errors(errors)
    quartiles = statistics.quantiles(errors, n=4, method="inclusive")
    assert summary.mean == pytest.approx(statistics.fmean(errors), abs=1e-9)
    assert summary.median == pytest.approx(statistics.median(errors), abs=1e-9)
    assert summary.trimean == pytest.approx((quartiles[0] + 2 * quartiles[1] + quartiles[2]) / 4, abs=1e-9)
    assert summary.percentile_95 == pytest.approx(statistics.quantiles(errors, n=20, method="inclusive")[-1], abs=1e-9)
    quarter = math.ceil(len(errors) / 4)
    assert summary.best_quarter == pytest.approx(statistics.fmean(sorted(errors)[:quarter]), abs=1e-9)
    assert summary.worst_quarter == pytest.approx(statistics.fmean(sorted(errors)[-quarter:]), abs=1e-9)


@pytest.mark.parametrize(
    ("errors", "message"),
    [([], "at least 1"), ([[1.0]], r"got \(1, 1\)"), ([1.0, math.nan, math.inf], "2 of 3 errors .* number 1")],
)
def test_errors_that_cannot_be_summarised_are_refused(errors, message):
    with pytest.raises(ValueError, match=message):
        summarise_errors(errors)


def test_interval_of_a_median_is_that_of_order_statistics():
    # Of n = 100: ranks 40 and 61, as tables of the sign test have them; outliers do not matter.
    values = np.arange(1.0, 101.0)
    values[-3:] = 1e6
    low, high = median_interval(np.random.default_rng(0).permutation(values))
    coverage = stats.binom.cdf(60, 100, 0.5) - stats.binom.cdf(39, 100, 0.5)
    assert (low, high) == (40.0, 61.0) and coverage == pytest.approx(0.9648, abs=1e-4)
    # At 50 %: the innermost ranks whose coverage is at least that.
    low, high = median_interval(values, confidence=0.5)
    assert (low, high) == (47.0, 54.0)
    assert stats.binom.cdf(53, 100, 0.5) - stats.binom.cdf(46, 100, 0.5) >= 0.5
    with pytest.raises(ValueError, match="at least 6"):
        median_interval(np.arange(5.0))


def test_paired_difference_of_medians():
    rng = np.random.default_rng(1)
    b = rng.gamma(2.0, 2.0, (3, 400))
    difference, low, high = paired_median_difference(b + 0.5, b)
    assert (difference, low, high) == pytest.approx((0.5, 0.5, 0.5))
    other = rng.gamma(2.0, 2.0, (1, 400)) + 1
    difference, low, high = paired_median_difference(other, b)
    assert difference == pytest.approx(np.median(other) - np.median(b, axis=1).mean())
    assert low < difference < high and 0.3 < high - low < 1.2
    assert paired_median_difference(other, b) == (difference, low, high)
    with pytest.raises(ValueError, match="shape"):
        paired_median_difference(other[0], b[0])


@pytest.mark.parametrize("confidence", [0.95, 0.5])
@pytest.mark.parametrize("ratio", [False, True])
def test_interval_of_medians_is_between_percentiles_of_resamples(confidence, ratio):
    """Of values that are dense below their median and sparse above it: the interval reaches further up than down."""
    rng = np.random.default_rng(2)
    skewed = np.concatenate([np.linspace(0.9, 1.0, 21), np.linspace(1.2, 10.0, 20)])
    a, b = np.stack([skewed, 2 * rng.permutation(skewed)]), 1 + 0.01 * rng.random((2, 41))
    found = (paired_median_ratio if ratio else paired_median_difference)(a, b, confidence, resamples=4000)
    drawn = rng.integers(0, 41, (4000, 41))
    first, second = (np.median(values[:, drawn], axis=2) for values in (a, b))
    resampled = (first / second if ratio else first - second).mean(0)
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    assert found[1:] == pytest.approx((low, high), abs=0.1 * (high - low))
    assert high - found[0] > 4 * (found[0] - low)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_interval_of_a_ratio_over_seeds_is_that_of_its_derivatives(confidence):
    """The delta method, with the derivative by each image's weight in place of its formula."""
    rng = np.random.default_rng(3)
    a, b = rng.gamma(2.0, size=(3, 50)) * np.array([[1.0], [3.0], [9.0]]), rng.gamma(2.0, size=(3, 50)) + 0.2

    def ratio(weights):
        return float(np.mean((a @ weights) / (b @ weights)))

    steps, ones = 1e-5 * np.eye(50), np.ones(50)
    influence = 50 * np.array([(ratio(ones + step) - ratio(ones - step)) / 2e-5 for step in steps])
    half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * influence.std(ddof=1) / math.sqrt(50)
    expected = ratio(ones), ratio(ones) - half, ratio(ones) + half
    assert paired_mean_ratio(a, b, confidence) == pytest.approx(expected, rel=1e-6)


def test_ratio_of_means_by_hand_and_against_the_bootstrap():
    assert paired_mean_ratio([[3.0, 3.0]], [[2.0, 2.0]]) == (1.5, 1.5, 1.5)
    # Of two seeds, the mean of their ratios: 2 and 4.
    assert paired_mean_ratio([[2.0, 2.0], [4.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]])[0] == 3.0
    generator = np.random.default_rng(0)
    b = generator.random((1, 2000)) < 0.2
    a = b | (generator.random((1, 2000)) < 0.3)
    ratio, low, high = paired_mean_ratio(a, b)
    assert ratio == a.mean() / b.mean()
    drawn = generator.integers(0, 2000, (4000, 2000))
    expected = np.quantile(a[0][drawn].mean(1) / b[0][drawn].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.04 * (high - low) + 0.02)
    with pytest.raises(ValueError, match="mean of zero"):
        paired_mean_ratio([[1.0, 1.0]], [[0.0, 0.0]])
    with pytest.raises(ValueError, match="as many seeds"):
        paired_mean_ratio([[1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])


def test_paired_ratio_of_medians():
    b = np.random.default_rng(0).gamma(2.0, size=(2, 500))
    assert paired_median_ratio(2.5 * b, b) == pytest.approx((2.5, 2.5, 2.5))
    ratio, low, high = paired_median_ratio(b + 1, b)
    assert ratio == pytest.approx(np.mean(np.median(b + 1, axis=1) / np.median(b, axis=1)))
    assert low < ratio < high


def test_seeds_widen_an_interval_in_squares():
    values = [10.0, 11.0, 12.0]  # mean 11, standard deviation 1
    half = 4.302652729749462 / math.sqrt(3)  # Student's t of two degrees of freedom at 97.5 %
    low, high = widened_by_seeds((10.5, 11.75), values)
    assert (low, high) == pytest.approx((11 - math.hypot(0.5, half), 11 + math.hypot(0.75, half)))
    assert widened_by_seeds((10.5, 11.75), [11.0]) == (10.5, 11.75)
    assert widened_by_seeds((10.5, 11.75), [11.0, 11.0]) == pytest.approx((10.5, 11.75))


def test_widened_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        images = random.normal(0.0, 0.3)  # what the choice of test images adds to all seeds alike
        seeds = images + random.normal(0.0, 0.4, 3)
        low, high = widened_by_seeds((seeds.mean() - 1.96 * 0.3, seeds.mean() + 1.96 * 0.3), seeds.tolist())
        covered += low <= 0 <= high
    assert 0.94 < covered / 2000 < 0.995
