"""Intervals and p-values against known numbers."""

from __future__ import annotations

import math

import pytest

from dtp_lightning.report.statistics import Interval, Paired


def test_interval_is_students() -> None:
    """t(0.975, 2) = 4.3027; standard error of 1, 2, 3 is 1 / sqrt(3)."""
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.n, interval.mean) == (3, 2.0)
    assert interval.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert math.isnan(Interval.of([5.0]).low)


def test_paired_difference_uses_shared_seeds_only() -> None:
    paired = Paired.of({0: 3.0, 1: 4.0, 7: 100.0}, {0: 2.0, 1: 1.0, 8: -50.0})
    assert paired.difference.n == 2 and paired.difference.mean == 2.0
    assert Paired.of({0: 1.0}, {1: 1.0}) is None


def test_permutation_p_is_exact() -> None:
    """All of one sign: only the pattern seen and its mirror are as extreme."""
    six = Paired.of(dict.fromkeys(range(6), 1.0), dict.fromkeys(range(6), 0.0))
    assert six.p == six.smallest_p == 2 / 64
    mixed = Paired.of({0: 1.0, 1: -1.0}, {0: 0.0, 1: 0.0})
    assert mixed.p == 1.0
    ten = Paired.of({i: 1.0 + 0.1 * i for i in range(10)}, dict.fromkeys(range(10), 0.0))
    assert ten.p == ten.smallest_p == 2 / 2**10
    many = Paired.of({i: 1.0 + 0.1 * i for i in range(20)}, dict.fromkeys(range(20), 0.0))
    assert many.smallest_p <= many.p < 0.001


def test_permutation_p_by_counting() -> None:
    """Of the 8 sums of +-1, +-2, +-4 all but the four of |s| = 1 or 3 reach |-1 + 2 + 4| = 5."""
    paired = Paired.of({0: -1.0, 1: 2.0, 2: 4.0}, dict.fromkeys(range(3), 0.0))
    assert paired is not None and paired.p == 4 / 8


def test_the_sentence_says_what_seeds_allow() -> None:
    three = Paired.of({0: 1.0, 1: 1.1, 2: 0.9}, {0: 0.0, 1: 0.0, 2: 0.0}).sentence("dtp", "bp")
    assert "+1.00 points" in three and "cannot fall below 0.250" in three
    six = Paired.of({i: 1 + 0.01 * i for i in range(6)}, dict.fromkeys(range(6), 0.0)).sentence("dtp", "bp")
    assert six.endswith("a difference.") and "p = 0.031" in six
    none = Paired.of({i: (-1.0) ** i for i in range(6)}, dict.fromkeys(range(6), 0.0)).sentence("dtp", "bp")
    assert "no difference that these seeds can show" in none
    assert "one seed" in Paired.of({0: 1.0}, {0: 2.0}).sentence("a", "b")
