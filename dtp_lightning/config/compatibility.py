"""Whether the parts of a run fit each other: asked when they are built, before an hour of training is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

from dtp_lightning.data.images import ImageData
from dtp_lightning.data.reader import DataReader
from dtp_lightning.errors import ConfigError
from dtp_lightning.losses.objective import Objective
from dtp_lightning.runs.checkpoint_io import epochs_of
from dtp_lightning.runs.safe_loading import load

log = logging.getLogger(__name__)

Part = TypeVar("Part")


def check_comparisons(name: str, loss: Objective, views: int, batch_size: int) -> None:
    """A contrastive loss has something to compare.

    Args:
        name: of the loss, for the message.
        loss: a supervised one needs no second view, the others at least ``smallest_batch`` images.
        views: V, of each image.
        batch_size: images.

    Raises:
        ConfigError: one view, or a batch of one image.
    """
    if loss.supervised:
        return
    if views < 2:
        raise ConfigError(f"loss={name} compares two views, and these augmentations give one: choose another")
    if batch_size < loss.smallest_batch:
        raise ConfigError(
            f"batch_size={batch_size}: loss={name} compares the images of a batch and needs at least "
            f"{loss.smallest_batch}"
        )


def usable(parts: Mapping[str, Part], data: ImageData) -> dict[str, Part]:
    """Those that can work on this data: what reads labels is left out, with a warning, where there are none.

    Args:
        parts: name -> evaluation or callback; what is no :class:`DataReader` (a callback of Lightning's own) stays.
        data: what they would read.

    Raises:
        ConfigError, DataError: one cannot work on this data.
    """
    readers = {name: part for name, part in parts.items() if isinstance(part, DataReader)}
    unlabelled = [name for name, reader in readers.items() if reader.needs_labels and not data.classes]
    if unlabelled:
        log.warning("these images have no labels: %s left out", ", ".join(unlabelled))
    for name, reader in readers.items():
        if name not in unlabelled:
            reader.check(data)
    return {name: part for name, part in parts.items() if name not in unlabelled}


def check_start(path: Path, module: nn.Module, max_epochs: int) -> None:
    """A checkpoint to go on from belongs to this learner and network, and has epochs left to run.

    Args:
        path: of the checkpoint.
        module: that its weights will be loaded into.
        max_epochs: of this run.

    Raises:
        ConfigError: it does not.
        DataError: the checkpoint cannot be read.
    """
    stored = load(path)
    ours, theirs = (
        {key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")}
        for state in (module.state_dict(), stored.get("state_dict", {}))
    )
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            here, there = (shapes.get(key, "none") for shapes in (ours, theirs))
            raise ConfigError(
                f"{path} is of another learner, model or data set ({key.removeprefix('learner.')}: "
                f"{there} there, {here} here): resume with the choices that it was trained with"
            )
    if (done := epochs_of(stored)) > max_epochs:
        raise ConfigError(f"{path} has seen {done} epochs already: set trainer.max_epochs to more than that")
