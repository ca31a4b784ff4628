"""What a handful of seeds can tell: intervals, paired differences, permutation p-values."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

FLIPS = 2**14
"""Sign patterns tried: all of them up to 14 seeds, which makes p exact, and so many random ones above."""


@dataclass(frozen=True)
class Interval:
    """Mean of n values with its 95 % confidence interval (Student's t); low and high are nan for a single value."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Interval:
        """From at least one value. Student's t, not the bootstrap, whose interval is far too narrow for few seeds."""
        n, mean = len(values), statistics.fmean(values)
        if n < 2:
            return cls(n, mean, math.nan, math.nan)
        half = _quantile((1 + level) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
        return cls(n, mean, mean - half, mean + half)


@dataclass(frozen=True)
class Paired:
    """The difference of two cells over the seeds that both have.

    Attributes:
        difference: mean of a - b, with its interval.
        p: two-sided, of the sign-flip (paired permutation) test; exact up to 14 seeds; nan for fewer than two seeds.
        smallest_p: the least p that so many seeds can give, 2 / 2^n up to 14 seeds: above 0.05 for n < 6.
    """

    difference: Interval
    p: float
    smallest_p: float

    @classmethod
    def of(cls, a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
        """From seed -> value of two cells; None where they share no seed."""
        seeds = sorted(set(a) & set(b))
        if not seeds:
            return None
        differences = [a[seed] - b[seed] for seed in seeds]
        n = len(seeds)
        return cls(
            Interval.of(differences), _sign_flip_p(tuple(differences)), 2 / min(2**n, FLIPS + 1) if n > 1 else math.nan
        )

    def sentence(self, a: str, b: str, unit: str = "points") -> str:
        """What may be said about it."""
        d = self.difference
        if d.n < 2:
            return f"{a} - {b}: {d.mean:+.2f} {unit} on one seed; nothing can be said about chance."
        text = (
            f"{a} - {b}: {d.mean:+.2f} {unit} [{d.low:+.2f}, {d.high:+.2f}] over {d.n} shared seeds, p = {self.p:.3f}"
        )
        if self.smallest_p > 0.05:
            return f"{text} (with {d.n} seeds p cannot fall below {self.smallest_p:.3f}: use 6 or more to reach 0.05)."
        verdict = "a difference" if self.p < 0.05 else "no difference that these seeds can show"
        return f"{text}: {verdict}."


@functools.cache  # all cells of a study have as many seeds
def _quantile(level: float, degrees: int) -> float:
    return float(special.stdtrit(degrees, level))  # what scipy.stats.t.ppf calls


@functools.lru_cache(maxsize=10_000)  # the terminal and the page ask for the same
def _sign_flip_p(differences: tuple[float, ...]) -> float:
    """Two-sided p of the mean, were the sign of each difference chance; nan for fewer than two."""
    if len(differences) < 2:
        return math.nan
    from scipy import stats  # half a second, and runs of one seed need none of it

    test = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS, rng=0
    )
    return float(test.pvalue)
