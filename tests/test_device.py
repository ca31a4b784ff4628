"""A step gives the device work and never waits for it: on tensors without numbers, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, learner_of, options
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dtp_lightning.augment import CropColourViews
from dtp_lightning.learners import Learner

FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
"""What copies numbers to the device at once, after all work that it was given."""


class NoCopies(TorchFunctionMode):
    """Raises where numbers of the host are copied to the device of a step."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FROM_THE_HOST and result.device.type != "cpu":
            raise AssertionError(f"{func.__name__} in a step waits for the device")
        return result


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch does not say of the meta device whether autocast is on."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": False)


def two_steps(learner: Learner) -> None:
    """On the meta device; in the first, constants go there."""
    learner.skip_first_phase()
    learner.to("meta")
    augment, images = batch_on("meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    learner.step(augment(images), labels, measure=False)
    with NoCopies():
        learner.step(augment(images), labels, measure=False)


def batch_on(device: str) -> tuple[CropColourViews, Tensor]:
    views = CropColourViews(TINY, blur=0.5, solarise=[0.0, 0.2])
    return views, torch.zeros(6, 3, 16, 16, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("name", options("learner"))
def test_a_step_reads_no_number(name: str, meta: None) -> None:
    """Of tensors on the meta device none can be read, and what would be read would be waited for."""
    two_steps(learner_of(f"learner={name}"))


WAITING = ("simclr", "dcl", "vicreg", "hinge_relative")
"""They wait once a step: lightly's pick pairs by a mask, the relative hinge reads the mean distance."""


@pytest.mark.parametrize("name", options("loss"))
def test_objectives_read_no_number(name: str, meta: None) -> None:
    learner = learner_of("learner=bp", f"loss={name}")
    if name in WAITING:
        with pytest.raises((RuntimeError, NotImplementedError)):
            two_steps(learner)
        return
    two_steps(learner)


@pytest.mark.parametrize("name", options("learner"))
def test_a_step_on_a_gpu_waits_for_nothing(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: only the meta device is looked at")
    learner = learner_of(f"learner={name}").cuda()
    learner.skip_first_phase()
    augment, images = batch_on("cuda")
    for _ in range(2):
        learner.step(augment(images), measure=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.step(augment(images), measure=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
