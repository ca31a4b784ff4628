"""What the benchmarks time: learners as a command line would build them, and a plain PyTorch loop beside them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("BENCHMARK_ROOT", Path(__file__).resolve().parents[1]))  # another commit's checkout
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import open_dict  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dtp_lightning.callbacks.macs import count_macs, macs_per_image  # noqa: E402
from dtp_lightning.config.instantiate import build  # noqa: E402
from dtp_lightning.config.schema import checked  # noqa: E402
from dtp_lightning.data.images import ImageSpec  # noqa: E402
from dtp_lightning.learners import Learner  # noqa: E402

with contextlib.suppress(ImportError):  # older commits have none
    from dtp_lightning.runtime.allocator import keep_freed_memory

    keep_freed_memory()

CONF = ROOT / "conf"


def settings(*overrides: str) -> dict[str, Any]:
    """The configuration that a command line describes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return dict(checked(compose("train", list(overrides))))


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    """A whole run of ``dtp train``, in this process; its summary."""
    from dtp_lightning import pipeline

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    return pipeline.run(config, choices, folder)


def learner_of(name: str, images: ImageSpec, overrides: list[str]) -> Learner:
    """The rule as a command line would build it, on seed 0."""
    values = settings(f"learner={name}", *overrides)
    torch.manual_seed(0)
    model = build(values["model"], images=images)
    return build(values["learner"], model=model, loss=build(values["loss"]))


@dataclass
class Case:
    """A training step to be timed.

    Attributes:
        name: of the row.
        step: augments and learns from one batch of uint8 images.
        macs: multiply-accumulates of the step for one view.
        learner: None for the plain loop.
        seconds: of every repeat.
    """

    name: str
    step: Callable[[Tensor], object]
    macs: float
    learner: Learner | None = None
    augment: nn.Module | None = None
    seconds: list[float] = field(default_factory=list)


def case(name: str, learner: str, images: ImageSpec, overrides: list[str], bf16: bool = False) -> Case:
    """A rule's whole step: views, learning, nothing logged."""
    augment = build(settings(f"learner={learner}", *overrides)["augment"], images=images)
    rule = learner_of(learner, images, overrides)
    if hasattr(rule, "skip_first_phase"):  # older commits have none
        rule.skip_first_phase()

    def step(batch: Tensor) -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            rule.step(augment(batch), measure=False)

    return Case(name, step, macs_per_image(rule, images, views=2), rule, augment)


def plain(images: ImageSpec, overrides: list[str]) -> Case:
    """Backprop as anyone would write it: one network, ``backward``, Adam; same layout, loss and views."""
    values = settings("learner=bp", *overrides)
    torch.manual_seed(0)
    augment, loss = build(values["augment"], images=images), build(values["loss"])
    widths = [images.channels, *values["model"]["channels"]]
    layers: list[nn.Module] = []
    for below, here in pairwise(widths):
        layers += [nn.Conv2d(below, here, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()]
    side = images.height // 2 ** (len(widths) - 1)
    head = [nn.Flatten(), nn.Linear(widths[-1] * side**2, values["model"]["embedding_dim"]), nn.Tanh()]
    network = nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)
    optimizer = build(values["learner"]["forward_optimizer"])(network.parameters())

    def learn(views: Tensor) -> None:
        x = views.flatten(0, 1).to(memory_format=torch.channels_last) * 2 - 1
        optimizer.zero_grad()
        loss(*network(x).unflatten(0, (2, -1))).backward()
        optimizer.step()

    macs = count_macs(lambda: learn(torch.rand(2, 2, images.channels, images.height, images.width))) / 4
    return Case("plain PyTorch loop", lambda batch: learn(augment(batch)), macs)


