"""Batches of a data set that is one uint8 tensor on the training device, or is read from disk by workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dtp_lightning.data.images import ImageData, Images, Split
from dtp_lightning.errors import ConfigError
from dtp_lightning.runtime.signals import SignalGuard

Loading = Literal["auto", "memory", "stream"]
MEMORY_LIMIT = 2 * 2**30  # bytes of pre-training images that loading=auto puts on the device


class Batch(NamedTuple):
    """uint8 images (B, C, H, W) and labels int64 (B,), -1 for an unlabelled image."""

    images: Tensor
    labels: Tensor


class BatchedDataset(Dataset):
    """A data set that is indexed by a whole batch at once: one gather, no Python loop over images.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: Images, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Batch:
        """The batch at int64 indices (B,)."""
        return Batch(self.images[index], self.labels[index])


class BatchSampler(Sampler):
    """Yields the indices of each batch, int64 (B,).

    The last batch may be shorter. A single remaining image, which has no negatives, is added to the batch before. The
    order of an epoch depends on (seed, epoch) alone, so a resumed run has the same batches as an uninterrupted one.

    Args:
        size: N, number of images.
        batch_size: images of a batch in one process.
        shuffle: whether each epoch has its own random order.
        seed: of the random order.
        device: of the indices.
        processes: number of processes. A batch of ``processes * batch_size`` images is divided equally among them, in
            order, so an epoch omits at most ``processes - 1`` images.
        process: rank of this process, from 0.
    """

    def __init__(
        self, size: int, batch_size: int, *, shuffle: bool, seed: int, device: torch.device, processes: int = 1,
        process: int = 0,
    ) -> None:  # fmt: skip
        self.size, self.shuffle, self.seed, self.device = size, shuffle, seed, device
        self.batch_size = batch_size * processes
        self.processes, self.process = processes, process
        self.epoch = 0
        self.consumed = (0, 0)
        """(epoch, batches): a resumed run skips this many batches of this epoch, since it has trained on them."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which Lightning does before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.processes > 1:
            return self.size // self.batch_size + (self.size % self.batch_size >= self.processes)
        return max(1, -(-self.size // self.batch_size) - self._one_left)

    @property
    def _one_left(self) -> bool:
        """Whether a single image would remain for the last batch."""
        return self.size % self.batch_size == 1

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        batches = list(order.to(self.device).split(self.batch_size))
        if self.processes > 1:
            shares = ((batch, len(batch) // self.processes) for batch in batches)
            return iter([batch[self.process * n : (self.process + 1) * n] for batch, n in shares if n])
        if self._one_left and len(batches) > 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return iter(batches[self.consumed[1] if self.epoch == self.consumed[0] else 0 :])


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """A seed of one epoch in one process; nearby arguments differ in the lower 32 bits, which are what torch reads."""
    return (seed * 1_000_003 + epoch + process * 2_038_074_743) % 2**63


def fits_memory(split: Split, loading: Loading) -> bool:
    """Whether to put the images on the device as one tensor; ``loading=auto`` does so up to ``MEMORY_LIMIT`` bytes."""
    return loading == "memory" or (loading == "auto" and split.nbytes <= MEMORY_LIMIT)


class ImageDataModule(pl.LightningDataModule):
    """The loaders of pre-training batches and of validation batches.

    Args:
        data: its pre-training set and validation set are used.
        batch_size: images of a batch in each process; an image becomes one or two views.
        seed: of the shuffling.
        supervised: whether the loss needs labels.
        loading: ``memory`` puts the images on the training device as one tensor; ``stream`` reads each batch in worker
            processes; ``auto`` is ``memory`` up to 2 GiB, else ``stream``. The batches are the same.
        workers: number of worker processes of ``stream``; 0 reads in the training process.
        processes: number of processes that train together; each has an equal part of every batch.

    Raises:
        ConfigError: the batch is larger than the data.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        *,
        supervised: bool = False,
        loading: Loading = "auto",
        workers: int = 2,
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.val = data.pretraining(supervised), data.validation
        if batch_size * processes > len(self.train):
            requested = f"batch_size={batch_size}" + (f" on {processes} devices" if processes > 1 else "")
            raise ConfigError(f"{requested} is larger than the {len(self.train)} training images: choose a smaller one")
        self.batch_size, self.seed, self.workers, self.processes = batch_size, seed, workers, processes
        self.stream = not fits_memory(self.train, loading)

    def _loader(self, split: Split, *, shuffle: bool) -> DataLoader:
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        on_gpu = device.type == "cuda"
        if self.stream:
            device = torch.device("cpu")
        else:
            split = Split(split.images[:].to(device), split.labels.to(device))
        sampler = BatchSampler(
            len(split), self.batch_size, shuffle=shuffle, seed=self.seed, device=device, processes=self.processes,
            process=self.trainer.global_rank if self.trainer is not None else 0,
        )  # fmt: skip
        if self.trainer is not None:
            # In a resumed run Lightning calls set_epoch after the first iteration over the sampler, and updates
            # current_epoch even later
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
            if shuffle and epochs.processed == epochs.completed:  # the run was not saved at the end of an epoch
                sampler.consumed = (epochs.processed, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        workers = self.workers if self.stream else 0
        return DataLoader(
            BatchedDataset(split.images, split.labels),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.stream and on_gpu,
            worker_init_fn=SignalGuard.ignore,
            generator=torch.Generator(),  # the workers' base seed must not come from the global one
        )

    def train_dataloader(self) -> DataLoader:
        """Pre-training batches, shuffled in each epoch."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation batches, in order."""
        return self._loader(self.val, shuffle=False)
