"""locks/: every dependency of pyproject.toml at a version within its bounds, each file by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_LOCKED = {"ray"}  # it needs other versions than the rest


def locked(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> version and hashes; a line that is anything else fails."""
    found = {}
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    for line in text.splitlines():
        name, version, hashes = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==(\S+) +(.*)", line).groups()  # type: ignore[union-attr]
        each = hashes.split()
        assert each and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in each), line
        assert canonicalize_name(name) not in found
        found[canonicalize_name(name)] = version, frozenset(each)
    return found


def asked(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


@pytest.mark.parametrize("name, extras", [("base", ()), ("all", tuple(e for e in EXTRAS if e not in NOT_LOCKED))])
def test_the_lock_has_every_dependency_within_its_bounds(name: str, extras: tuple[str, ...]) -> None:
    lock = locked(ROOT / "locks" / f"{name}.txt")
    builds = [Requirement(line) for line in (ROOT / "locks" / "build.in").read_text().splitlines() if line[0] != "#"]
    for requirement in [*asked(*extras), *builds]:
        version, _ = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"make lock: {requirement} and {version}"


def test_the_locks_agree() -> None:
    base, everything = (locked(ROOT / "locks" / f"{name}.txt") for name in ("base", "all"))
    assert base.items() <= everything.items() and base.keys() < everything.keys()


def test_the_makefile_locks_every_extra() -> None:
    text = (ROOT / "Makefile").read_text()
    named = re.search(r"^EXTRAS := ([a-z ]+?) *(#|$)", text, re.MULTILINE).group(1).split()  # type: ignore[union-attr]
    assert {*named} == EXTRAS.keys() - NOT_LOCKED
