"""The recipes by other rules than backprop: composed, built on few channels, stepped; and one whole run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
import torch
from conftest import TINY, composed

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.learners import LARS, Learner
from dtp_lightning.losses import as_objective
from dtp_lightning.models import BlockTranspose

RECIPES = ("simclr", "barlow", "byol", "vicreg")
RULES = ("bp", "kolen_pollack", "gll", "dtp")
FEW = ("model.channels=[4,6,8,8]", "model.projector=[8]", "model.embedding_dim=6")
TINY32 = dataclasses.replace(TINY, height=32, width=32)


def step_of(preset: str, rule: str) -> Learner:
    """The learner of a preset after its first step on its own views, in the schedule's 1,900th batch."""
    values = checked(composed(f"experiment={preset}", f"learner={rule}", *FEW)[0])
    torch.manual_seed(0)
    loss = as_objective(build(values.loss))
    learner = build(values.learner, model=build(values.model, images=TINY32), loss=loss)
    learner.skip_first_phase()
    assert isinstance(learner.forward_optimizer, LARS) and learner.forward_optimizer.defaults["clip"]
    learner.follow_schedule(build(values.schedule))
    learner.set_length(5000)
    before = copy.deepcopy(learner.model.stages)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    for _ in range(2):  # of the first the rate is nearly 0
        metrics = learner.step(build(values.augment, images=TINY32)(images))
    assert all(torch.isfinite(value) for value in metrics.values())
    pairs = zip(before, learner.model.stages, strict=True)
    moved = [not torch.equal(old.forward_parameters()[0], new.forward_parameters()[0]) for old, new in pairs]
    assert sum(moved) == (len(moved) if learner.trains_all_stages else 1)
    return learner


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_small_recipes_teach_by_any_rule(recipe: str, rule: str) -> None:
    learner = step_of(f"{recipe}_cifar10_small", rule)
    assert (learner.target_network is not None) == (recipe == "byol")
    assert all(stage.feedback_map is not None for stage in learner.model.stages[1:]) or rule != "dtp"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_resnet18_give_targets_their_transposes(recipe: str) -> None:
    learner = step_of(f"{recipe}_cifar10_resnet18", "dtp")
    assert len(learner.model.stages) == 9
    assert all(isinstance(stage.feedback_map, BlockTranspose) for stage in learner.model.stages[1:])


@pytest.mark.parametrize("rule", ["dtp"])
def test_a_small_recipe_runs_to_its_end(rule: str, run_pipeline: Callable[..., dict], no_pictures: None,
                                        tmp_path: Path) -> None:  # fmt: skip
    figures = run_pipeline(
        "experiment=byol_cifar10_small", f"learner={rule}", "dataset=mnist5k", "batch_size=20", "trainer.max_epochs=1",
        "trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "schedule.forward.warmup=1",
        "model.channels=[4,6]", "model.projector=[8]", "model.embedding_dim=6", "logger=none", "evaluation=[knn]",
    )  # fmt: skip
    assert figures["learner"] == rule and figures["loss"] == "byol" and 0 < figures["knn/test_acc"] < 1
    assert "val/online_probe_acc" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_the_page_says_what_the_results_say() -> None:
    text = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.filled(text) == text, "python benchmarks/recipes.py"
