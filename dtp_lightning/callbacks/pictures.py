"""Pictures of what the encoder learned, every few epochs: map of its features, first filters, nearest neighbours."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import pytorch_lightning as pl
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.projection import Map, check_map, project
from dtp_lightning.callbacks.schedule import due
from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import DataError
from dtp_lightning.figures.pictures import plot_filters, plot_map, plot_neighbours
from dtp_lightning.learners import Learner
from dtp_lightning.loggers.loggers import ImageLogger
from dtp_lightning.models import Network, features_of

SMALLEST = 10  # images of a map

log = logging.getLogger(__name__)


class Pictures(DataCallback):
    """Draws ``plots/embedding_map.png``, ``filters.png`` and ``neighbours.png`` every k epochs and after the last.

    They are drawn after validation, from the network as it is, in evaluation mode; the training is unchanged. Earlier
    ones stay in ``plots/epochs/``; W&B and TensorBoard get each of them at its step.

    Args:
        data: validation images are mapped and are queries; neighbours are training images.
        folder: the run folder.
        every_n_epochs: k, in epochs.
        images: largest number of validation images of the map, evenly spaced.
        map: ``pca`` (milliseconds), ``tsne`` (scikit-learn; 1,000 images take some 10 s) or ``umap`` (umap-learn).
        queries: validation images whose neighbours are drawn, one a class.
        neighbours: of each query, by cosine similarity of the features.
        bank: largest number of training images that neighbours are chosen from, evenly spaced.

    Raises:
        ConfigError: ``umap`` is asked for and not installed.
    """

    def __init__(
        self,
        data: ImageData,
        folder: Path,
        every_n_epochs: PositiveInt = 5,
        images: Annotated[int, Field(ge=SMALLEST)] = 1000,
        map: Map = "pca",
        queries: PositiveInt = 6,
        neighbours: PositiveInt = 8,
        bank: PositiveInt = 5000,
    ) -> None:
        check_map(map)
        self.plots = folder / "plots"
        self.every_n_epochs = every_n_epochs
        self.map: Map = map
        self.classes = data.classes
        self.val = data.val.subset(images)
        self.queries = data.val.select(_one_a_class(data.val.labels, queries))
        self.bank = data.train.subset(bank)
        self.neighbours = min(neighbours, len(self.bank))

    def check(self, data: ImageData) -> None:
        """Require ten validation images.

        Raises:
            DataError: there are fewer.
        """
        if len(data.val) < SMALLEST:
            raise DataError(f"pictures need {SMALLEST} validation images, and there are {len(data.val)}: add some")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, if the epoch is due."""
        if not due(trainer, self.every_n_epochs) or not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        drawn = self.draw(cast(Learner, pl_module.learner).model, self.plots / "epochs", epoch)
        for path in drawn:
            name = path.name.replace(f"_epoch{epoch:04d}", "")
            shutil.copyfile(path, self.plots / name)
            if epoch == trainer.max_epochs:
                continue  # trackers get what is in plots/ when the run ends
            for logger in trainer.loggers:
                if isinstance(logger, ImageLogger):
                    logger.log_image(f"plots/{Path(name).stem}", [str(path)], step=trainer.global_step)

    def draw(self, network: Network, folder: Path, epoch: int) -> list[Path]:
        """Draw the pictures of a network.

        Args:
            network: in evaluation mode.
            folder: to draw to.
            epoch: of the titles and of the files' names.

        Returns:
            The PNG files. There are no filters if the first layer is not one on images of 1 or 3 channels, and none at
            all, with a warning, if a feature is not finite.
        """
        features = features_of(network, self.val.images)
        if not features.isfinite().all():
            log.warning("epoch %d: features are not finite, so there are no pictures", epoch)
            return []
        paths = {name: folder / f"{name}_epoch{epoch:04d}.png" for name in ("embedding_map", "filters", "neighbours")}
        points, axes = project(features, self.map)
        kind = "PCA" if axes[0] else {"tsne": "t-SNE", "umap": "UMAP"}[self.map]
        title = f"{kind} of the features of {len(points):,} validation images, epoch {epoch}"
        plot_map(points, self.val.labels, self.classes, title, axes, paths["embedding_map"])
        index = self._nearest(network)
        found = self.bank.images[index.flatten()].unflatten(0, index.shape)
        plot_neighbours(
            self.queries.images[:], found, self.queries.labels, self.bank.labels[index], self.classes,
            f"Nearest training images by features, epoch {epoch}", paths["neighbours"],
        )  # fmt: skip
        weights = first_filters(network, self.val.images.shape[1:])
        if weights is None:
            del paths["filters"]
        else:
            plot_filters(weights, f"Filters of the first layer, epoch {epoch} (grey is 0)", paths["filters"])
        return list(paths.values())

    def _nearest(self, network: Network) -> Tensor:
        """Indices in the bank, (Q, K), of the neighbours of the queries, the nearest first."""
        queries, bank = (F.normalize(features_of(network, split.images)) for split in (self.queries, self.bank))
        return (queries @ bank.T).topk(self.neighbours).indices


def _one_a_class(labels: Tensor, count: int) -> Tensor:
    """Indices of the first image of each of ``count`` classes, evenly spaced; of any where there is one class."""
    present = labels.unique()
    if len(present) < 2:
        return torch.linspace(0, len(labels) - 1, min(count, len(labels))).long()
    chosen = present[torch.linspace(0, len(present) - 1, min(count, len(present))).long()]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def first_filters(network: Network, shape: Sequence[int]) -> Tensor | None:
    """Weights of the first layer as images, (F, C, H, W); None if it does not see images of 1 or 3 channels.

    Args:
        network: its first convolution is taken, or a linear layer that sees all pixels.
        shape: (C, H, W) of the images.
    """
    layers = network.stages[0].forward_map.modules()
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Linear) and first.in_features == torch.Size(shape).numel():
        return first.weight.unflatten(1, tuple(shape))
    if isinstance(first, nn.Conv2d) and first.weight.shape[1] in (1, 3):
        return first.weight
    return None
