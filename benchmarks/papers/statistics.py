"""Means, 95 % intervals and paired differences over seeds, by Student's t.

Few seeds and one number each: the spread over seeds is all that is known, so the interval is that
of a mean of n values with unknown variance. Paired differences take one seed's runs together, which
share start, pairs and problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval (infinite for a single seed)."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or −1 where the whole interval lies above or below 0, else 0: nothing can be said."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def interval(values: Sequence[float]) -> Interval:
    """Mean ± t(0.975, n − 1)·s/√n; ValueError without values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.inf, 1)
    half = t_quantile(0.975, count - 1) * stdev(values) / math.sqrt(count)
    return Interval(fmean(values), half, count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The interval of ours − theirs, value by value: both in the order of the same seeds."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def t_quantile(probability: float, freedom: int) -> float:
    """The `probability` quantile (above 0.5) of Student's t with `freedom` ≥ 1 degrees.

    By bisection of `t_cdf`, to 1e-10.
    """
    if freedom < 1 or not 0.5 < probability < 1:
        raise ValueError(f"no quantile {probability} with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """P(T ≤ t) for t ≥ 0, by the finite sums for whole degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4, with
    θ = atan(t/√ν): P(|T| ≤ t) is a sum of powers of cos θ.
    """
    theta = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return (1 + within) / 2


def standard_error(accuracy: float, problems: int) -> float:
    """Of an accuracy on so many problems (binomial); above 0 even where every answer is right.

    √(p(1 − p)/n) with p = (right + 1)/(n + 2), the rule of succession.
    """
    p = (accuracy * problems + 1) / (problems + 2)
    return math.sqrt(p * (1 - p) / problems)
