"""Shared by the tests of runs that are stopped, broken and resumed: short runs, and what two of them must share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dtp_lightning.module import PretrainModule

TINY = (
    "trainer.max_epochs=4",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "model.channels=[4,6]",
    "batch_size=50",
    "evaluation=[]",
    "logger=none",
    "callbacks=[]",
)
NOT_ITS_OWN = ("fit/", "cost/seconds", "git_commit")  # times, and a commit that may land while the tests run


def stored(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return stored(folder)["state_dict"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def figures(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if not key.startswith(NOT_ITS_OWN)}


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, optimisers' and generators' states, figures and rows, bit for bit."""
    assert_equal(figures(one), figures(other), "summary.json")
    assert_equal(rows(one), rows(other), "metrics.csv")
    ours, theirs = stored(one), stored(other)
    for part in ("state_dict", "optimizer_states", "random", "global_step"):
        assert_equal(ours[part], theirs[part], part)


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{where}.{i}")
    else:
        assert ours == theirs, f"{where}: {ours} != {theirs}"


def during(
    monkeypatch: pytest.MonkeyPatch, epoch: int | None, batch: int, act: Callable[[PretrainModule], object]
) -> None:
    """Do something in the middle of a training step; epoch None takes it back."""
    step = getattr(PretrainModule.training_step, "whole", PretrainModule.training_step)

    def disturbed(self: PretrainModule, images: Any, batch_idx: int) -> None:
        if self.current_epoch == epoch and batch_idx == batch:
            act(self)
        step(self, images, batch_idx)

    disturbed.whole = step  # type: ignore[attr-defined]
    monkeypatch.setattr(PretrainModule, "training_step", disturbed)


def fail(module: PretrainModule) -> None:
    raise RuntimeError("the lights went out")
