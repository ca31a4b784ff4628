"""The rule in a plain loop, and its name on the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from my_rule import SignedErrors

from dtp_lightning.data import ImageSpec
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import Network, conv_net

CONF = Path(__file__).resolve().parent / "conf"


def network() -> Network:
    torch.manual_seed(0)
    return conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[4, 8], embedding_dim=8)


def test_the_loss_falls() -> None:
    learner = SignedErrors(network(), ContrastiveHinge(), partial(torch.optim.Adam, lr=3e-3))
    views = torch.rand(2, 16, 1, 8, 8)  # two views of 16 images
    losses = [learner.step(views)["loss"].item() for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_top_stage_is_told_the_sign_of_backprops_error() -> None:
    learner = SignedErrors(network(), ContrastiveHinge(), partial(torch.optim.SGD, lr=0.0))
    views = torch.rand(2, 16, 1, 8, 8)
    h = learner.model.activations(views.flatten(0, 1))[-1].detach().requires_grad_(True)
    error = torch.autograd.grad(learner.objective(learner.model.head(h), views=2), h)[0]
    told = error.sign() * error.abs().mean()
    below = learner.model.activations(views.flatten(0, 1))[-2].detach()
    stage = learner.model.stages[-1]
    expected = torch.autograd.grad(stage(below), stage.forward_parameters(), told)
    learner.step(views)
    for parameter, gradient in zip(stage.forward_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_command_line_finds_it() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=["+learner=signed_errors"])
    learner = instantiate(config.learner, model=network(), loss=ContrastiveHinge())
    assert isinstance(learner, SignedErrors)
