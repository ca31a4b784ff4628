"""Composition: every YAML file works, every mistake is one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import CONF, ROOT, TINY, choice, composed, options, processor

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.errors import ConfigError

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
EVERY = [(g, o) for g in GROUPS for o in options(g)]


@pytest.mark.parametrize("group,option", EVERY, ids=[f"{g}={o}" for g, o in EVERY])
def test_every_yaml_composes_and_passes_the_check(group: str, option: str) -> None:
    checked(composed(*choice(group, option))[0])


@pytest.mark.parametrize("option", options("trainer"))
def test_trainers_instantiate(option: str) -> None:
    build({**checked(composed(f"trainer={option}")[0]).lightning_trainer, "logger": False})


@pytest.mark.parametrize("option", options("loss"))
def test_losses_instantiate(option: str) -> None:
    build(checked(composed(f"loss={option}")[0]).loss)


@pytest.mark.parametrize("option", options("augment"))
def test_augmentations_instantiate(option: str) -> None:
    build(checked(composed(f"augment={option}")[0]).augment, images=TINY)


def test_every_yaml_says_what_it_is() -> None:
    for group, option in EVERY:
        first = (CONF / group / f"{option}.yaml").read_text().splitlines()
        comments = [line for line in first[:2] if line.startswith("# ") and "@package" not in line]
        assert comments, f"conf/{group}/{option}.yaml begins without a comment"


WRONG_VALUES = [
    ("+learner.target_stp=2", "unknown key 'learner.target_stp'; did you mean 'learner.target_step'?"),
    ("learner=dtp_autoencoder +learner.feedback.noise_sd=2", "did you mean 'learner.feedback.noise_std'?"),
    ("+trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
    ("+learner.forward_optimizer.lrr=1", "unknown key 'learner.forward_optimizer.lrr'; did you mean"),
    ("+sed=1", "unknown key 'sed'; did you mean 'seed'?"),
    ("seed=abc", "seed=abc: should be a valid integer"),
    ("seed=", "seed=: should be a valid integer"),
    ("seed=-1", "seed=-1: should be greater than or equal to 0"),
    ("batch_size=0", "batch_size=0: should be greater than 0"),
    ("batch_size=2.5", "batch_size=2.5: should be a valid integer"),
    ("batch_size=null", "batch_size=null: should be a valid integer"),
    ("learner.forward_optimizer.lr=fast", "learner.forward_optimizer.lr=fast: should be a valid number"),
    ("learner=dtp_autoencoder learner.feedback.noise_std=-1", "should be greater than or equal to 0"),
    ("learner.target_step=0", "learner.target_step=0: should be greater than 0"),
    ("learner=dtp_autoencoder learner.order=target_first", "did you mean 'targets_first'?"),
    ("loss.reduction=average", "must be one of active, mean, sum"),
    ("model.channels=[8,wide]", "model.channels=[8, 'wide']: should be a valid integer"),
    ("learner.feedback=null", "learner.feedback=null: should be an instance of Feedback"),
    ("evaluation.knn=5", "evaluation.knn must be a group's name or a section with a _target_, not 5"),
    ("trainer.strategy=fsdp", "trainer.strategy=fsdp: must be auto or ddp"),
    ("+trainer.num_nodes=2", "trainer.num_nodes=2: training runs on the devices of one machine"),
    ("loss=simclr +loss.gather_distributed=true", "learners give a loss the whole batch already"),
    ("trainer.devices=2.5", "trainer.devices=2.5: should be a valid"),
    ("augment.flip=1.5", "less than or equal to 1"),
    ("trainer.max_epochs=0", "at least one epoch is needed"),
    ("trainer.max_epochs=many", "trainer.max_epochs=many: should be a valid integer"),
    ("trainer.precision=16-mixed", "must be 32-true or bf16-mixed"),
    ("+trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val has no meaning"),
    ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches has no meaning"),
    ("learner.forward_optimizer._target_=torch.optim.Adm", "'torch.optim.Adm' cannot be imported"),
    ("dataset=cifar10 dataset.val_size=-1", "dataset.val_size=-1: should be greater than 0"),
    ("evaluation.knn.k=0", "evaluation.knn.k=0: should be greater than 0"),
    ("logger.wandb.mode=of", "must be one of auto, online, offline"),
]


@pytest.mark.parametrize("line,expected", WRONG_VALUES, ids=[w[0] for w in WRONG_VALUES])
def test_wrong_values(line: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(composed(*line.split())[0])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def train(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return processes.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


WRONG_LINES = [  # as processes; many more, in this one, in wrong_inputs.py
    ("trainer.max_epoch=3", "error: unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("+experiment=smoke", "error: experiment has one value already: write experiment=... without the +"),
    ("batch_size=9999", "error: batch_size=9999 is larger than the 3000 training images: choose a smaller one"),
]


@pytest.mark.parametrize("line,expected", WRONG_LINES, ids=[w[0] for w in WRONG_LINES])
def test_wrong_command_lines_are_one_line(line: str, expected: str, tmp_path: Path) -> None:
    done = train(*line.split(), "logger=none", folder=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr and "+trainer" not in done.stderr


def test_traceback_on_request(tmp_path: Path) -> None:
    done = train("batch_size=-3", folder=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_help_is_useful_and_quick(tmp_path: Path) -> None:
    """Processor time, which other programs on this machine hardly change; the clock's is the same on a quiet one."""
    seconds = []
    for _ in range(2):
        begun = processor()
        command = [sys.executable, str(ROOT / "train.py"), "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        seconds.append(processor() - begun)
    assert done.returncode == 0
    for expected in ("dtp train loss=hinge learner=dtp", "learner: bp, clapp_feedback, ddtp_linear", "batch_size: "):
        assert expected in done.stdout
    assert min(seconds) < 2


def test_shell_completion_knows_the_groups(tmp_path: Path) -> None:
    line = "python train.py learner="
    done = train("-sc", "query=bash", folder=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2")
    assert {"learner=bp", "learner=dtp"} <= set(done.stdout.split())


def test_what_is_built_from_python_says_where_it_went_wrong() -> None:
    node = checked(composed("loss.diagonals=5")[0]).loss
    with pytest.raises(ConfigError, match="pairs=cross reduction=sum"):
        build(node)


def test_values_of_what_was_not_chosen() -> None:
    """A preset fills an evaluation that the command line left out."""
    with pytest.raises(ConfigError, match=r"add it to evaluation=\[\.\.\.\], or take it out by ~evaluation\.transfer"):
        checked(composed("experiment=thesis_cifar", "evaluation=[knn]")[0])
