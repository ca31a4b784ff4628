"""The table of docs/encoders.md, from the files themselves: ``make encoders-page``.

Each encoder of the package is loaded by its name and probed on the data set on which it was trained, which must be at
hand: ``DTP_LIGHTNING_DATA=~/datasets`` for torchvision's.
"""

from __future__ import annotations

import re
from pathlib import Path

from hydra import compose, initialize_config_dir

from dtp_lightning.cli import paths
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import without_ours
from dtp_lightning.data import ImageData
from dtp_lightning.evaluation import FrozenEncoder, LinearProbe
from dtp_lightning.export.encoder import PUBLISHED, load_encoder, published
from dtp_lightning.report.tables import Entry, Table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "encoders.md"
BLOCK = re.compile(r"(<!-- table: encoders -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ["name", "dataset", "learner", "epochs", "features", "linear, test", "of the run", "KiB", "sha256", "commit"]


def linear(name: str) -> float:
    """Test accuracy of a linear probe on an encoder's own data set, from its file, in [0, 1]."""
    encoder = load_encoder(name)
    return LinearProbe()(FrozenEncoder(encoder, data_of(encoder.card["dataset"]))).metrics["test_acc"]


def data_of(dataset: str) -> ImageData:
    """The images of an option of conf/dataset, with the splits of the trainings."""
    with initialize_config_dir(str(paths.conf()), version_base="1.3"):
        return build(without_ours("dataset", compose("train", [f"dataset={dataset}"]).dataset))


def table() -> Table:
    """A row for each encoder: what its card says, and the accuracy of its file."""
    rows = []
    for name in published():
        card = load_encoder(name).card
        of_run = card["accuracy"].get("linear/test_acc")
        texts = (
            f"`{name}`", card["dataset"], card["learner"], str(card["epochs"]), str(card["features"]),
            f"{100 * linear(name):.2f}", "\N{EN DASH}" if of_run is None else f"{100 * of_run:.2f}",
            f"{(PUBLISHED / name).with_suffix('.safetensors').stat().st_size / 1024:.0f}",
            f"`{card['sha256'][:12]}`", card["git_commit"][:7],
        )  # fmt: skip
        rows.append([Entry(text) for text in texts])
    return Table("encoders", COLUMNS, rows)


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda found: f"{found[1]}{table().markdown()}{found[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
