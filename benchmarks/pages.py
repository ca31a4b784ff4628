"""What scripts that write tables into pages share: where a table stands, how a mean and a mistake are said."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dtp_lightning.errors import DataError
from dtp_lightning.report.statistics import Interval
from dtp_lightning.report.tables import mean_entry

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, made: Callable[[str], str]) -> str:
    """A page in which every table, by its name, is written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{made(match[2]).rstrip()}\n{match[3]}", text)


def rewrite(page: Path, filled: Callable[[str], str]) -> None:
    """Write a page anew."""
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """A mistake in files ends the program with one line."""
    try:
        yield
    except DataError as error:
        sys.exit(f"error: {error}")


def said(interval: Interval) -> str:
    """Mean and 95 % interval."""
    entry = mean_entry(interval, interval.n)
    return f"{entry.text} {entry.note}".strip()
