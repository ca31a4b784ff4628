"""An exported encoder: weights as safetensors, a JSON card that says how to build it. Needs no Hydra, no Lightning.

    encoder = dtp_lightning.load_encoder("encoder.safetensors")
    features = encoder(images)                     # (N, F), what the probes read
    maps = encoder.activations(images)             # [h_1, ..., h_L]

Nothing in the two files is executed: the card names a builder of :data:`BUILDERS` and its arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, validate_call
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.models.network import Network, conv_net, freeze
from dtp_lightning.models.stage import Stage

FORMAT = "dtp_lightning encoder 1"
BUILDERS: dict[str, Callable[..., Network]] = {"conv_net": conv_net}
"""Networks that a card may name."""


class Input(BaseModel):
    """Images (N, channels, height, width) in [0, 1], of which the encoder subtracts ``mean`` and divides by ``std``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channels: Literal[1, 3]
    height: PositiveInt
    width: PositiveInt
    mean: float
    std: PositiveFloat
    mirror_safe: bool

    def spec(self) -> ImageSpec:
        """The same, as networks ask for it."""
        return ImageSpec(self.channels, self.height, self.width, self.mirror_safe, self.mean, self.std)


class Architecture(BaseModel):
    """What rebuilds an encoder: a name in :data:`BUILDERS`, its arguments, and what goes in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    builder: str
    arguments: dict[str, Any]
    input: Input

    def build(self) -> Network:
        """The network, without weights.

        Raises:
            DataError: there is no such builder, or it refuses the arguments.
        """
        if self.builder not in BUILDERS:
            raise DataError(f"builder '{self.builder}' is not one of {', '.join(BUILDERS)}")
        build = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(BUILDERS[self.builder])
        try:
            with torch.device("meta"):  # shapes alone: no memory, no random number
                return build(self.input.spec(), **self.arguments)
        except ValidationError as error:
            raise DataError(f"encoder.arguments.{_first(error)}") from error
        except (ConfigError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"encoder.arguments: {str(error).splitlines()[0]}") from error


class Encoder(Network):
    """The stages of a trained network, without head and feedback maps; in evaluation mode, without gradients.

    Args:
        network: built for ``spec``.
        spec: what it takes.
        card: the JSON card, whole.
    """

    def __init__(self, network: Network, spec: ImageSpec, card: Mapping[str, Any]) -> None:
        stages = [Stage(stage.forward_map) for stage in network.stages]
        super().__init__(stages, nn.Flatten(), mean=network.mean, std=network.std, shapes=network.shapes)
        self.spec = spec
        self.card = dict(card)

    @property
    def embedding_dim(self) -> int:
        """F, how many features an image has."""
        return int(torch.Size(self.shapes[-1]).numel())

    def activations(self, images: Tensor) -> list[Tensor]:
        """[h_1, ..., h_L] of images (N, C, H, W), float in [0, 1] or uint8 in 0..255.

        Raises:
            ValueError: images of another size, number of channels or type.
        """
        wanted = (self.spec.channels, self.spec.height, self.spec.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images are {tuple(images.shape)}, and this encoder takes (N, {', '.join(map(str, wanted))})"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
        return super().activations(images)


def load_encoder(path: str | Path) -> Encoder:
    """An encoder that ``dtp export`` wrote; features (N, F) of images by calling it.

    Args:
        path: the ``.safetensors`` file, its ``.json`` card, or the folder of an ``encoder.safetensors``; card and
            weights lie beside each other.

    Returns:
        On the CPU, in evaluation mode, without gradients (``requires_grad_(True)`` to fine-tune it).

    Raises:
        DataError: a file is missing, was changed, or does not belong to the other.
    """
    path = Path(path).expanduser()
    weights = path / "encoder.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    card_path = weights.with_suffix(".json")
    for file in (weights, card_path):
        if not file.is_file():
            raise DataError(f"{file}: no such file; dtp export RUN writes weights and card")
    try:
        card = read_card(card_path)
        return _filled(card, weights)
    except DataError as error:
        raise DataError(f"{card_path}: {error}") from error


def read_card(path: Path) -> dict[str, Any]:
    """A card, as it was written.

    Raises:
        DataError: it is no JSON, or no card of this format.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"is not a card of format '{FORMAT}'")
    return card


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _filled(card: Mapping[str, Any], weights: Path) -> Encoder:
    """The network that a card describes, with the weights that belong to it."""
    try:
        architecture = Architecture.model_validate(card.get("encoder"))
    except ValidationError as error:
        raise DataError(f"encoder.{_first(error)}") from error
    encoder = Encoder(architecture.build(), architecture.input.spec(), card)
    if card.get("sha256") != digest(weights):
        raise DataError(f"{weights.name} is not the file that this card was written for: export the run again")
    try:
        with safe_open(weights, framework="pt") as file:
            written = json.loads((file.metadata() or {}).get("encoder", "null"))
        stored = load_file(weights)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{weights.name} is no safetensors file ({error})") from error
    if written != card["encoder"]:
        raise DataError(f"encoder was changed since {weights.name} was written: export the run again")
    try:
        encoder.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit: {str(error).splitlines()[-1].strip()}") from error
    return freeze(encoder.to(memory_format=torch.channels_last))  # type: ignore[return-value]


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
