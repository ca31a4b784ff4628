"""Objectives: any batch size, symmetries, and the thesis' closed-form error signal."""

from __future__ import annotations

import pytest
import torch
from conftest import composed, options
from torch import Tensor, nn

from dtp_lightning.config import build, checked
from dtp_lightning.losses import ContrastiveHinge

LOSSES = options("loss")
FORMS = [
    {"pairs": pairs, "reduction": reduction} for pairs in ("all", "cross") for reduction in ("active", "mean", "sum")
]


def loss_of(name: str) -> nn.Module:
    return build(checked(composed(f"loss={name}")[0])["loss"])


def embeddings(batch: int, scale: float = 0.1, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    z = scale * torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return z[0].requires_grad_(), z[1].requires_grad_()


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("name", LOSSES)
def test_any_batch_size_is_finite(name: str, batch: int) -> None:
    z0, z1 = embeddings(batch)
    loss = loss_of(name)(z0, z1)
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert torch.isfinite(z0.grad).all() and torch.isfinite(z1.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_images_does_not_matter(name: str) -> None:
    z0, z1 = embeddings(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    loss = loss_of(name)
    torch.testing.assert_close(loss(z0, z1), loss(z0[order], z1[order]))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_hinge_forms_against_loops(form: dict) -> None:
    z0, z1 = embeddings(5, scale=0.5)
    batch = len(z0)
    anchors = [*z0, *z1] if form["pairs"] == "all" else [*z0]
    others = [*z0, *z1] if form["pairs"] == "all" else [*z1]
    positives = [torch.relu((a - b).abs().sum() - 1) for a, b in zip(z0, z1, strict=True)]
    negatives = [
        [torch.relu(3 - (a - b).abs().sum()) for j, b in enumerate(others) if i % batch != j % batch]
        for i, a in enumerate(anchors)
    ]
    if form["reduction"] == "active":
        means = [sum(row) / max(1, sum(n > 0 for n in row)) for row in negatives]
        expected = sum(positives) / batch + sum(means) / len(means)
    elif form["reduction"] == "mean":
        expected = sum(positives) / batch + torch.stack([n for row in negatives for n in row]).mean()
    else:
        expected = sum(positives) * len(anchors) / batch + sum(n for row in negatives for n in row)
    torch.testing.assert_close(ContrastiveHinge(**form)(z0, z1), expected)


def test_hinge_error_signal_is_a_gated_sum_of_signs() -> None:
    """docs/losses/hinge.md: dL/dz_i = (1/n) (2 1[d > 1] s_ii' - sum over active j of (1/A_i + 1/A_j) s_ij)."""
    z0, z1 = embeddings(6, scale=0.35)
    ContrastiveHinge()(z0, z1).backward()
    z = torch.cat([z0, z1]).detach()
    n, b = len(z), len(z0)
    signs = (z[:, None] - z[None]).sign()
    distances = (z[:, None] - z[None]).abs().sum(-1)
    other = torch.arange(n)[:, None] % b != torch.arange(n)[None] % b
    active = (distances < 3) & other
    assert 0 < active.sum() < other.sum(), "the example has both active and inactive negatives"
    share = 1 / active.sum(1).clamp(min=1)
    mates = (torch.arange(n) + b) % n
    rows = torch.arange(n)
    positive = 2 * (distances[rows, mates] > 1)[:, None] * signs[rows, mates]
    negative = ((share[:, None] + share[None]) * active)[..., None] * signs
    expected = (positive - negative.sum(1)) / n
    torch.testing.assert_close(torch.cat([z0.grad, z1.grad]), expected)


def test_hinge_is_zero_when_views_agree_and_images_are_far() -> None:
    z = torch.eye(4) * 10
    assert ContrastiveHinge()(z, z.clone()).item() == 0


def test_gradient_block_teaches_view_one_only() -> None:
    z0, z1 = embeddings(4)
    ContrastiveHinge(gradient_block=True)(z0, z1).backward()
    assert z0.grad is None
    assert z1.grad.abs().sum() > 0


def test_few_negatives_need_the_papers_form() -> None:
    with pytest.raises(ValueError, match="pairs=cross reduction=sum"):
        ContrastiveHinge(diagonals=5)
