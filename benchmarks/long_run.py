"""Does a long run stay small? Memory, open files and disk over 2,000 epochs of a tiny set.

    python benchmarks/long_run.py [--epochs 2000] [--plot docs/images/long_run.png] [overrides of dtp train]

Prints the slopes after the first tenth, in KiB of resident memory, files and KiB of disk a hundred epochs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from cases import train
from matplotlib.figure import Figure
from PIL import Image

from dtp_lightning.figures.plots import COLOURS, save

QUANTITIES = {"memory": "resident memory, MiB", "files": "open files", "disk": "run folder, KiB"}


@dataclass
class Sample:
    """The process after an epoch.

    Attributes:
        epoch: that ended.
        memory: resident, in KiB.
        files: open.
        disk: of the run folder, in KiB.
    """

    epoch: int
    memory: float
    files: int
    disk: float


class Watch(pl.Callback):
    """Takes a sample every few epochs.

    Args:
        folder: the run's.
        every_n_epochs: between samples.
    """

    samples: list[Sample] = []  # noqa: RUF012 the callback is built by the pipeline, which keeps it

    def __init__(self, folder: Path, every_n_epochs: int = 10) -> None:
        self.folder = folder
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch before has saved and logged everything."""
        if trainer.current_epoch % self.every_n_epochs:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        disk = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**10
        self.samples.append(Sample(trainer.current_epoch, memory, len(os.listdir("/proc/self/fd")), disk / 2**10))


def tiny_images(root: Path, count: int = 24, size: int = 8) -> None:
    """Two classes of noise."""
    generator = np.random.default_rng(0)
    for i in range(count):
        path = root / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size), dtype=np.uint8)).save(path)


def run(epochs: int, folder: Path, overrides: Sequence[str] = ()) -> list[Sample]:
    """Train for so many epochs in this process; the samples."""
    tiny_images(folder / "images")
    words = [
        "dataset=image_folder", f"dataset.root={folder / 'images'}", "dataset.size=8", "batch_size=8",
        "model.channels=[2,3]", "evaluation=[]", "callbacks=[online_knn]", "logger=none",
        f"trainer.max_epochs={epochs}", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
        "+callbacks.watch._target_=long_run.Watch", *overrides,
    ]  # fmt: skip
    (folder / "run").mkdir()
    import long_run  # as the configuration names this file, which is __main__ when it is run

    long_run.Watch.samples = []
    train(folder / "run", *words)
    return long_run.Watch.samples


def slope(samples: Sequence[Sample], quantity: str) -> float:
    """Growth in a hundred epochs, by least squares, after the first tenth."""
    late = samples[len(samples) // 10 :]
    epochs = np.array([s.epoch for s in late])
    return 100 * float(np.polyfit(epochs, [getattr(s, quantity) for s in late], 1)[0])


def plot(samples: Sequence[Sample], path: Path) -> None:
    """A panel for each quantity."""
    figure = Figure(figsize=(4.2 * len(QUANTITIES), 3.2))
    axes = figure.subplots(1, len(QUANTITIES))
    for axis, (quantity, title), colour in zip(axes, QUANTITIES.items(), COLOURS, strict=False):
        values = [getattr(s, quantity) / (2**10 if quantity == "memory" else 1) for s in samples]
        axis.plot([s.epoch for s in samples], values, color=colour)
        axis.set(title=title, xlabel="epoch", ylim=(0, 1.25 * max(values)))
    save(figure, path)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--plot", type=Path, default=Path("docs/images/long_run.png"))
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = run(arguments.epochs, Path(folder), overrides)
    for quantity, unit in (("memory", "KiB"), ("files", "files"), ("disk", "KiB")):
        first, last = getattr(samples[len(samples) // 10], quantity), getattr(samples[-1], quantity)
        growth = slope(samples, quantity)
        print(f"{quantity:<7} {first:.0f} -> {last:.0f} {unit}, {growth:+.1f} {unit} a hundred epochs")
    plot(samples, arguments.plot)
    print(arguments.plot)


if __name__ == "__main__":
    main()
