"""Losses and stages over shapes and magnitudes: finite, and equal to a float64 reference.

Tolerance: an l1 distance in float32 is a sum of D rounded differences, so values and error signals may differ from
those of float64 by ``RTOL`` of the largest quantity that enters. A rounded distance may fall on the other side of a
margin: where a float64 distance comes within that tolerance of one, without being a tie, error signals are not
compared, and neither are values that are means over the active pairs, whose number jumps there.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from conftest import composed
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.losses import ContrastiveHinge, CrossEntropy, L1Margin, MulticlassHinge, PositiveOnly
from dtp_lightning.models import conv_stage

RTOL = 1e-5
SMALL, LARGE = 1e-30, 1e30
quick = settings(
    derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], database=None
)
magnitudes = st.sampled_from([0.0, SMALL, 1e-7, 0.1, 1.0, 3.0, 1e4, 1e15, LARGE])
KINDS = ("normal", "ties", "grid", "one image", "mixed")


@st.composite
def embeddings(draw: st.DrawFn, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Two views (B, D) of a magnitude: at random, with ties, on a grid where distances meet margins exactly, of images
    that are all the same, or of magnitudes mixed within one batch.
    """
    batch, dim = draw(st.integers(smallest, 9)), draw(st.integers(1, 12))
    kind, scale = draw(st.sampled_from(KINDS)), draw(magnitudes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    z = torch.randn(2, batch, dim, generator=generator)
    if kind == "ties":
        z = z.sign()
        z[1, ::2] = z[0, ::2]
    elif kind == "grid":
        z = (2 * z).round() / 2  # multiples of 1/2: exact in float32, and so are their distances
    elif kind == "one image":
        z = z[:, :1].expand_as(z).clone()
    elif kind == "mixed":
        z = z * torch.tensor([SMALL, 1.0, 1e15, LARGE])[torch.randint(4, (batch, 1), generator=generator)]
        scale = 1.0
    z = z * (1.0 if kind == "grid" else scale)
    return z[0], z[1]


def distances(z0: Tensor, z1: Tensor) -> Tensor:
    """All l1 distances (2B, 2B) of the stacked views."""
    z = torch.cat([z0, z1])
    return (z[:, None] - z[None]).abs().sum(-1)


def hinge(z0: Tensor, z1: Tensor, pairs: str, reduction: str, near: float, far: float) -> Tensor:
    """The contrastive hinge as it is written, for autograd."""
    batch = len(z0)
    d = distances(z0, z1)
    other = ~torch.eye(batch, dtype=torch.bool).repeat(2, 2)
    if pairs == "cross":
        d, other = d[:batch, batch:], other[:batch, batch:]
    positives = torch.relu((z0 - z1).abs().sum(1) - near)
    negatives = torch.relu(far - d) * other
    if reduction == "sum":
        return positives.sum() * (len(d) // batch) + negatives.sum()
    if reduction == "mean":
        return positives.mean() + negatives.sum() / other.sum().clamp(min=1)
    return positives.mean() + (negatives.sum(1) / (negatives > 0).sum(1).clamp(min=1)).mean()


def triplet(z0: Tensor, z1: Tensor, margin: float) -> Tensor:
    """The l1 margin loss as it is written."""
    batch, d = len(z0), distances(z0, z1)
    near = (z0 - z1).abs().sum(1).repeat(2)
    other = ~torch.eye(batch, dtype=torch.bool).repeat(2, 2)
    inside = torch.relu(near[:, None] - d + margin) * other
    return inside.sum() / (inside > 0).sum().clamp(min=1)


def away_from_margins(z0: Tensor, z1: Tensor, *gaps: Tensor) -> bool:
    """Whether no gap (distance less margin, float64) could change its sign by rounding, ties excepted."""
    noise = RTOL * (1 + distances(z0, z1).max())
    return all(bool(((gap.abs() > noise) | (gap == 0)).all()) for gap in gaps)


def compare(
    loss: nn.Module,
    reference: Callable[[Tensor, Tensor], Tensor],
    views: tuple[Tensor, Tensor],
    *,
    signals: bool = True,
) -> None:
    """Value and, unless ``signals`` is false, error signals, against autograd of the reference in float64."""
    low = [z.clone().requires_grad_() for z in views]
    high = [z.double().requires_grad_() for z in views]
    value, expected = loss(*low), reference(*high)
    assert torch.isfinite(value)
    size = max(float(distances(*views).double().max()), float(expected.abs().detach()), 1e-3)
    torch.testing.assert_close(value.double(), expected, rtol=RTOL, atol=RTOL * size)
    value.backward()
    if expected.requires_grad:
        expected.backward()
    for ours, theirs in zip(low, high, strict=True):
        assert torch.isfinite(ours.grad).all()
        if signals:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=RTOL, atol=RTOL * len(views[0]))


@pytest.mark.parametrize("reduction", ["active", "mean", "sum"])
@pytest.mark.parametrize("pairs", ["all", "cross"])
@given(views=embeddings())
@quick
def test_contrastive_hinge(pairs: str, reduction: str, views: tuple[Tensor, Tensor]) -> None:
    d = distances(*(z.double() for z in views))
    clear = away_from_margins(*(z.double() for z in views), d - 1.0, d - 3.0)
    assume(clear or reduction != "active")
    loss = ContrastiveHinge(pairs=pairs, reduction=reduction)  # type: ignore[arg-type]
    compare(loss, lambda a, b: hinge(a, b, pairs, reduction, 1.0, 3.0), views, signals=clear)


@given(views=embeddings(), margin=st.sampled_from([0.5, 4.0]))
@quick
def test_l1_margin(views: tuple[Tensor, Tensor], margin: float) -> None:
    z0, z1 = (z.double() for z in views)
    reach = (z0 - z1).abs().sum(1).repeat(2)[:, None] + margin
    gap = reach - distances(z0, z1)
    assume(away_from_margins(z0, z1, gap))
    compare(L1Margin(margin), lambda a, b: triplet(a, b, margin), views)


@given(views=embeddings())
@quick
def test_positive_only(views: tuple[Tensor, Tensor]) -> None:
    compare(PositiveOnly(), lambda a, b: (a - b).abs().sum(1).mean(), views)


@functools.cache
def loss_named(name: str, dim: int) -> nn.Module:
    """A loss of conf/loss/."""
    torch.manual_seed(0)
    return build(checked(composed(f"model.embedding_dim={dim}", f"loss={name}")[0]).loss)


@pytest.mark.parametrize("name", ["simclr", "dcl", "barlow_twins", "vicreg", "clapp"])
@given(views=embeddings(smallest=2))
@quick
def test_losses_of_others_equal_themselves_in_float64(name: str, views: tuple[Tensor, Tensor]) -> None:
    """Up to magnitudes whose squares float32 can hold: beyond, these formulas (not ours) overflow."""
    size = float(torch.cat(views).abs().max())
    assume(size == 0 or 1e-7 <= size <= 1e4)
    loss = loss_named(name, views[0].shape[1])
    exact = copy.deepcopy(loss).double()
    value, expected = loss(*views), exact(*(z.double() for z in views))
    assert torch.isfinite(value)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)


