"""A checkpoint -> the encoder in it, and the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor, nn

from dtp_lightning.errors import DataError
from dtp_lightning.runs.checkpoint_io import epochs_of
from dtp_lightning.runs.safe_loading import check_plain, load, trusted

MODEL = "learner.model."
LARGEST_IMAGE = 4096  # pixels a side
NAMED = ("learner", "loss", "model", "dataset")


@dataclass(frozen=True)
class Checkpoint:
    """What evaluation needs of a checkpoint.

    Attributes:
        path: of the file.
        names: option of each group that the run's names are made of.
        config: the run's resolved configuration.
        images: what the encoder was made for: the numbers of an :class:`dtp_lightning.data.images.ImageSpec`.
        classes: of the pre-training data; empty where it had no labels.
        epochs: that were completed.
        step: number of training batches.
        weights: state of the network.
    """

    path: Path
    names: dict[str, str]
    config: dict[str, Any]
    images: dict[str, Any]
    classes: list[str]
    epochs: int
    step: int
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """From a file that training wrote. Nothing in it is executed.

        Raises:
            DataError: there is no such file, or it is not one of ours.
        """
        if not path.is_file():
            raise DataError(f"checkpoint={path}: no such file; a run leaves <run folder>/checkpoints/last.ckpt")
        stored = load(path)
        try:
            run, epochs, step = stored["hyper_parameters"], epochs_of(stored), int(stored["global_step"])
            check_plain(run, path)
            weights = {k.removeprefix(MODEL): v for k, v in stored["state_dict"].items() if k.startswith(MODEL)}
            names = {group: str(run["names"][group]) for group in NAMED}
            config = {**run["config"], "seed": int(run["config"]["seed"])}
            images = TypeAdapter(dict[str, bool | int | float]).validate_python(run["images"])
            if not all(0 < images[side] <= LARGEST_IMAGE for side in ("height", "width")):
                raise ValueError("no size of an image")
            if any(weight.untyped_storage().nbytes() < weight.nbytes for weight in weights.values()):
                raise ValueError("a weight that is larger than what is stored of it")
            return cls(path, names, config, images, list(run["classes"]), epochs, step, weights)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"checkpoint={path} is damaged, or not a checkpoint of train.py") from error

    def node(self, group: str) -> Mapping[str, Any]:
        """The node of a group in the run's configuration, to be built.

        Raises:
            DataError: it is not there, or names what a file from elsewhere may not (see safe_loading.py).
        """
        node = self.config.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise DataError(f"checkpoint={self.path} is damaged, or not a checkpoint of train.py")
        return trusted(node, self.path)

    def check_fits(self, network: nn.Module) -> None:
        """Compare shapes alone, which a network on the meta device has too.

        Raises:
            DataError: the weights belong to another network.
        """
        known, stored = (
            {key: tuple(value.shape) for key, value in weights.items()}
            for weights in (network.state_dict(), self._weights_for(network))
        )
        for key in dict.fromkeys([*known, *stored]):
            if known.get(key) != stored.get(key):
                raise DataError(
                    f"the checkpoint's weights do not fit its model: {key} is {stored.get(key, 'not there')}, "
                    f"and the model's {known.get(key, 'not there')}"
                )

    def load_into(self, network: nn.Module) -> None:
        """Give a network these weights.

        Raises:
            DataError: they belong to another network.
        """
        try:
            network.load_state_dict(self._weights_for(network))
        except RuntimeError as error:
            raise DataError(f"the checkpoint's weights do not fit its model: {str(error).splitlines()[-1]}") from error

    def _weights_for(self, network: nn.Module) -> dict[str, Tensor]:
        """Without feedback maps that this network has not: networks of blocks get theirs from the rule alone."""
        known = network.state_dict().keys()
        return {key: w for key, w in self.weights.items() if key in known or ".feedback_map." not in key}
