"""Two processes that share a batch learn what one learns from the whole of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import learner_of, options
from torch import Tensor

from dtp_lightning.learners import Learner, parallel

WORLD, SHARE, STEPS = 2, 3, 5
EVERY_LOSS = [("bp", loss) for loss in options("loss")] + [("gll", "clapp"), ("dtp", "clapp")]
CASES = [*((rule, "hinge") for rule in options("learner")), *EVERY_LOSS]
EXTRA = {  # options that scale with the batch, or with a schedule, and are not a rule's default
    "dtp": "learner.target_gradient=per_sample",
    "ldrl": "learner.feedback.steps=3",
    "sign_symmetric": "learner.magnitude=batch",
    "gll": "learner.order=all",
}
TOLERANCE = 1e-9
"""In float64, absolute: only the order of sums differs, and Adam's first steps turn that into a part of lr = 5e-4."""


def noise_of(share: slice, seed: int) -> Callable[[Tensor], Tensor]:
    """The rows of the whole batch's noise, view after view, that belong to a share of it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(x: Tensor) -> Tensor:
        whole = torch.randn(2, WORLD * SHARE, *x.shape[1:], generator=generator, dtype=x.dtype)
        return whole[:, share].flatten(0, 1)

    return noise


def train(rule: str, loss: str, share: slice, own_draws: int = 0) -> dict[str, Tensor]:
    """Weights and metrics after some steps on a share of each batch."""
    learner: Learner = learner_of(f"learner={rule}", f"loss={loss}", *([EXTRA[rule]] if rule in EXTRA else []))
    learner.double()
    if getattr(learner, "feedback", None) is not None:
        learner.feedback.noise_like = noise_of(share, 3)
    data = torch.Generator().manual_seed(4)
    torch.manual_seed(5 + own_draws)
    for _ in range(STEPS):
        views = torch.rand(2, WORLD * SHARE, 3, 16, 16, generator=data, dtype=torch.double)
        labels = torch.randint(3, (WORLD * SHARE,), generator=data)
        metrics = learner.step(views[:, share], labels[share])
    found = {name: value for name, value in learner.state_dict().items() if isinstance(value, Tensor)}
    return found | {f"metrics/{name}": value for name, value in metrics.items()}


def worker(rank: int, port: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", timedelta(minutes=5), WORLD, rank  # a busy machine may pause a process
    )  # fmt: skip
    share = slice(rank * SHARE, (rank + 1) * SHARE)
    found = {case: train(*case, share, own_draws=rank) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process has after all cases."""
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("rule,loss", CASES)
def test_two_processes_learn_what_one_does(rule: str, loss: str, together: list[dict]) -> None:
    first, second = (found[rule, loss] for found in together)
    whole = train(rule, loss, slice(None))
    assert first.keys() == second.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        torch.testing.assert_close(first[name], value, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def test_alone_nothing_changes() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert parallel.world_size() == 1
    assert parallel.gather(x) is x and parallel.of_first(x) is x
    metrics = {"a": x.sum()}
    assert parallel.mean_of(metrics) is metrics
