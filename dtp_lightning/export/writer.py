"""Write a run's encoder as safetensors, with a JSON card: ``dtp export RUN [--to FILE]``.

The two files are read by :func:`dtp_lightning.load_encoder`. docs/export.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dtp_lightning import __version__
from dtp_lightning.config.flatten import select
from dtp_lightning.config.keys import key as key_of
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import DataError
from dtp_lightning.export.encoder import BUILDERS, FORMAT, Architecture, Encoder, Input, digest
from dtp_lightning.models import Network
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runs.summary import provenance, weights_of
from dtp_lightning.runtime.files import write_atomically

PACKAGE = "dtp_lightning.models."


def export(run: Path, to: Path | None = None, licence: str | None = None) -> Path:
    """Write weights and card of a finished run.

    Args:
        run: a run folder (its last checkpoint is taken) or a checkpoint.
        to: the ``.safetensors`` file; the card lies beside it. Default: ``encoder.safetensors`` in the run folder, or
            ``encoder_<name>.safetensors`` for a checkpoint of another name than last.ckpt.
        licence: of the weights, for the card; whoever publishes them must say it.

    Returns:
        The weights' path.

    Raises:
        DataError: there is no checkpoint, or its network is not one that can be rebuilt from a card.
    """
    run = run.expanduser()
    path = run / "checkpoints" / "last.ckpt" if run.is_dir() else run
    stored = Checkpoint.read(path)
    folder = path.parent.parent
    name = "encoder" if path.stem == "last" else f"encoder_{path.stem}"
    weights = to.expanduser().with_suffix(".safetensors") if to else folder / f"{name}.safetensors"
    architecture = _architecture(stored)
    network = _network(stored, architecture)
    described = architecture.model_dump()
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(weights, save(tensors, metadata={"format": "pt", "encoder": json.dumps(described)}))
    card = _card(stored, described, network, licence, _summary(folder, stored), digest(weights))
    write_atomically(weights.with_suffix(".json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return weights


def _architecture(stored: Checkpoint) -> Architecture:
    node = stored.config.get("model") or {}
    target, arguments = str(node.get("_target_")), {k: v for k, v in node.items() if not k.startswith("_")}
    builder = target.removeprefix(PACKAGE)
    if not target.startswith(PACKAGE) or builder not in BUILDERS:
        raise DataError(
            f"{stored.path}: its network was built by {target}, and a card can only name {', '.join(BUILDERS)}: "
            "save its state_dict yourself"
        )
    return Architecture(builder=builder, arguments=arguments, input=Input(**asdict(ImageSpec.of(stored.images))))


def _network(stored: Checkpoint, architecture: Architecture) -> Network:
    """The encoder with the checkpoint's weights of it; head and feedback maps stay behind."""
    encoder = Encoder(architecture.build(), architecture.input.spec(), {})
    wanted = encoder.state_dict().keys()
    try:
        encoder.load_state_dict({key: stored.weights[key] for key in wanted}, assign=True)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{stored.path}: its weights do not fit its model ({str(error).splitlines()[-1]})") from error
    return encoder


def _summary(folder: Path, stored: Checkpoint) -> dict[str, Any]:
    """What the run's summary says, if it speaks of these weights: of a run that ended, at its last epoch."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    return summary if summary.get("epochs") == stored.epochs else {}


def _card(
    stored: Checkpoint,
    described: Mapping[str, Any],
    network: Network,
    licence: str | None,
    summary: Mapping[str, Any],
    sha256: str,
) -> dict[str, Any]:
    config = select(stored.config, lambda key: key_of(key).on_card)
    here = provenance()
    return {
        "format": FORMAT,
        "encoder": described,
        "sha256": sha256,
        "features": int(network.embedding_dim),
        "stages": [list(shape) for shape in network.shapes],
        **stored.names,
        "seed": stored.config["seed"],
        "epochs": stored.epochs,
        "classes": stored.classes,
        "accuracy": {key: value for key, value in sorted(summary.items()) if key.endswith(("_acc", "/C"))},
        **weights_of(stored.config),
        "git_commit": summary.get("git_commit", "unknown"),
        "versions": summary.get("versions", "unknown"),
        "exported_by": {"dtp_lightning": __version__, **here},
        "config": config,
        "license": licence,
        "library_name": "dtp-lightning",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "difference target propagation", stored.names["learner"], stored.names["loss"]],
        "limitations": f"Features of images like those of {stored.names['dataset']}; not evaluated on any other use.",
    }
