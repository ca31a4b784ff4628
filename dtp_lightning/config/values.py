"""What a value must be beyond its type: facts that no annotation says, and secrets, which no configuration holds."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from dtp_lightning.config.flatten import flatten, last_word
from dtp_lightning.errors import ConfigError, SecretError

SECRET_KEY = re.compile(r"(^|_)(api_?keys?|access_?keys?|tokens?|passwords?|passwd|secrets?|credentials?)$", re.I)
SECRET_LENGTH = 8  # characters; a shorter value of a variable may stand in a configuration by chance
POSITIVE = ("temperature",)  # lightly's losses take any
OWNED = {
    "logger": "logger=... chooses it",
    "callbacks": "callbacks=[...] chooses them",
    "enable_progress_bar": "callbacks=[progress] shows it",
    "enable_checkpointing": "a run keeps its last checkpoint",
    "default_root_dir": "hydra.run.dir=... chooses the folder",
}
"""Parameters of the Trainer that other groups decide -> what to say instead."""


def _below_one(value: Any) -> bool:
    return isinstance(value, int) and value < 1


TRAINER_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "precision",
        lambda value: value not in (None, 32, "32", "32-true", "bf16-mixed"),
        "={value}: must be 32-true or bf16-mixed",
    ),
    (
        "gradient_clip_val",
        lambda value: value not in (None, 0),
        " has no meaning for learners that set their own gradients: remove it",
    ),
    (
        "accumulate_grad_batches",
        lambda value: value not in (None, 1),
        " has no meaning for learners that set their own gradients: remove it",
    ),
    (
        "max_epochs",
        lambda value: not isinstance(value, int) or value < 1,
        "={value}: at least one epoch is needed, and a number of them",
    ),
    ("max_steps", lambda value: value == 0, "={value}: at least one step is needed, or -1 for no limit"),
    ("limit_train_batches", lambda value: value == 0, "={value}: at least one batch is needed; 1.0 takes all"),
    ("log_every_n_steps", _below_one, "={value}: should be greater than 0"),
    ("check_val_every_n_epoch", _below_one, "={value}: should be greater than 0"),
    ("devices", lambda value: value in (0, "0"), "={value}: at least one device is needed, or -1 for all"),
    (
        "strategy",
        lambda value: value not in (None, "auto", "ddp"),
        "={value}: must be auto or ddp: learners combine gradients themselves",
    ),
    ("num_nodes", lambda value: value not in (None, 1), "={value}: training runs on the devices of one machine"),
)
"""Parameter of the Trainer -> what it must not be, and what to say after its name."""


def is_secret(key: str) -> bool:
    """Whether the last word of a dotted key says that its value is nobody else's business."""
    return bool(SECRET_KEY.search(last_word(key)))


def refuse_secrets(config: Mapping[str, Any]) -> None:
    """A configuration is written to the run folder, to the checkpoint and to the tracker.

    Raises:
        SecretError: a key is called api_key or the like and has a value, or a value contains that of such a
            variable of the environment.
    """
    known = [(n, v) for n, v in os.environ.items() if is_secret(n) and len(v) >= SECRET_LENGTH]
    for path, value in flatten(config, lists=True):
        if value is not None and is_secret(path):
            raise SecretError(secret_message(path))
        for name, secret in known:
            if isinstance(value, str) and secret in value:
                raise SecretError(f"{path} holds the value of {name}, and a configuration is stored: take it out")


def secret_message(key: str) -> str:
    """What to say of a secret in a configuration or on a command line."""
    return (
        f"{key}: a configuration is stored and holds no secrets; W&B takes its key from `wandb login`, or WANDB_API_KEY"
    )


def check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse NaN and infinity everywhere, and what is not above 0 where it must be.

    Raises:
        ConfigError: naming the key.
    """
    for path, value in flatten(config, lists=True):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}={value}: should be a finite number")
        if last_word(path) in POSITIVE and isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"{path}={value}: should be greater than 0")


def check_optimizer(path: str, node: Mapping[str, Any], target: Any) -> None:
    """Let a torch optimiser check its own numbers now, on one parameter, and name the key.

    Raises:
        ConfigError: it refused.
    """
    import torch

    if not (inspect.isclass(target) and issubclass(target, torch.optim.Optimizer) and node.get("_partial_")):
        return
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        target([torch.zeros(1, requires_grad=True)], **given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def check_trainer(trainer: Mapping[str, Any], loss: Mapping[str, Any]) -> None:
    """What manual optimisation cannot honour is refused rather than ignored.

    Raises:
        ConfigError: naming the key.
    """
    for key, instead in OWNED.items():
        if key in trainer:
            raise ConfigError(f"trainer.{key} is not the trainer's to say here: {instead}")
    if loss.get("gather_distributed"):  # of lightly's: it would gather what learners have gathered
        raise ConfigError("loss.gather_distributed=true: learners give a loss the whole batch already; remove it")
    for key, wrong, message in TRAINER_RULES:
        value = trainer.get(key)
        if wrong(value):
            shown = "null" if value is None else value
            raise ConfigError(f"trainer.{key}" + message.format(value=shown))
