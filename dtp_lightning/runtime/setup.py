"""What is set in a process before a run begins in it."""

from __future__ import annotations

import logging
import random
import warnings

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """All generators, explicitly: in a multirun the last job's state is still there."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def silence_warnings() -> None:
    """Silence advice that does not apply here."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor on the device
        ".*exists and is not empty.*",  # Hydra's own files are in the run folder
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*The dirpath has changed.*",  # a run that goes on from another's checkpoint keeps its own
        ".*sync_dist=True.*",  # what is logged is of the whole batch already
        ".*ended before the epoch ended.*",  # our sampler knows where it was
        ".*callbacks used to create the checkpoint.*",  # they may differ; the training does not depend on them
        ".*LeafSpec.*",  # Lightning 2.6 calls what torch 2.15 deprecates
    ):
        warnings.filterwarnings("ignore", message)
