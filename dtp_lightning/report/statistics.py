"""What a handful of seeds can tell: intervals, paired differences, permutation p-values."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

EXACT = 14  # seeds up to which all sign flips are tried; 2^14 of them


@dataclass(frozen=True)
class Interval:
    """Mean of n values with its 95 % confidence interval (Student's t); low and high are nan for a single value."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Interval:
        """From values, at least one. t, not the bootstrap: for few seeds that is far too narrow."""
        n, mean = len(values), statistics.fmean(values)
        if n < 2:
            return cls(n, mean, math.nan, math.nan)
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
        return cls(n, mean, mean - half, mean + half)


@dataclass(frozen=True)
class Paired:
    """The difference of two cells over the seeds that both have.

    Attributes:
        difference: mean of a - b, with its interval.
        p: two-sided, by flipping signs of the differences (exact up to 14 seeds, else 20,000 random flips); nan for
            fewer than two seeds.
        smallest_p: what p could be at best with so many seeds, 2 / 2^n: above 0.05 for n < 6.
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
        return cls(Interval.of(differences), _sign_flip_p(differences), min(1.0, 2 / 2**n) if n > 1 else math.nan)

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


def _sign_flip_p(differences: Sequence[float]) -> float:
    """Share of sign patterns whose mean is at least as far from 0 as the one that was seen."""
    n = len(differences)
    if n < 2:
        return math.nan
    seen = abs(sum(differences)) - 1e-12
    if n <= EXACT:
        patterns = list(itertools.product((1, -1), repeat=n))
        extreme = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= seen for p in patterns)
        return extreme / len(patterns)
    result = stats.permutation_test(
        (list(differences),), statistics.fmean, permutation_type="samples", n_resamples=20_000, rng=0
    )
    return float(result.pvalue)
