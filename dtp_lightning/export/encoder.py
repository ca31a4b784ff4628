"""An exported encoder: weights as safetensors, a JSON card that says how to build it. Needs no Hydra, no Lightning.

    encoder = dtp_lightning.load_encoder("encoder.safetensors")
    features = encoder(images)                     # (N, F), the input of the probes
    maps = encoder.activations(images)             # [h_1, ..., h_L]

No code of the two files is executed: the card names a builder of :data:`BUILDERS` and its arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, validate_call
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.models import forward_only_net, library_net, mlp, resnet
from dtp_lightning.models.network import Network, conv_net, freeze
from dtp_lightning.models.stage import Stage

FORMAT = "dtp_lightning encoder 1"
BUILDERS: dict[str, Callable[..., Network]] = {
    builder.__name__: builder for builder in (conv_net, resnet, mlp, library_net, forward_only_net)
}
"""Network builders that a card may name."""
LARGEST_TEXT = 2**20  # bytes of a card, and of a header
DTYPES = {torch.float32: ("F32", "F16"), torch.int64: ("I64",)}
"""What weights and the buffers of norms may be stored as, in the words of safetensors."""
PUBLISHED = Path(__file__).parent / "encoders"
"""Encoders that come with the package. docs/encoders.md"""


class Input(BaseModel):
    """Input images (N, channels, height, width) in [0, 1]; the encoder normalises them to (x - mean) / std."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channels: Literal[1, 3]
    height: PositiveInt
    width: PositiveInt
    mean: float
    std: PositiveFloat
    mirror_safe: bool

    def spec(self) -> ImageSpec:
        """The same as an :class:`ImageSpec`, the argument of network builders."""
        return ImageSpec(self.channels, self.height, self.width, self.mirror_safe, self.mean, self.std)


class Architecture(BaseModel):
    """The architecture of an encoder: a name in :data:`BUILDERS`, its arguments and the input."""

    model_config = ConfigDict(extra="forbid", strict=True)

    builder: str
    arguments: dict[str, Any]
    input: Input

    def build(self) -> Network:
        """Build the network on the meta device, without weights.

        Raises:
            DataError: there is no such builder, or it rejects the arguments.
        """
        if self.builder not in BUILDERS:
            raise DataError(f"builder '{self.builder}' is not one of {', '.join(BUILDERS)}")
        build = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(BUILDERS[self.builder])
        try:
            with torch.device("meta"):  # needs neither memory nor random numbers
                return build(self.input.spec(), **self.arguments)
        except ValidationError as error:
            raise DataError(f"encoder.arguments.{_first_problem(error)}") from error
        except (ConfigError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"encoder.arguments: {str(error).splitlines()[0]}") from error


