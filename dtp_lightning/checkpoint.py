"""A checkpoint -> the encoder in it, and the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtp_lightning.checkpoint_io import UNREADABLE, epochs_of
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import DataError

MODEL = "learner.model."


@dataclass(frozen=True)
class Checkpoint:
    """What evaluation needs of a checkpoint.

    Attributes:
        names: option of each group that the run's names are made of.
        config: the run's resolved configuration.
        images: what the encoder was made for.
        classes: of the pre-training data; empty where it had no labels.
        epochs: that were completed.
        weights: state of the network.
    """

    names: dict[str, str]
    config: dict[str, Any]
    images: ImageSpec
    classes: list[str]
    epochs: int
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """From a file that training wrote. Nothing in it is executed.

        Raises:
            DataError: there is no such file, or it is not one of ours.
        """
        if not path.is_file():
            raise DataError(f"checkpoint={path}: no such file; a run leaves <run folder>/checkpoints/last.ckpt")
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            kept = stored["hyper_parameters"]
            weights = {k.removeprefix(MODEL): v for k, v in stored["state_dict"].items() if k.startswith(MODEL)}
            images = ImageSpec(**kept["images"])
            return cls(kept["names"], kept["config"], images, kept["classes"], epochs_of(stored), weights)
        except UNREADABLE as error:
            raise DataError(f"checkpoint={path} is damaged, or not a checkpoint of train.py") from error

    def load_into(self, network: nn.Module) -> None:
        """Give a network these weights.

        Raises:
            DataError: they belong to another network.
        """
        try:
            network.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise DataError(f"the checkpoint's weights do not fit its model: {str(error).splitlines()[-1]}") from error
