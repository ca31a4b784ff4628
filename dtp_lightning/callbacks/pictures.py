"""Pictures of what the encoder learned, every few epochs: map of its features, first filters, nearest neighbours."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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
from dtp_lightning.loggers.tables import HistogramLogger, Picture, Table, TableLogger
from dtp_lightning.models import Network, features_of

SMALLEST = 10  # images of a map
LOOKED_AT = 100  # images whose activations are in a histogram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What the pictures of an encoder show.

    Attributes:
        points: of the map, (N, 2).
        axes: labels of x and y; empty where a coordinate has no meaning of its own.
        index: of the neighbours of each query in the bank, int64 (Q, K), the nearest first.
        similarity: of these to their query, cosine, (Q, K) in [-1, 1].
    """

    points: Tensor
    axes: tuple[str, str]
    index: Tensor
    similarity: Tensor


class Pictures(DataCallback):
    """Draws ``plots/embedding_map.png``, ``filters.png`` and ``neighbours.png`` every k epochs and after the last.

    They are drawn after validation, from the network as it is, in evaluation mode; the training is unchanged. Earlier
    ones stay in ``plots/epochs/``; W&B and TensorBoard get each of them at its step, with histograms of the weights and
    activations of each stage. After the last epoch W&B also gets map and neighbours as tables.

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
        epoch, network = trainer.current_epoch + 1, cast(Learner, pl_module.learner).model
        seen = self.look(network, epoch)
        if seen is None:
            return
        self._track(trainer, network, seen)
        for path in self.draw(seen, network, self.plots / "epochs", epoch):
            name = path.name.replace(f"_epoch{epoch:04d}", "")
            shutil.copyfile(path, self.plots / name)
            if epoch == trainer.max_epochs:
                continue  # trackers get what is in plots/ when the run ends
            for logger in trainer.loggers:
                if isinstance(logger, ImageLogger):
                    logger.log_image(f"plots/{Path(name).stem}", [str(path)], step=trainer.global_step)

    def look(self, network: Network, epoch: int) -> Seen | None:
        """What there is to draw of a network in evaluation mode; None, with a warning, if a feature is not finite."""
        features = features_of(network, self.val.images)
        if not features.isfinite().all():
            log.warning("epoch %d: features are not finite, so there are no pictures", epoch)
            return None
        points, axes = project(features, self.map)
        queries, bank = (F.normalize(features_of(network, split.images)) for split in (self.queries, self.bank))
        similarity, index = (queries @ bank.T).topk(self.neighbours)
        return Seen(points, axes, index, similarity)

    def draw(self, seen: Seen, network: Network, folder: Path, epoch: int) -> list[Path]:
        """Draw the pictures of a network.

        Args:
            seen: of the network.
            network: its filters are drawn.
            folder: to draw to.
            epoch: of the titles and of the files' names.

        Returns:
            The PNG files. There are no filters if the first layer is not one on images of 1 or 3 channels.
        """
        paths = {name: folder / f"{name}_epoch{epoch:04d}.png" for name in ("embedding_map", "filters", "neighbours")}
        points, axes, index = seen.points, seen.axes, seen.index
        kind = "PCA" if axes[0] else {"tsne": "t-SNE", "umap": "UMAP"}[self.map]
        title = f"{kind} of the features of {len(points):,} validation images, epoch {epoch}"
        plot_map(points, self.val.labels, self.classes, title, axes, paths["embedding_map"])
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

    def _track(self, trainer: pl.Trainer, network: Network, seen: Seen) -> None:
        """Hand histograms to the trackers that show them, and after the last epoch tables."""
        values: dict[str, Tensor] = {}
        for logger in trainer.loggers:
            if isinstance(logger, HistogramLogger):
                values = values or stage_values(network, self.val.subset(LOOKED_AT).images[:])
                logger.log_histograms(values, trainer.global_step)
            if isinstance(logger, TableLogger) and trainer.current_epoch + 1 == trainer.max_epochs:
                logger.log_tables(self.tables(seen), trainer.global_step)

    def tables(self, seen: Seen) -> dict[str, Table]:
        """``tables/embedding_map``, a row a point; ``tables/neighbours``, a row a query. Without labels no class."""

        def name(label: int) -> str:
            return self.classes[label] if self.classes else ""

        labels, points = self.val.labels.tolist(), seen.points.tolist()
        rows: list[tuple[str | int | Picture, ...]] = []
        for image, label, index, cosine in zip(
            self.queries.images[:], self.queries.labels, seen.index, seen.similarity.tolist(), strict=True
        ):
            found = self.bank.labels[index]
            captions = [f"{name(k)} {c:.3f}".strip() for k, c in zip(found.tolist(), cosine, strict=True)]
            nearest = [Picture(*told) for told in zip(self.bank.images[index], captions, strict=True)]
            rows.append((Picture(image), name(int(label)), int((found == label).sum()), *nearest))
        columns = ["query", "class", "of its class", *(f"nearest {k + 1}" for k in range(self.neighbours))]
        places = [(name(label), x, y) for label, (x, y) in zip(labels, points, strict=True)]
        return {
            "tables/embedding_map": Table(["class", "x", "y"], places),
            "tables/neighbours": Table(columns, rows),
        }


def _one_a_class(labels: Tensor, count: int) -> Tensor:
    """Indices of the first image of each of ``count`` classes, evenly spaced; of any where there is one class."""
    present = labels.unique()
    if len(present) < 2:
        return torch.linspace(0, len(labels) - 1, min(count, len(labels))).long()
    chosen = present[torch.linspace(0, len(present) - 1, min(count, len(present))).long()]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


@torch.no_grad()
def stage_values(network: Network, images: Tensor) -> dict[str, Tensor]:
    """What histograms show of each stage, finite values (M,) on the CPU.

    Args:
        network: in evaluation mode.
        images: uint8 (N, C, H, W).

    Returns:
        ``histograms/weight/stage<i>``, its forward parameters with two dimensions or more, and
        ``histograms/activation/stage<i>``, h_i.
    """
    device = next(network.parameters()).device
    activations = network.activations(images.to(device).float() / 255)
    values = {}
    for i, (stage, h) in enumerate(zip(network.stages, activations, strict=True), 1):
        weights = [p.flatten() for p in stage.forward_parameters() if p.ndim > 1]
        values[f"histograms/activation/stage{i}"] = h.flatten()
        if weights:
            values[f"histograms/weight/stage{i}"] = torch.cat(weights)
    finite = {name: found[found.isfinite()].float().cpu() for name, found in values.items()}
    return {name: found for name, found in finite.items() if len(found)}


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