@given(
    logits=st.tuples(st.integers(1, 6), st.integers(2, 5), magnitudes, st.integers(0, 2**16)),
    loss=st.sampled_from([CrossEntropy(), CrossEntropy(0.1), MulticlassHinge(), MulticlassHinge(balance=0.0)]),
)
@quick
def test_supervised_controls(logits: tuple[int, int, float, int], loss: nn.Module) -> None:
    n, classes, scale, seed = logits
    generator = torch.Generator().manual_seed(seed)
    u = scale * torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    low, high = u.clone().requires_grad_(), u.double().requires_grad_()
    value, expected = loss(low, labels), loss(high, labels)
    assert torch.isfinite(value)
    torch.testing.assert_close(value.double(), expected, rtol=RTOL, atol=RTOL)
    value.backward()
    expected.backward()
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-4, atol=RTOL)


@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9)),
    pool=st.sampled_from([1, 2]),
    stride=st.sampled_from([1, 2]),
    pooling=st.sampled_from(["max", "average"]),
    feedback=st.sampled_from(["strided", "unpool"]),
    activation=st.sampled_from(["Tanh", "ReLU", "ELU", "Hardtanh", "Identity"]),
    scale=st.sampled_from([0.0, SMALL, 1e-7, 1.0, 1e4, LARGE]),
    seed=st.integers(0, 2**16),
)
@quick
def test_stages(
    shape: tuple[int, int, int, int], pool: int, stride: int, pooling: str, feedback: str, activation: str,
    scale: float, seed: int,
) -> None:  # fmt: skip
    """Forward and feedback maps give the shapes they promise at any size, and what float64 gives."""
    assume(min(-(-side // stride) // pool for side in shape[2:]) >= 1)
    assume(feedback == "unpool" or stride * pool <= 3)
    torch.manual_seed(seed)
    x = scale * torch.randn(shape)
    stage = conv_stage(
        shape[1], 4, pool=pool, stride=stride, pooling=pooling, feedback=feedback, activation=activation,  # type: ignore[arg-type]
        activation_below=activation,
    )  # fmt: skip
    exact = copy.deepcopy(stage).double()
    low, high = (each.run(z) for each, z in ((stage, x.clone()), (exact, x.double())))
    size = max(1.0, float(x.abs().max()))
    assert torch.isfinite(low.y).all()
    torch.testing.assert_close(low.y.double(), high.y, rtol=RTOL, atol=RTOL * size)
    u = low.y.detach()
    reach = max(1.0, float(u.abs().max()))
    back = stage.feedback(u, x, low.pool_indices)
    other = exact.feedback(u.double(), x, low.pool_indices)
    assert back.shape == x.shape and torch.isfinite(back).all()
    torch.testing.assert_close(back.double(), other, rtol=RTOL, atol=RTOL * reach)
    if activation in ("ReLU", "Hardtanh"):
        return  # at a kink a rounded number pool_indices a gradient
    ours = torch.autograd.grad(back.sum(), stage.feedback_parameters())
    theirs = torch.autograd.grad(other.sum(), exact.feedback_parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=10 * RTOL * reach * x.numel())
