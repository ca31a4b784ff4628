"""Whether the parts of a run fit each other: asked when they are built, before an hour of training is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import ConfigError

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
