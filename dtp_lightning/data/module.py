"""Batches of a data set that lives as one uint8 tensor on the training device, or of one that streams in."""

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
    """uint8 images (B, C, H, W) and labels int64 (B,), -1 where there is none."""

    images: Tensor
    labels: Tensor


class BatchesOf(Dataset):
    """Indexed by a whole batch of positions at once: one gather, no Python loop over images."""

    def __init__(self, images: Images, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Batch:
        return Batch(self.images[index], self.labels[index])


class BatchSampler(Sampler):
    """Positions of each batch, (B,) int64; the last batch may be shorter, but never a single image (which has no
    negatives): that one joins the batch before.

    The order of an epoch depends on (seed, epoch) alone, so a resumed run sees what an uninterrupted one sees.

    Args:
        size: images.
        batch_size: of one process.
        shuffle, seed: a new order each epoch.
        device: of the positions.
        processes: that share each batch, of ``processes * batch_size`` images: equal shares in the batch's order, so
            that at most ``processes - 1`` images of an epoch are left out.
        process: whose share this is, from 0.
    """

    def __init__(
        self, size: int, batch_size: int, *, shuffle: bool, seed: int, device: torch.device, processes: int = 1,
        process: int = 0,
    ) -> None:  # fmt: skip
        self.size, self.shuffle, self.seed, self.device = size, shuffle, seed, device
        self.batch_size = batch_size * processes
        self.processes, self.process = processes, process
        self.epoch = 0
        self.seen = (0, 0)
        """(epoch, batches): a run resumed within that epoch has seen so many of its batches, which are left out."""

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.processes > 1:
            return self.size // self.batch_size + (self.size % self.batch_size >= self.processes)
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
        if self.processes > 1:
            shares = ((batch, len(batch) // self.processes) for batch in batches)
            return iter([batch[self.process * n : (self.process + 1) * n] for batch, n in shares if n])
        if self._single and len(batches) > 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return iter(batches[self.seen[1] if self.epoch == self.seen[0] else 0 :])


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """A seed for this epoch that no nearby (seed, epoch, process) shares (torch reads its lower 32 bits)."""
    return (seed * 1_000_003 + epoch + process * 2_038_074_743) % 2**63


def fits_memory(split: Split, loading: Loading) -> bool:
    """Whether these images shall live as one tensor on the device: chosen by their size, unless it is said."""
    return loading == "memory" or (loading == "auto" and split.bytes <= MEMORY_LIMIT)


class ImageDataModule(pl.LightningDataModule):
    """Batches for pre-training and for its validation loss.

    Args:
        data: ``pretraining`` and ``val`` are used; test is left to the evaluation.
        batch_size: images a batch (each becomes one or two views), in each process.
        seed: of the shuffling.
        supervised: whether the loss is told the labels.
        loading: ``memory`` puts the images on the training device as one tensor; ``stream`` leaves them where they
            are and reads batches in workers; ``auto`` takes memory up to 2 GiB. The batches are the same.
        workers: processes that read batches when streaming; 0 reads in this one.
        processes: that train together, each on its share of every batch.

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
        self.train, self.val = data.pretraining(supervised), data.val
        if batch_size * processes > len(self.train):
            asked = f"batch_size={batch_size}" + (f" on {processes} devices" if processes > 1 else "")
            raise ConfigError(f"{asked} is larger than the {len(self.train)} training images: choose a smaller one")
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
            # Lightning tells the sampler of a resumed run its epoch only after its first draw, and counts that epoch
            # as current only later still
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
            if shuffle and epochs.processed == epochs.completed:  # not at an epoch's end
                sampler.seen = (epochs.processed, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        workers = self.workers if self.stream else 0
        return DataLoader(
            BatchesOf(split.images, split.labels),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.stream and on_gpu,
            worker_init_fn=SignalGuard.ignore,
            generator=torch.Generator(),  # a loader draws a number for its workers: not from the run's own stream
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled anew each epoch."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return self._loader(self.val, shuffle=False)
