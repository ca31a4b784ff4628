"""The table of faults in docs/guides/resume.md, written by the tests that tried them: ``make test-faults``."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

BLOCK = re.compile(r"(<!-- table: faults -->\n)(.*?)(<!-- end -->)", re.DOTALL)
HEAD = "| tried | in | times | lost |\n|---|---|---|---|\n"
ROW = re.compile(r"^\| (.*) \| `(.*)` \| (\S+) \| (.*) \|$", re.MULTILINE)


class FaultsTable:
    """A plugin of pytest: a row for each test marked ``faults``; those that were not run keep theirs.

    Args:
        page: has the table's place in it.
    """

    def __init__(self, page: Path) -> None:
        self.page = page
        self.named: dict[str, tuple[str, str]] = {}
        self.tried: dict[tuple[str, str], int] = defaultdict(int)
        self.failed: dict[tuple[str, str], int] = defaultdict(int)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What each test is called."""
        for item in session.items:
            if item.get_closest_marker("faults") and isinstance(item, pytest.Function):
                self.named[item.nodeid] = (words_of(item.originalname), item.path.name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count it; ``record_property("tried", n)`` says how many faults one test makes."""
        name = self.named.get(report.nodeid)
        if name and not report.skipped and (report.when == "call" or report.failed):
            self.tried[name] += int(dict(report.user_properties).get("tried", 1)) if report.when == "call" else 0
            self.failed[name] += report.failed

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        text = self.page.read_text(encoding="utf-8")
        self.page.write_text(
            BLOCK.sub(lambda found: found[1] + self.table(found[2]) + found[3], text), encoding="utf-8"
        )

    def table(self, before: str) -> str:
        """The table, of one that was there."""
        rows = {(what, where): (times, lost) for what, where, times, lost in ROW.findall(before) if where != "in"}
        for name, tried in self.tried.items():
            lost = f"{self.failed[name]} failed" if self.failed[name] else "nothing"
            rows[name] = (f"{tried:,}", lost)
        ordered = sorted(rows.items(), key=lambda row: (row[0][1], row[0][0]))
        return HEAD + "".join(f"| {a} | `{b}` | {times} | {lost} |\n" for (a, b), (times, lost) in ordered)


def words_of(test: str) -> str:
    """A test's name in words."""
    return test.removeprefix("test_").replace("_", " ")