class Encoder(Network):
    """The stages of a trained network, without head and feedback maps.

    Args:
        network: built for ``spec``.
        spec: size and kind of the input images.
        card: the whole JSON card.
    """

    def __init__(self, network: Network, spec: ImageSpec, card: Mapping[str, Any]) -> None:
        stages = [Stage(stage.forward_map) for stage in network.stages]
        super().__init__(stages, nn.Flatten(), mean=network.mean, std=network.std, shapes=network.shapes)
        self.spec = spec
        self.card = dict(card)

    @property
    def embedding_dim(self) -> int:
        """F, number of features of an image."""
        return int(torch.Size(self.shapes[-1]).numel())

    def activations(self, images: Tensor) -> list[Tensor]:
        """[h_1, ..., h_L] of images (N, C, H, W), float in [0, 1] or uint8 in 0..255.

        Raises:
            ValueError: the images have another size, number of channels or type.
        """
        expected = (self.spec.channels, self.spec.height, self.spec.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images are {tuple(images.shape)}, and this encoder takes (N, {', '.join(map(str, expected))})"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
        return super().activations(images)


def load_encoder(path: str | Path) -> Encoder:
    """Load an encoder that ``dtp export`` wrote; calling it with images gives features (N, F).

    Args:
        path: the ``.safetensors`` file, its ``.json`` card, or the folder of an ``encoder.safetensors``; card and
            weights are in the same folder. Or the name of one that comes with the package: ``"mnist5k-hinge-dtp"``
            (:func:`published`).

    Returns:
        The encoder on the CPU, in evaluation mode, without gradients (``requires_grad_(True)`` to fine-tune it).

    Raises:
        DataError: a file is missing or was changed, or the two do not belong together.
    """
    names = published()
    path = PUBLISHED / path if path in names else Path(path).expanduser()
    weights = path / "encoder.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    card_path = weights.with_suffix(".json")
    for file in (weights, card_path):
        if not file.is_file():
            near = get_close_matches(str(path), names, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(
                f"{file}: no such file; {hint}dtp export RUN writes weights and card, "
                f"and the package brings {', '.join(names)}"
            )
    try:
        card = read_card(card_path)
        return _load_encoder(card, weights)
    except DataError as error:
        raise DataError(f"{card_path}: {error}") from error


def published() -> list[str]:
    """Names of the encoders that come with the package: data set, loss, learner."""
    return sorted(path.stem for path in PUBLISHED.glob("*.safetensors"))


def read_card(path: Path) -> dict[str, Any]:
    """Read a JSON card.

    Raises:
        DataError: the file is no JSON, or no card of this format.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise DataError(f"has more than {LARGEST_TEXT:,} bytes: no card of ours")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"is not a card of format '{FORMAT}'")
    return card


def read_header(path: Path) -> tuple[Any, dict[str, Any]]:
    """The encoder and the tensors that the header of a safetensors file describes; no more of the file is read.

    Format: eight bytes, the header's length n; n bytes of JSON, name -> dtype, shape, and place among the bytes after.

    Raises:
        DataError: the header is too long, is no such JSON, or names a tensor twice.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_TEXT, size - 8):
            raise DataError(f"{path.name} is no safetensors file (a header of {length:,} bytes)")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_once)
        metadata = header.pop("__metadata__", {})
        encoder = json.loads(metadata.get("encoder", "null"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path.name} is no safetensors file ({error})") from error
    return encoder, header


def _check_tensors(header: Mapping[str, Any], encoder: nn.Module, path: Path) -> None:
    """The tensors of a file are those of an encoder, one after the other, and then the file ends.

    Raises:
        DataError: they are not.
    """
    try:
        found = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        places = sorted((start, end) for entry in header.values() for start, end in [entry["data_offsets"]])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is no safetensors file ({error!r})") from error
    weights = encoder.state_dict()
    for name in [*weights, *found]:
        shape, dtype = found.get(name, (None, None))
        if name not in weights or shape != weights[name].shape or dtype not in DTYPES[weights[name].dtype]:
            expected = (tuple(weights[name].shape), DTYPES[weights[name].dtype][0]) if name in weights else None
            raise DataError(f"the weights do not fit: {name} is {found.get(name)}, and the encoder's {expected}")
    ends = [0, *(end for _, end in places)]
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if [start for start, _ in places] != ends[:-1] or path.stat().st_size != 8 + length + ends[-1]:
        raise DataError(f"{path.name} is no safetensors file (its tensors are not where it says)")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys stand in it once: of two, readers differ in which they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_encoder(card: Mapping[str, Any], weights: Path) -> Encoder:
    """Build the network of a card and load its weights."""
    try:
        architecture = Architecture.model_validate(card.get("encoder"))
    except ValidationError as error:
        raise DataError(f"encoder.{_first_problem(error)}") from error
    encoder = Encoder(architecture.build(), architecture.input.spec(), card)
    # a file of another size is not even read
    most = 8 + LARGEST_TEXT + sum(value.nbytes for value in encoder.state_dict().values())
    if weights.stat().st_size > most or card.get("sha256") != digest(weights):
        raise DataError(f"{weights.name} is not the file that this card was written for: export the run again")
    described, header = read_header(weights)
    if described != card["encoder"]:
        raise DataError(f"encoder was changed since {weights.name} was written: export the run again")
    _check_tensors(header, encoder, weights)
    try:
        state_dict = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{weights.name} is no safetensors file ({error})") from error
    try:
        encoder.load_state_dict(state_dict, assign=True)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit: {str(error).splitlines()[-1].strip()}") from error
    return freeze(encoder.to(memory_format=torch.channels_last))  # type: ignore[return-value]


def _first_problem(error: ValidationError) -> str:
    """The first problem of a validation, in one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
