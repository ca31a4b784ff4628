"""Whether the parts of a run fit each other: asked when they are built, before an hour of training is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import ConfigError
from dtp_lightning.runs.checkpoint_io import epochs_of
from dtp_lightning.runs.safe_loading import load

log = logging.getLogger(__name__)


def check_comparisons(name: str, loss: nn.Module, views: int, batch_size: int) -> None:
    """A contrastive loss has something to compare.

    Args:
        name: of the loss, for the message.
        loss: its ``supervised`` says that it needs no second view, its ``smallest_batch`` (2 unless it says
            otherwise) how many images it compares.
        views: V, of each image.
        batch_size: images.

    Raises:
        ConfigError: one view, or a batch of one image.
    """
    if getattr(loss, "supervised", False):
        return
    if views < 2:
        raise ConfigError(f"loss={name} compares two views, and these augmentations give one: choose another")
    if batch_size < getattr(loss, "smallest_batch", 2):
        raise ConfigError(f"batch_size={batch_size}: loss={name} compares the images of a batch and needs at least 2")


def usable(parts: Mapping[str, Any], data: ImageData, *, default: bool) -> dict[str, Any]:
    """Those that can work on this data: what reads labels is left out, with a warning, where there are none.

    Args:
        parts: name -> evaluation or callback; its ``needs_labels`` says whether it reads labels.
        data: what they would read.
        default: for those that do not say.

    Raises:
        ConfigError, DataError: one cannot work on this data.
    """
    needing = [name for name, part in parts.items() if getattr(part, "needs_labels", default)]
    kept = {name: part for name, part in parts.items() if data.classes or name not in needing}
    if len(kept) < len(parts):
        log.warning("these images have no labels: %s left out", ", ".join(needing))
    check_each(kept, data)
    return kept


def check_each(parts: Mapping[str, Any], data: ImageData) -> None:
    """Ask every part that has a ``check(data)`` whether it can work on this data.

    Raises:
        ConfigError, DataError: from the part.
    """
    for part in parts.values():
        if check := getattr(part, "check", None):
            check(data)


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
