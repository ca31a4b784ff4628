"""config/keys.py: what may change on resume, what splits a report's rows, what a card tells, what names a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from omegaconf import OmegaConf
from PIL import Image
from runs import TINY, assert_same_run

from dtp_lightning.config.flatten import flatten, select
from dtp_lightning.config.keys import KEYS, OTHER, WHERE_DATA_LIES, key, key_of_override
from dtp_lightning.config.run_config import RunConfig
from dtp_lightning.config.schema import checked
from dtp_lightning.errors import ConfigError
from dtp_lightning.runs.folder import acquire
from dtp_lightning.runs.reader import settings_of

BASE = ("dataset=cifar10", "dataset.root=/mnt/first", "evaluation=[transfer]")
TRANSFER = ("+dataset@evaluation.transfer.to.mnist=mnist",)
FREE = [
    "dataset.root=/mnt/second",
    "dataset.download=false",
    "evaluation.transfer.to.mnist.root=/mnt/second",
    "trainer.log_every_n_steps=7",
    "++trainer.profiler=simple",
    "++trainer.benchmark=true",
    "trainer.accelerator=gpu",
    "trainer.max_epochs=99",
    "trainer.save_every_n_steps=3",
    "workers=7",
    "loading=stream",
    "logger=none",
    "callbacks=[alignment]",
]
FIXED = [
    ("learner.forward_optimizer.lr=0.25", "learner.forward_optimizer.lr (was 0.0005, now 0.25)"),
    ("seed=3", "seed (was 0, now 3)"),
    ("batch_size=7", "batch_size (was 100, now 7)"),
    ("model.channels=[4,4]", r"model.channels (was [32, 64, 128, 256], now [4, 4])"),
    ("dataset.val_size=10", "dataset.val_size (was 4000, now 10)"),
    ("++trainer.limit_train_batches=2", "trainer.limit_train_batches (was 1.0, now 2)"),
    ("++trainer.devices=2", "trainer.devices (was 1, now 2)"),
    ("++trainer.precision=bf16-mixed", "trainer.precision (was 32-true, now bf16-mixed)"),
]


def config(*words: str) -> RunConfig:
    return checked(composed(*words)[0])


@pytest.mark.parametrize("word", FREE)
def test_may_change_on_resume(word: str, tmp_path: Path) -> None:
    with acquire(tmp_path, config(*BASE, *TRANSFER)):
        pass
    with acquire(tmp_path, config(*BASE, *TRANSFER, word, "resume=true")) as state:
        assert state.checkpoint is None and state.finished is None


def test_other_evaluations_may_be_chosen_on_resume(tmp_path: Path) -> None:
    with acquire(tmp_path, config(*BASE, *TRANSFER)):
        pass
    with acquire(tmp_path, config(*BASE, "evaluation=[knn]", "resume=true")) as state:
        assert state.finished is None


@pytest.mark.parametrize("word,expected", FIXED)
def test_may_not_change_on_resume(word: str, expected: str, tmp_path: Path) -> None:
    with acquire(tmp_path, config(*BASE, *TRANSFER)):
        pass
    with pytest.raises(ConfigError) as raised, acquire(tmp_path, config(*BASE, *TRANSFER, word, "resume=true")):
        pass
    assert f"holds a run with another {expected}: resume it as it was, or choose another folder" in str(raised.value)


@pytest.mark.faults
@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_where_its_data_moved_to(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "first" / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "first" / "train" / name / f"{i}.png")
    words = (*TINY, "dataset=image_folder", "batch_size=4", "resume=true")
    for folder, epochs in (("moved", 1), ("stayed", 2)):
        where = f"dataset.root={tmp_path / 'first'}"
        run_pipeline(*words, where, f"trainer.max_epochs={epochs}", folder=tmp_path / folder)
    (tmp_path / "first").rename(tmp_path / "second")
    elsewhere = (f"dataset.root={tmp_path / 'second'}", "++trainer.profiler=simple", "workers=0", "loading=stream")
    run_pipeline(*words, *elsewhere, "trainer.max_epochs=2", folder=tmp_path / "moved")
    assert_same_run(tmp_path / "moved", tmp_path / "stayed")


def test_what_machine_a_run_had_does_not_split_a_report(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    neutral = ["trainer.accelerator=cpu", "++trainer.profiler=simple", "dataset.root=/mnt", "~callbacks", "logger=none"]
    neutral += ["workers=0", "seed=4", "learner=bp", "trainer.max_epochs=3", "evaluation=[knn]", "callbacks.a.b=3"]
    splitting = ["batch_size=5", "learner.target_step=0.1", "++trainer.precision=bf16-mixed", "evaluation.knn.k=5"]
    OmegaConf.save(OmegaConf.create([*neutral, *splitting]), tmp_path / ".hydra" / "overrides.yaml")
    assert settings_of(tmp_path).split() == sorted(word.removeprefix("++") for word in splitting)
    assert all(key_of_override(word).may_differ for word in neutral if word != "learner=bp")


def test_the_card_tells_what_made_the_weights_and_nothing_of_the_machine() -> None:
    told = dict(flatten(select(config(*BASE, *TRANSFER).model_dump(), lambda name: key(name).on_card)))
    assert "/mnt/first" not in told.values() and not any(name.endswith((".root", ".download")) for name in told)
    assert {"seed", "batch_size", "learner.target_step", "trainer.max_epochs", "dataset.val_size"} <= told.keys()
    assert not {name.partition(".")[0] for name in told} & {"logger", "callbacks", "evaluation", "resume", "workers"}


def test_folders_of_jobs_are_named_by_the_table() -> None:
    """Hydra takes names, which therefore stand in YAML; they are those of the table."""
    written = OmegaConf.load(Path(__file__).parents[1] / "conf" / "train.yaml")
    excluded = written.hydra.job.config.override_dirname.exclude_keys
    assert sorted(excluded) == sorted(WHERE_DATA_LIES)
    assert all(not key(name).in_folder_name for name in excluded)
    assert all(entry.in_folder_name for entry in (*KEYS[len(WHERE_DATA_LIES) :], OTHER))


def test_an_unknown_key_decides_what_is_learned() -> None:
    assert key("something.new") is OTHER and OTHER.splits_cells and not OTHER.free_on_resume


def test_flatten_tells_every_value_even_of_equal_keys() -> None:
    config = {"a": {"b": [1, {"c": 2}], "d": {}}, "a.d": 3}
    assert list(flatten(config)) == [("a.b", [1, {"c": 2}]), ("a.d", {}), ("a.d", 3)]
    assert [pair[0] for pair in flatten(config, lists=True)] == ["a.b[0]", "a.b[1].c", "a.d", "a.d"]
