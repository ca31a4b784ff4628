"""Sets up a process before a run: random generators and filters of warnings."""

from __future__ import annotations

import logging
import random
import warnings

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which the previous job of a multirun has changed.

    Args:
        seed: >= 0; NumPy uses its lower 32 bits.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def silence_warnings() -> None:
    """Silence warnings of Lightning that do not apply here."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor on the device
        ".*exists and is not empty.*",  # Hydra's own files are in the run folder
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*The dirpath has changed.*",  # a run that continues from the checkpoint of another has its own folder
        ".*sync_dist=True.*",  # logged values are already those of the whole batch
        ".*ended before the epoch ended.*",  # the sampler restores its position
        ".*callbacks used to create the checkpoint.*",  # callbacks may differ; the training does not depend on them
        ".*LeafSpec.*",  # Lightning 2.6 calls what torch 2.15 deprecates
    ):
        warnings.filterwarnings("ignore", message)