def plain_recipe(values: dict[str, Any], images: Tensor) -> Callable[[Tensor], None]:
    """The step of a recipe on ResNet-18 as anyone would write it: torchvision's network, ``backward``, no frame.

    Args:
        values: of the configuration: its ``augment``, ``loss``, optimiser, projector and warm-up are taken.
        images: all of them, uint8 (N, C, H, W).

    Returns:
        A function that augments and learns from the images at int64 indices (B,); its rate follows the same cosine.
    """
    from lightly.utils.scheduler import CosineWarmupScheduler
    from torchvision.models import resnet18

    model = values["model"]
    spec = ImageSpec(*images.shape[1:], mirror_safe=True)
    augment, loss = build(values["augment"], images=spec), build(values["loss"])
    network = resnet18()
    network.conv1 = nn.Conv2d(spec.channels, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    head: list[nn.Module] = []
    for below, width in pairwise([512, *model["projector"]]):
        norm = [nn.BatchNorm1d(width)] if model["projector_norm"] == "batch" else []
        head += [nn.Linear(below, width, bias=not norm), *norm, nn.ReLU()]
    network.fc = nn.Sequential(*head, nn.Linear([512, *model["projector"]][-1], model["embedding_dim"]))
    network.to(memory_format=torch.channels_last)
    optimizer = build(values["learner"]["forward_optimizer"])(network.parameters())
    schedule = CosineWarmupScheduler(optimizer, values["schedule"]["forward"]["warmup"], 180_000)

    def step(index: Tensor) -> None:
        views = augment(images[index])
        x = views.flatten(0, 1).to(memory_format=torch.channels_last) * 2 - 1
        optimizer.zero_grad()
        loss(*network(x).unflatten(0, (2, -1))).backward()
        optimizer.step()
        schedule.step()

    return step


def plain_dtp(images: ImageSpec, overrides: list[str]) -> Case:
    """DTP as its equations read and the thesis' scripts were laid out: contiguous tensors, autograd for every loss."""
    values = settings("learner=dtp_autoencoder", *overrides)
    torch.manual_seed(0)
    augment, loss = build(values["augment"], images=images), build(values["loss"])
    widths = [images.channels, *values["model"]["channels"]]
    pairs = list(pairwise(widths))
    f = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()) for a, b in pairs]
    g = [nn.Sequential(nn.ConvTranspose2d(b, a, 3, 2, padding=1, output_padding=1), nn.Tanh()) for a, b in pairs[1:]]
    side = images.height // 2 ** len(f)
    head = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * side**2, values["model"]["embedding_dim"]), nn.Tanh())
    forward = build(values["learner"]["forward_optimizer"])([*nn.ModuleList(f).parameters(), *head.parameters()])
    feedback = build(values["learner"]["feedback"]["optimizer"])(nn.ModuleList(g).parameters())
    step = values["learner"]["target_step"]

    def learn(views: Tensor) -> None:
        h = [views.flatten(0, 1) * 2 - 1]
        for stage in f:
            h.append(stage(h[-1].detach()))
        forward.zero_grad()
        top = h[-1].detach().requires_grad_()
        loss(*head(top).unflatten(0, (2, -1))).backward()
        assert top.grad is not None
        with torch.no_grad():
            targets = [h[-1] - step * top.grad]
            for here, below, back in zip(h[:1:-1], h[-2:0:-1], g[::-1], strict=True):
                targets.append(below - back(here) + back(targets[-1]))
        local = [(a - b).square().sum() / (2 * step) for a, b in zip(h[:0:-1], targets, strict=True)]
        torch.stack(local).sum().backward()
        feedback.zero_grad()
        for below, stage, back in zip(h[1:-1], f[1:], g, strict=True):
            noisy = below.detach() + torch.randn_like(below)
            with torch.no_grad():
                above = stage(noisy)
            nn.functional.mse_loss(back(above), noisy).backward()
        forward.step()
        feedback.step()

    macs = count_macs(lambda: learn(torch.rand(2, 2, images.channels, images.height, images.width))) / 4
    return Case("plain PyTorch dtp", lambda batch: learn(augment(batch)), macs)


def matmul_rate(size: int = 2048) -> float:
    """Multiply-accumulates a second of a square float32 matrix product, the machine's practical peak."""
    a = torch.randn(size, size)
    begun = time.perf_counter()
    a @ a
    return size**3 / (time.perf_counter() - begun)
