"""Examples in docstrings run, and docs/glossary.md names what exists."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT

import dtp_lightning.learners
import dtp_lightning.losses
import dtp_lightning.models
from dtp_lightning.learners import DirectTraining, Feedback

PACKAGES = (dtp_lightning.losses, dtp_lightning.learners, dtp_lightning.models)
EXAMPLES = (torch.nn.Module, Feedback, DirectTraining)
MODULES = [
    f"{package.__name__}.{module.name}" for package in PACKAGES for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed, "see the captured output"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_loss_and_learner_has_an_example(package: ModuleType) -> None:
    public = {name: getattr(package, name) for name in package.__all__}
    classes = {name: thing for name, thing in public.items() if inspect.isclass(thing) and issubclass(thing, EXAMPLES)}
    bases = {name for name, thing in classes.items() if inspect.isabstract(thing)} | {"Objective"}
    missing = {name for name, thing in classes.items() if ">>>" not in (thing.__doc__ or "")}
    if package is dtp_lightning.models:
        missing &= {"Network", "Stage"}
    assert not missing - bases


def code_names(row: str) -> list[str]:
    """Dotted names in backticks in the second column of a row of the glossary."""
    cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
    return re.findall(r"`([\w.]+)`", cells[1])


def glossary() -> list[str]:
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    return [name for row in rows if not row.startswith("| symbol") for name in code_names(row)]


def test_glossary_is_read() -> None:
    assert len(glossary()) > 40


@pytest.mark.parametrize("name", sorted(set(glossary())))
def test_glossary_names_what_exists(name: str) -> None:
    assert functools.reduce(resolved, name.split("."), dtp_lightning) is not None


def resolved(thing: Any, part: str) -> Any:
    """A submodule or attribute of a thing; else an annotated attribute, or an argument, of a class or function."""
    if hasattr(thing, part):
        return getattr(thing, part)
    if isinstance(thing, ModuleType):
        return importlib.import_module(f"{thing.__name__}.{part}")
    declared = {**inspect.get_annotations(thing), **inspect.signature(thing).parameters}
    assert part in declared, f"{thing} has no {part}"
    return declared[part]
