"""The table of docs/encoders.md, from the files themselves: ``make encoders-page``.

Each encoder of the package is loaded by its name and probed as at the end of its training, on the data set on which it
was trained, which must be at hand: ``DTP_LIGHTNING_DATA=~/datasets`` for torchvision's. ``make encoders-page
ARGS=NAME`` probes one and leaves the other rows as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from pages import rewrite, with_tables

from dtp_lightning.cli import paths
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import without_ours
from dtp_lightning.evaluation import FrozenEncoder
from dtp_lightning.export.encoder import PUBLISHED, load_encoder, published
from dtp_lightning.report.tables import Entry, Table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "encoders.md"
COLUMNS = [
    "name", "dataset", "learner", "epochs", "features", "probe", "test", "of the run", "KiB", "sha256", "commit",
]  # fmt: skip
PRESETS = {"cifar10-hinge-softhebb": "experiment=softhebb_cifar10"}
"""Of the encoders whose probe has arguments of its own."""


def probe_of(name: str) -> str:
    """Which linear probe the run of an encoder ended with."""
    accuracy = load_encoder(name).card["accuracy"]
    return next(probe for probe in ("linear", "linear_thesis") if f"{probe}/test_acc" in accuracy)


def probed(name: str) -> float:
    """Test accuracy of that probe on the encoder's own data set, from its file, in [0, 1]."""
    encoder, probe = load_encoder(name), probe_of(name)
    words = PRESETS.get(name, f"dataset={encoder.card['dataset']}")
    with initialize_config_dir(str(paths.conf()), version_base="1.3"):
        config = compose("train", [words, f"evaluation=[{probe}]"])
    data = build(without_ours("dataset", config.dataset))
    accuracy: float = build(config.evaluation[probe])(FrozenEncoder(encoder, data)).metrics["test_acc"]
    return accuracy


def known(text: str) -> dict[str, str]:
    """Name -> the accuracy that a page says, of encoders that were not changed since."""
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in cells if len(row) == len(COLUMNS)]
    digests = {name: load_encoder(name).card["sha256"] for name in published()}
    return {row["name"]: row["test"] for row in rows if digests.get(row["name"], "").startswith(row["sha256"])}


def table(accuracies: Mapping[str, str]) -> Table:
    """A row for each encoder: what its card says, and the accuracy of its file, a dash where nobody has probed it."""
    rows = []
    for name in published():
        card, probe = load_encoder(name).card, probe_of(name)
        texts = (
            f"`{name}`", card["dataset"], card["learner"], str(card["epochs"]), str(card["features"]),
            probe, accuracies.get(name, "\N{EN DASH}"), f"{100 * card['accuracy'][f'{probe}/test_acc']:.2f}",
            f"{(PUBLISHED / name).with_suffix('.safetensors').stat().st_size / 1024:.0f}",
            f"`{card['sha256'][:12]}`", card["git_commit"][:7],
        )  # fmt: skip
        rows.append([Entry(text) for text in texts])
    return Table("encoders", COLUMNS, rows)


def filled(found: Mapping[str, str], text: str) -> str:
    """The page with these accuracies, and those of it that still hold."""
    return with_tables(text, lambda _: table(known(text) | found).markdown())


def main() -> None:
    """Probe the named encoders, by default all, and write the table into the page."""
    for name in sys.argv[1:] or published():
        accuracy = f"{100 * probed(name):.2f}"
        print(f"{name} {accuracy}", flush=True)
        rewrite(PAGE, partial(filled, {name: accuracy}))


if __name__ == "__main__":
    main()
