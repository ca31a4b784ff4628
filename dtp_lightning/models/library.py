"""Backbones of torchvision and timm by their name, cut into stages at their own blocks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models.block_feedback import BlockFeedback
from dtp_lightning.models.blocks import Chain, Residual, is_matrix, parts
from dtp_lightning.models.heads import Projector
from dtp_lightning.models.network import Network
from dtp_lightning.models.residual import network_of

Stem = Literal["auto", "cifar", "own"]
SMALL = 64  # pixels; below, the stem of a ResNet, which divides the image by 4, is replaced


def library_net(
    images: ImageSpec,
    *,
    library: Literal["torchvision", "timm"],
    name: str,
    stem: Stem = "auto",
    feedback: BlockFeedback = "transposable",
    embedding_dim: PositiveInt = 64,
    head_activation: str = "Identity",
    projector: Projector = (),
    projector_norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> Network:
    """A classification network of a library without its classifier, with random weights.

    A stage is one of the network's own blocks, or a layer with weights and what follows it up to the next one. The
    mean over the pixels is part of the last stage.

    Args:
        images: size, channels and normalisation of the images.
        library: torchvision, or timm (an extra).
        name: such as resnet18 (``torchvision.models.list_models()``, ``timm.list_models()``).
        stem: of ResNets: ``cifar`` is a 3x3 convolution of stride 1 without pooling, ``own`` the published one,
            ``auto`` is ``cifar`` for images below 64 pixels. Other networks have their own.
        feedback: of target rules: ``transposable`` for blocks that :func:`~dtp_lightning.models.blocks.parts` knows
            (ResNets, VGG, MobileNetV2), or ``decoder``.
        embedding_dim, head_activation, classes: see :func:`~dtp_lightning.models.conv_net`.
        projector, projector_norm: of the head, see :func:`~dtp_lightning.models.heads.head_of`.

    Raises:
        ConfigError: timm is not installed, there is no such network, it is no row of blocks, or the images are too
            small for it.
    """
    row = _of_torchvision(name, images.channels) if library == "torchvision" else _of_timm(name, images.channels)
    _replace_stem(row, name, images, stem)
    head = {"activation": head_activation, "projector": projector, "norm": projector_norm, "classes": classes}
    try:
        return network_of(stages_of([*row, nn.AdaptiveAvgPool2d(1)]), images, feedback, embedding_dim, head)
    except RuntimeError as error:
        size = f"{images.height} x {images.width}"
        raise ConfigError(f"model.name={name}: images of {size} pixels are too small for it") from error


def _of_torchvision(name: str, channels: int) -> list[nn.Module]:
    from torchvision import models
    from torchvision.models import densenet, mobilenetv2
    from torchvision.models import resnet as residual

    parts.register(residual.BasicBlock, _basic_block)
    parts.register(residual.Bottleneck, _bottleneck)
    parts.register(mobilenetv2.InvertedResidual, _inverted)
    _check_name(name, models.list_models(models), "torchvision")
    model = models.get_model(name, weights=None)
    _fit_channels(model, channels)
    row = row_of(model)
    return [*row, nn.ReLU()] if isinstance(model, densenet.DenseNet) else row


def _of_timm(name: str, channels: int) -> list[nn.Module]:
    try:
        import timm
        from timm.models import resnet as residual
    except ImportError as error:
        raise ConfigError("model=timm needs timm: pip install 'dtp-lightning[timm]'") from error
    parts.register(residual.BasicBlock, _timm_basic_block)
    parts.register(residual.Bottleneck, _timm_bottleneck)
    _check_name(name, timm.list_models(), "timm")
    return row_of(timm.create_model(name, in_chans=channels))


ROWS = (  # attributes of a network that are passed one after the other, below the mean over the pixels
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # torchvision's ResNet
    ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # timm's
    ("features",),  # VGG, DenseNet, MobileNet, EfficientNet, ConvNeXt
    ("stem", "trunk_output"),  # torchvision's RegNet
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # ShuffleNet
    ("layers",),  # MNASNet
    ("stem", "s1", "s2", "s3", "s4", "final_conv"),  # timm's RegNet
    ("stem", "stages", "norm_pre"),  # timm's ConvNeXt
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2"),  # timm's EfficientNet
    ("conv_stem", "bn1", "blocks"),  # timm's MobileNet
)


def row_of(model: nn.Module) -> list[nn.Module]:
    """The modules between image and mean over the pixels, one after the other; rows in rows are opened.

    Raises:
        ConfigError: the network is no such row; an image through the modules gives something else than through it.
    """
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # what a layer gave is still read by those that learn from it
    for names in ROWS:
        if all(isinstance(getattr(model, name, None), nn.Module) for name in names):
            row = list(_opened(getattr(model, name) for name in names))
            if _passes(model, row):
                return row
    raise ConfigError(
        f"model.name: {type(model).__name__} is not known as a row of blocks, which stages are: take a ResNet, VGG, "
        "DenseNet, MobileNet, EfficientNet, ConvNeXt or RegNet"
    )


def _opened(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        blocks = [child for child in module.children() if any(is_matrix(p) for p in child.parameters())]
        if type(module) is nn.Sequential or (isinstance(module, nn.Sequential) and len(blocks) > 1):
            yield from _opened(module)
        elif not isinstance(module, nn.Identity):
            yield module


@torch.no_grad()
def _passes(model: nn.Module, row: list[nn.Module]) -> bool:
    """Whether the network passes an image through this row, and nothing comes between."""
    first = next(p for p in model.parameters() if p.ndim > 1)
    x = torch.linspace(-1, 1, 64 * 64 * first.shape[1], device=first.device).view(1, first.shape[1], 64, 64)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, y: Tensor) -> None:
        seen.append(y)
        raise _ReachedError

    training, hook = model.training, row[-1].register_forward_hook(keep)
    try:
        model.eval()(x)
    except _ReachedError:
        hook.remove()
        for module in row:
            x = module(x)
        image = x.ndim == 4 and x.shape[1] > x.shape[3]  # channels first: 64 pixels have become fewer than channels
        return image and x.shape == seen[0].shape and (x.is_meta or torch.allclose(seen[0], x))
    except (RuntimeError, TypeError, ValueError):  # such as an image that it refuses
        return False
    finally:
        hook.remove()
        model.train(training)
    return False


class _ReachedError(Exception):
    """The pass came to the end of the row: what follows is not needed."""


def stages_of(row: Sequence[nn.Module]) -> list[nn.Sequential]:
    """A stage begins at every module that has a matrix of weights.

    >>> [len(stage) for stage in stages_of([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)])]
    [3, 1]
    """
    stages: list[list[nn.Module]] = []
    for module in row:
        if not stages or any(is_matrix(p) for p in module.parameters()):
            stages.append([])
        stages[-1].append(module)
    return [nn.Sequential(*stage) for stage in stages]


def _replace_stem(row: list[nn.Module], name: str, images: ImageSpec, stem: Stem) -> None:
    """Of a ResNet for small images: 3x3, stride 1, without the max-pool."""
    conv, pools = row[0], [i for i, m in enumerate(row[:5]) if isinstance(m, nn.MaxPool2d)]
    fits = isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and len(pools) == 1
    if stem == "own" or (stem == "auto" and (not fits or min(images.height, images.width) >= SMALL)):
        return
    if not fits:
        raise ConfigError(f"model.stem=cifar is for ResNets, whose stem is 7x7: with {name} take model.stem=own")
    assert isinstance(conv, nn.Conv2d)
    small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    row[0] = small
    del row[pools[0]]


def _fit_channels(model: nn.Module, channels: int) -> None:
    """The first convolution takes the images' channels; weights are drawn as they were."""
    name, conv = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels != channels:
        options: dict[str, Any] = {
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "padding": conv.padding,
            "bias": conv.bias is not None,
        }
        model.set_submodule(name, nn.Conv2d(channels, conv.out_channels, **options))


