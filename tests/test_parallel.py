"""Two processes that share a batch learn what one learns from the whole of it."""

from __future__ import annotations

import csv
import json
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, learner_of, options
from processes import Process, run
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import Learner
from dtp_lightning.runtime import collectives

WORLD, SHARE, STEPS = 2, 3, 3
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
    workers = [Process([sys.executable, __file__, str(rank), str(port), str(folder)]) for rank in range(WORLD)]
    said = [worker.communicate(timeout=400) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORLD, said
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
    assert collectives.world_size() == 1
    assert collectives.all_gather(x) is x and collectives.broadcast(x) is x
    metrics = {"a": x.sum()}
    assert collectives.mean_scalars(metrics) is metrics


COMMAND = (  # no randomness within a step: devices draw differently; no maxima: rounding would decide between equals
    *("learner=dtp_autoencoder", "loss=cross_entropy", "augment=clean", "learner.feedback.noise_std=0.0"),
    *("model=cnn4_average", "model.channels=[4,6]"),
    *("learner.forward_optimizer._target_=torch.optim.SGD", "learner.forward_optimizer.lr=0.1"),
    *("learner.feedback.optimizer._target_=torch.optim.SGD", "learner.feedback.optimizer.lr=0.1"),
    *("trainer.accelerator=cpu", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"),
    *("trainer.log_every_n_steps=1", "evaluation=[knn]", "callbacks=[online_knn,alignment]", "logger=none"),
)


def test_a_run_on_two_devices_ends_as_one_with_their_batches_together(
    run_pipeline: Callable[..., dict], tmp_path: Path
) -> None:
    """Through Lightning and the command line, from the checkpoint of a first epoch on one device."""
    one, both = tmp_path / "one", tmp_path / "both"
    run_pipeline(*COMMAND, "batch_size=50", "trainer.max_epochs=1", folder=tmp_path / "start")
    going_on = (*COMMAND, "trainer.max_epochs=2", f"resume={tmp_path / 'start'}")
    whole = run_pipeline(*going_on, "batch_size=50", folder=one)
    two = ("batch_size=25", "trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={both}")
    done = run([sys.executable, str(ROOT / "train.py"), *going_on, *two], cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip() and "random   trained" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("run folder") == 1, "one of them tells"
    summary = json.loads((both / "summary.json").read_text())
    assert (summary["devices"], whole["devices"], summary["epochs"]) == (2, 1, 2)
    assert summary["knn/test_acc"] == pytest.approx(whole["knn/test_acc"], abs=0.005)
    folders = (tmp_path / "start", both, one)
    start, ours, theirs = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in folders)
    assert ours["global_step"] == theirs["global_step"] == 10
    start, ours, theirs = (stored["state_dict"] for stored in (start, ours, theirs))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    moved = [(v - start[n]).abs().max() for n, v in theirs.items() if v.is_floating_point()]
    assert max(moved) > 1e-2, "far more than the tolerance"
    rows, expected = ([*csv.DictReader((folder / "metrics.csv").open())] for folder in (both, one))
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for name in (n for n, value in other.items() if value and not n.startswith("diagnostics")):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3), name
    assert {p.name for p in both.iterdir()} == {p.name for p in one.iterdir()} | {".hydra"}


def test_a_sweep_s_job_stays_on_one_device(run_pipeline: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: several devices train one run of `dtp train`"):
        run_pipeline(*COMMAND, "trainer.devices=2")


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
