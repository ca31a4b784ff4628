"""Batches of a small data set that lives as one uint8 tensor on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import ConfigError


class TensorImages(Dataset):
    """Indexed by a whole batch of positions at once: one gather, no Python loop over images."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.images[index]


class BatchSampler(Sampler):
    """Positions of each batch, (B,) int64; the last batch may be shorter, but never a single image (which has no
    negatives): that one joins the batch before.

    The order of an epoch depends on (seed, epoch) alone, so a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, size: int, batch_size: int, *, shuffle: bool, seed: int, device: torch.device) -> None:
        self.size, self.batch_size, self.shuffle, self.seed, self.device = size, batch_size, shuffle, seed, device
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, -(-self.size // self.batch_size) - self._single)

    @property
    def _single(self) -> bool:
        """Whether one image is left over."""
        return self.size % self.batch_size == 1

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        batches = list(order.to(self.device).split(self.batch_size))
        if self._single and len(batches) > 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return iter(batches)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for this epoch that no nearby (seed, epoch) shares."""
    return (seed * 1_000_003 + epoch) % 2**63


class ImageDataModule(pl.LightningDataModule):
    """Unlabelled uint8 batches (B, C, H, W) for pre-training and for its validation loss.

    Args:
        data: train and val are used; labels and test are left to the evaluation.
        batch_size: images a batch (each becomes two views).
        seed: of the shuffling.

    Raises:
        ConfigError: the batch is larger than the data.
    """

    def __init__(self, data: ImageData, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size > len(data.train):
            raise ConfigError(
                f"batch_size={batch_size} is larger than the {len(data.train)} training images: choose a smaller one"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def _loader(self, images: Tensor, *, shuffle: bool) -> DataLoader:
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        images = images.to(device)
        sampler = BatchSampler(len(images), self.batch_size, shuffle=shuffle, seed=self.seed, device=device)
        return DataLoader(TensorImages(images), sampler=sampler, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        """Shuffled anew each epoch."""
        return self._loader(self.data.train.images, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return self._loader(self.data.val.images, shuffle=False)