def _check_name(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["resnet18"]
        raise ConfigError(f"model.name={name}: {library} has no network of this name; take {' or '.join(near)}")


def _basic_block(block: Any) -> Residual:
    return Residual([block.conv1, block.bn1, block.relu, block.conv2, block.bn2], _some(block.downsample), [block.relu])


def _bottleneck(block: Any) -> Residual:
    main = [block.conv1, block.bn1, block.relu, block.conv2, block.bn2, block.relu, block.conv3, block.bn3]
    return Residual(main, _some(block.downsample), [block.relu])


def _inverted(block: Any) -> Residual | Chain:
    return Residual([block.conv]) if block.use_res_connect else Chain([block.conv])


def _timm_basic_block(block: Any) -> Residual | None:
    if block.se is not None or block.drop_path is not None:
        return None
    main = [block.conv1, block.bn1, block.drop_block, block.act1, block.aa, block.conv2, block.bn2]
    return Residual(main, _some(block.downsample), [block.act2])


def _timm_bottleneck(block: Any) -> Residual | None:
    if block.se is not None or block.drop_path is not None:
        return None
    main = [block.conv1, block.bn1, block.act1, block.conv2, block.bn2, block.drop_block, block.act2, block.aa]
    return Residual([*main, block.conv3, block.bn3], _some(block.downsample), [block.act3])


def _some(module: nn.Module | None) -> list[nn.Module]:
    return [] if module is None else [module]
