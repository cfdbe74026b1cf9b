"""Summaries of per-image errors, intervals of error rates, and of the difference of two strategies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (divisor ``len - 1``); the latter is None for a single value.

    Raises:
        ValueError: If ``values`` is empty.
    """
    if not values:
        raise ValueError("values is empty: give at least one")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class ErrorSummary:
    """What is usual to report of angular errors (Barron 2015; Finlayson et al. 2016), in their unit.

    Attributes:
        mean: arithmetic mean.
        median: half of the images are better.
        trimean: (Q1 + 2 · median + Q3) / 4, with the quartiles Q1 and Q3.
        best_quarter: mean of the smallest quarter of the errors.
        worst_quarter: mean of the largest quarter of the errors.
        percentile_95: 95 % of the images are better.
    """

    mean: float
    median: float
    trimean: float
    best_quarter: float
    worst_quarter: float
    percentile_95: float


def _statistic(name: str, errors: ArrayLike) -> float:
    value: float = getattr(summarise_errors(errors), name)
    return value


def summarise_errors(errors: ArrayLike) -> ErrorSummary:
    """Summarise per-image errors.

    Quantiles are interpolated linearly between the two nearest errors. A quarter of n images is ⌈n / 4⌉ of them.

    Args:
        errors: one number an image, shape (n,), finite.

    Raises:
        ValueError: if there is no error, another shape, or one that is not finite; says which.
    """
    values = np.sort(np.asarray(errors, dtype=np.float64))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"errors must have shape (n,) with n at least 1, got {values.shape}")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(np.asarray(errors, dtype=np.float64)))
        raise ValueError(f"{bad.size} of {values.size} errors are not finite; the first is number {bad[0]}")
    first, median, third, highest = np.quantile(values, [0.25, 0.5, 0.75, 0.95])
    quarter = -(-values.size // 4)
    return ErrorSummary(
        mean=float(values.mean()),
        median=float(median),
        trimean=float((first + 2 * median + third) / 4),
        best_quarter=float(values[:quarter].mean()),
        worst_quarter=float(values[-quarter:].mean()),
        percentile_95=float(highest),
    )


#: Each statistic of :class:`ErrorSummary` alone: errors to number.
STATISTICS: dict[str, Callable[[ArrayLike], float]] = {
    field.name: partial(_statistic, field.name) for field in fields(ErrorSummary)
}


def proportion_interval(errors: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for an error rate of ``errors`` in ``n`` images, as fractions in [0, 1].

    Source: E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22 (1927).

    Raises:
        ValueError: If not 0 <= ``errors`` <= ``n`` with ``n`` positive.
    """
    if not 0 <= errors <= n or n < 1:
        raise ValueError(f"errors must be between 0 and n, and n positive; got errors = {errors}, n = {n}")
    interval = stats.binomtest(errors, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of ``a - b`` and its confidence interval, for outcomes of two strategies on the same images.

    Normal approximation: the mean of the n per-image differences ± z · s / √n, with s their sample standard deviation.
    It covers the choice of the test images, not that of the training seed.

    Args:
        a: Per-image outcomes of one strategy, shape (n,), numbers or booleans.
        b: Those of the other, of the same images in the same order.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The difference, the interval's low end, and its high end, in the unit of the outcomes.

    Raises:
        ValueError: If the shapes differ, or there are fewer than two images.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size < 2:
        raise ValueError(f"a and b must be 1-D, equally long, at least 2; got shapes {first.shape} and {second.shape}")
    differences = first - second
    half = float(stats.norm.ppf(0.5 + confidence / 2) * differences.std(ddof=1) / np.sqrt(first.size))
    mean = float(differences.mean())
    return mean, mean - half, mean + half


def widened_by_seeds(
    interval: tuple[float, float], values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
    """Widen an interval over test images by the spread over seeds; the two add up in squares.

    The mean of k seeds is uncertain by t · s / √k, with s their sample standard deviation and t Student's quantile of
    k - 1 degrees of freedom: 4.3 for three seeds.

    Args:
        interval: of the mean over seeds, from the choice of the test images alone.
        values: the number that each seed gave, at least one; a single one says nothing of seeds, and widens nothing.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The interval's low end, and its high end, around the mean of the values.
    """
    mean, std = mean_and_std(values)
    if std is None:
        return interval
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return mean - math.hypot(mean - interval[0], half), mean + math.hypot(interval[1] - mean, half)


def median_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval for the median, from order statistics, whatever the distribution.

    Args:
        values: one number an image, shape (n,).
        confidence: coverage of the interval, in (0, 1).

    Raises:
        ValueError: if there are fewer than six values, which have no such interval at 95 %.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size < 6:
        raise ValueError(f"values must have shape (n,) with n at least 6, got {numbers.shape}")
    interval: Any = stats.quantile_test(numbers, p=0.5).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def paired_mean_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return how many times the mean of ``b`` that of ``a`` is, and its confidence interval, on the same images.

    The ratio is taken of each seed and averaged. Normal approximation of its linearisation (delta method): image i
    moves a seed's ratio r by (a_i - r b_i) / mean(b) / n. It covers the choice of the test images, not that of the
    seeds.

    Args:
        a: per-image values, shape (seeds, n).
        b: those that they are compared with, of the same seeds and images in the same order; no seed's mean is zero.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The ratio, the interval's low end, and its high end.

    Raises:
        ValueError: if the shapes do not fit, there are fewer than two images, or a mean of ``b`` is zero.
    """
    first, second = _paired_samples(a, b)
    if len(first) != len(second):
        raise ValueError(f"a and b must have as many seeds, got {len(first)} and {len(second)}")
    below = second.mean(1, keepdims=True)
    if not below.all():
        raise ValueError("b has a mean of zero, which nothing is a multiple of")
    ratios = first.mean(1, keepdims=True) / below
    moved = ((first - ratios * second) / below).mean(0)
    half = float(stats.norm.ppf(0.5 + confidence / 2) * moved.std(ddof=1) / np.sqrt(moved.size))
    ratio = float(ratios.mean())
    return ratio, ratio - half, ratio + half


def paired_median_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float, float]:
    """Return how far the median of ``a`` is above that of ``b``, and its bootstrap interval, on the same images.

    Medians are taken of each seed and averaged; images are drawn anew, seeds are not. Percentile bootstrap, always with
    the same random numbers.

    Args:
        a: per-image values of one strategy, shape (seeds, n).
        b: those of the other, of the same images in the same order, likewise.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of resamples.

    Returns:
        The difference, the interval's low end, and its high end, in the unit of the values.

    Raises:
        ValueError: if the shapes do not fit, or there are fewer than two images.
    """
    return _bootstrap_of_medians(a, b, lambda a, b: np.mean(a, axis=0) - np.mean(b, axis=0), confidence, resamples)


def paired_median_ratio(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float, float]:
    """Return how many times the median of ``b`` that of ``a`` is, of each seed and averaged; else as the difference.

    Args and errors are those of :func:`paired_median_difference`; ``a`` and ``b`` are of the same seeds.
    """
    return _bootstrap_of_medians(
        a, b, lambda a, b: np.mean(np.asarray(a) / np.asarray(b), axis=0), confidence, resamples
    )


def _bootstrap_of_medians(
    a: ArrayLike, b: ArrayLike, combine: Callable[[list[Any], list[Any]], Any], confidence: float, resamples: int
) -> tuple[float, float, float]:
    """A function of the medians of each seed of ``a`` and of ``b``, and its percentile interval over the images."""
    first, second = _paired_samples(a, b)

    def combined(*samples: NDArray[Any], axis: int = -1) -> Any:
        medians = [np.median(sample, axis=axis) for sample in samples]
        return combine(medians[: len(first)], medians[len(first) :])

    found = stats.bootstrap(
        (*first, *second),
        combined,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return float(combined(*first, *second)), float(interval.low), float(interval.high)


def _paired_samples(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two arrays of shape (seeds, n), of the same n of at least 2."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] < 2:
        raise ValueError(
            f"a and b must have shape (seeds, n), the same n of at least 2; got {first.shape} and {second.shape}"
        )
    return first, second
