"""Writes the encoder of a run as safetensors, with a JSON card: ``dtp export RUN [--to FILE]``.

The two files are read by :func:`dtp_lightning.load_encoder`. docs/export.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from dtp_lightning import __version__
from dtp_lightning.config.flatten import select
from dtp_lightning.config.keys import key as key_of
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import DataError
from dtp_lightning.export.encoder import BUILDERS, FORMAT, Architecture, Encoder, Input, digest
from dtp_lightning.models import Network
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runs.stored import read_summary
from dtp_lightning.runs.summary import provenance, weights_of
from dtp_lightning.runtime.files import write_atomically

PACKAGE = "dtp_lightning.models."


def export(run: Path, to: Path | None = None, licence: str | None = None, half: bool = False) -> Path:
    """Write weights and card of a finished run.

    Args:
        run: a run folder, of which the last checkpoint is exported, or a checkpoint.
        to: the ``.safetensors`` file; the card is written to the same folder. Default: in the run folder,
            ``encoder.safetensors``, or ``encoder_<name>.safetensors`` for a checkpoint of another name than last.ckpt.
        licence: of the weights, for the card; the publisher of the weights must choose it.
        half: store weights as float16, half the size; a loaded encoder computes in float32.

    Returns:
        The path of the weights.

    Raises:
        DataError: there is no checkpoint, a card cannot describe its network, or float16 cannot hold its weights.
    """
    run = run.expanduser()
    path = run / "checkpoints" / "last.ckpt" if run.is_dir() else run
    checkpoint = Checkpoint.read(path)
    folder = path.parent.parent
    name = "encoder" if path.stem == "last" else f"encoder_{path.stem}"
    weights = to.expanduser().with_suffix(".safetensors") if to else folder / f"{name}.safetensors"
    architecture = _architecture(checkpoint)
    network = _network(checkpoint, architecture)
    encoder = architecture.model_dump()
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    if half:
        tensors = {key: _halved(key, value) for key, value in tensors.items()}
    write_atomically(weights, _serialised(tensors, {"encoder": json.dumps(encoder), "format": "pt"}))
    card = _card(checkpoint, encoder, network, licence, _summary(folder, checkpoint), digest(weights))
    write_atomically(weights.with_suffix(".json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return weights


def _halved(name: str, value: Tensor) -> Tensor:
    """A tensor as float16, where it holds floats.

    Raises:
        DataError: a value is beyond what float16 can hold.
    """
    stored = value.half() if value.is_floating_point() else value
    if not stored.isfinite().all():
        raise DataError(f"{name} goes to {value.abs().max():.3g}, and float16 to 65,504: export without --half")
    return stored


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the same tensors and metadata give the same bytes, whereas the library shuffles metadata."""
    file = save(tensors, metadata=metadata)
    data = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps({**json.loads(file[8:data]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[data:]


def _architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture of the network of a checkpoint."""
    node = checkpoint.config.get("model") or {}
    target, arguments = str(node.get("_target_")), {k: v for k, v in node.items() if not k.startswith("_")}
    builder = target.removeprefix(PACKAGE)
    if not target.startswith(PACKAGE) or builder not in BUILDERS:
        raise DataError(
            f"{checkpoint.path}: its network was built by {target}, and a card can only name {', '.join(BUILDERS)}: "
            "save its state_dict yourself"
        )
    spec = ImageSpec.from_dict(checkpoint.images)
    return Architecture(builder=builder, arguments=arguments, input=Input(**asdict(spec)))


def _network(checkpoint: Checkpoint, architecture: Architecture) -> Network:
    """The network with the weights of the checkpoint, without head and feedback maps."""
    network = Encoder(architecture.build(), architecture.input.spec(), {})
    expected = network.state_dict().keys()
    try:
        network.load_state_dict({key: checkpoint.weights[key] for key in expected}, assign=True)
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"{checkpoint.path}: its weights do not fit its model ({str(error).splitlines()[-1]})"
        ) from error
    return network


def _summary(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The summary of the run, if it is that of these weights (same number of epochs); else an empty one."""
    path = folder / "summary.json"
    summary = read_summary(path) or {}
    return summary if summary.get("epochs") == checkpoint.epochs else {}


def _card(
    checkpoint: Checkpoint,
    encoder: Mapping[str, Any],
    network: Network,
    licence: str | None,
    summary: Mapping[str, Any],
    sha256: str,
) -> dict[str, Any]:
    """The card, as a dictionary for JSON."""
    config = select(checkpoint.config, lambda key: key_of(key).on_card)
    names, environment = checkpoint.names, provenance()
    return {
        "format": FORMAT,
        "encoder": encoder,
        "sha256": sha256,
        "features": int(network.embedding_dim),
        "stages": [list(shape) for shape in network.shapes],
        **names,
        "seed": checkpoint.config["seed"],
        "epochs": checkpoint.epochs,
        "classes": checkpoint.classes,
        "accuracy": {key: value for key, value in sorted(summary.items()) if key.endswith(("_acc", "/C"))},
        **weights_of(checkpoint.config),
        "git_commit": summary.get("git_commit", "unknown"),
        "versions": summary.get("versions", "unknown"),
        "exported_by": {"dtp_lightning": __version__, **environment},
        "config": config,
        "license": licence,
        "library_name": "dtp-lightning",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "difference target propagation", names["learner"], names["loss"]],
        "limitations": f"Features of images like those of {names['dataset']}; not evaluated on any other use.",
    }
