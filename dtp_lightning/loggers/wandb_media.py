"""What W&B shows beside curves and figures: tables, confusion matrices, and the encoder as an artifact."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.loggers.tables import Picture, Table

MOST_CLASSES = 100
"""Of a confusion matrix: W&B draws a cell for each pair, and shows 10,000 rows of a table at most."""
ENCODER = ("encoder.safetensors", "encoder.json")
"""Names in an artifact, whatever the files were called: ``load_encoder(artifact.download())`` finds them."""
BINS = 64
"""Of a histogram, evenly wide from the smallest to the largest value; W&B's own number."""


def media_of(predictions: Predictions) -> dict[str, Any]:
    """Per-class accuracy of all probes, images that they got wrong, and a confusion matrix of each.

    Returns:
        name -> W&B's table or chart.
    """
    import wandb

    classes = [*predictions.classes]
    wrong = [
        (probe, Picture(image), label, guess)
        for probe in predictions.of
        for image, label, guess in zip(*predictions.misclassified(probe), strict=True)
    ]
    tables = {
        "tables/per_class": Table(["probe", "class", "images", "accuracy"], predictions.per_class()),
        "tables/misclassified": Table(["probe", "image", "class", "predicted"], wrong),
    }
    media = tables_of(tables)
    for probe, predicted in predictions.of.items():
        if len(classes) <= MOST_CLASSES:
            media[f"confusion/{probe}"] = wandb.plot.confusion_matrix(
                y_true=predictions.labels.tolist(), preds=predicted.tolist(), class_names=classes, title=probe
            )
    return media


def tables_of(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Name -> W&B's table."""
    import wandb

    def cell(value: str | int | float | Picture) -> Any:
        if not isinstance(value, Picture):
            return value
        return wandb.Image(value.pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy(), caption=value.caption or None)

    return {
        name: wandb.Table(columns=[*table.columns], data=[[cell(value) for value in row] for row in table.rows])
        for name, table in tables.items()
    }


def histograms_of(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name -> W&B's histogram."""
    import wandb

    return {
        name: wandb.Histogram(np_histogram=np.histogram(found.numpy(), bins=BINS)) for name, found in values.items()
    }


def encoder_artifact(run_id: str, weights: Path) -> Any:
    """An exported encoder with its card.

    Args:
        run_id: of the W&B run; the artifact is ``encoder-<run_id>``, and each export of the run a version of it.
        weights: the ``.safetensors`` file; the card is beside it.
    """
    import wandb

    card_path = weights.with_suffix(".json")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    told = ("learner", "loss", "model", "dataset", "seed", "epochs", "features", "accuracy", "weights", "git_commit")
    artifact = wandb.Artifact(
        f"encoder-{run_id}", type="encoder",
        description="Frozen encoder with its card: dtp_lightning.load_encoder(artifact.download())",
        metadata={key: card[key] for key in (*told, "sha256", "license") if key in card},
    )  # fmt: skip
    for path, name in zip((weights, card_path), ENCODER, strict=True):
        artifact.add_file(str(path), name=name, policy="immutable")  # no copy: the run folder has it
    return artifact


def checkpoint_artifact(run_id: str, checkpoint: Path) -> Any:
    """Where a checkpoint lies, and its MD5 and size: a reference, of which W&B gets no byte.

    Args:
        run_id: of the W&B run.
        checkpoint: the file.
    """
    import wandb

    artifact = wandb.Artifact(
        f"checkpoint-{run_id}", type="checkpoint",
        description="Where the checkpoint lies: dtp evaluate FILE, dtp export FILE, resume=FILE",
    )  # fmt: skip
    artifact.add_reference(checkpoint.resolve().as_uri(), name=checkpoint.name)
    return artifact


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Within: files of tables wait in this folder until they are sent, not in the home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    if before is None:
        os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("WANDB_DATA_DIR", None)


def aliases_of(checkpoint: str) -> Sequence[str]:
    """Alias of the encoder of a checkpoint: of last.ckpt ``latest``, of best.ckpt ``best``, of others none."""
    return {"last": ["latest"], "best": ["best"]}.get(checkpoint, [])
