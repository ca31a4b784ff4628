"""What scripts that write tables into pages share: where a table stands, and how a mean is written."""

from __future__ import annotations

import re
from collections.abc import Callable

from dtp_lightning.report.statistics import Interval
from dtp_lightning.report.tables import mean_entry

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, made: Callable[[str], str]) -> str:
    """A page in which every table, by its name, is written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{made(match[2]).rstrip()}\n{match[3]}", text)


def said(interval: Interval) -> str:
    """Mean and 95 % interval."""
    entry = mean_entry(interval, interval.n)
    return f"{entry.text} {entry.note}".strip()
