"""Objectives: any batch size, symmetries, and the thesis' closed-form error signal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import composed, options
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.errors import ConfigError
from dtp_lightning.losses import (
    ContrastiveHinge,
    L1Margin,
    MulticlassHinge,
    PositiveOnly,
    RelativeHinge,
    as_objective,
    l1,
)
from dtp_lightning.losses.objective import over_pairs

LOSSES = [name for name in options("loss") if name not in ("cross_entropy", "multiclass_hinge")]
FORMS = [
    {"pairs": pairs, "reduction": reduction} for pairs in ("all", "cross") for reduction in ("active", "mean", "sum")
]


def loss_of(name: str) -> nn.Module:
    return build(checked(composed(f"loss={name}", "model.embedding_dim=6")[0]).loss).double()


def inputs(loss: nn.Module, z0: Tensor, z1: Tensor) -> tuple[Tensor, ...]:
    """What the loss is called with: the embeddings, and others in place of a target network's, if it needs them."""
    told = as_objective(loss).target_momentum is not None
    return (z0, z1, (z1 + 0.3).detach().cos(), (z0 + 0.3).detach().cos()) if told else (z0, z1)


def embeddings(batch: int, scale: float = 0.1, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    z = scale * torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return z[0].requires_grad_(), z[1].requires_grad_()


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("name", LOSSES)
def test_any_batch_size_is_finite_or_refused_in_words(name: str, batch: int) -> None:
    z0, z1 = embeddings(batch)
    objective = loss_of(name)
    try:
        loss = objective(*inputs(objective, z0, z1))
    except ConfigError as refusal:
        assert batch < as_objective(objective).smallest_batch and "at least 2" in str(refusal)
        return
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert torch.isfinite(z0.grad).all() and torch.isfinite(z1.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_images_does_not_matter(name: str) -> None:
    z0, z1 = embeddings(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    loss = loss_of(name)
    torch.testing.assert_close(loss(*inputs(loss, z0, z1)), loss(*inputs(loss, z0[order], z1[order])))


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("hinge", "clapp")])
def test_views_may_be_swapped(name: str) -> None:
    z0, z1 = embeddings(6, scale=0.5)
    loss = loss_of(name)
    torch.testing.assert_close(loss(*inputs(loss, z0, z1)), loss(*inputs(loss, z1, z0)))


def broadcast_hinge(
    z0: Tensor, z1: Tensor, pairs: str, reduction: str, margins: tuple[float, float], window: float = 0.0
) -> Tensor:
    """The formulas as one would write them down, N^2 D memory and all."""
    batch = len(z0)
    anchors, others = (z0, z1) if pairs == "cross" else (torch.cat([z0, z1]),) * 2
    positives = torch.relu((z0 - z1).abs().sum(1) - margins[0])
    distances = (anchors[:, None] - others[None]).abs().sum(-1)
    negatives = torch.relu(margins[1] - distances) * (distances >= window)
    other = torch.arange(len(anchors))[:, None] % batch != torch.arange(len(others))[None] % batch
    negatives = negatives * other
    if reduction == "sum":
        return positives.sum() * (len(anchors) // batch) + negatives.sum()
    if reduction == "mean":
        return positives.mean() + negatives.sum() / other.sum()
    return positives.mean() + (negatives.sum(1) / (negatives > 0).sum(1).clamp(min=1)).mean()


def broadcast_relative(z0: Tensor, z1: Tensor, pos_share: float, neg_share: float, window_share: float) -> Tensor:
    """The hinge whose margins are shares of the mean distance between images."""
    z = torch.cat([z0, z1]).detach()
    index = torch.arange(len(z)) % len(z0)
    s = float((z[:, None] - z[None]).abs().sum(-1)[index[:, None] != index[None]].mean())
    return broadcast_hinge(z0, z1, "all", "active", (pos_share * s, neg_share * s), window_share * s)


def broadcast_triplet(z0: Tensor, z1: Tensor, margin: float) -> Tensor:
    z = torch.cat([z0, z1])
    batch = len(z0)
    distances = (z[:, None] - z[None]).abs().sum(-1)
    index = torch.arange(len(z))
    near = distances[index, (index + batch) % len(z)]
    triplets = torch.relu(near[:, None] - distances + margin)[index[:, None] % batch != index[None] % batch]
    return triplets.sum() / max(1, (triplets > 0).sum())


def mlp(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Linear, batch norm over the batch (biased variance), ReLU, linear."""
    first, norm, _, last = layers
    x = x @ array(first.weight).T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.eps) * array(norm.weight) + array(norm.bias)
    return np.maximum(x, 0) @ array(last.weight).T + array(last.bias)


def array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()


def test_byol_is_its_formula_and_its_targets_are_constants() -> None:
    """Grill et al. 2020, Eq. 2: || q / ||q|| - z' / ||z'|| ||^2, both ways round."""
    (z0, z1), loss = embeddings(7, 1.0), loss_of("byol")
    target0, target1 = (z.detach().cos().requires_grad_() for z in (z0, z1))
    value = loss(z0, z1, target0, target1)
    expected = 0.0
    for z, target in ((z0, target1), (z1, target0)):
        q, t = mlp(loss.predict.layers, array(z)), array(target)
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, t)]
        expected += ((unit[0] - unit[1]) ** 2).sum(1).mean()
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    assert target0.grad is None and target1.grad is None and z0.grad.abs().sum() > 0


def test_simsiam_is_its_formula_and_holds_the_other_view_still() -> None:
    """Chen and He 2021, Eq. 4."""
    (z0, z1), loss = embeddings(7, 1.0), loss_of("simsiam")
    value = loss(z0, z1)
    q0, q1 = (mlp(loss.predict.layers, array(z)) for z in (z0, z1))
    assert value.item() == pytest.approx(-(cosine(q0, array(z1)) + cosine(q1, array(z0))) / 2, rel=1e-9)
    value.backward()
    y0, y1 = embeddings(7, 1.0)
    first = loss.negative_cosine(loss.predict(y0), y1.detach()) / 2  # the term in which view 0 is predicted from
    torch.testing.assert_close(z0.grad, torch.autograd.grad(first, y0)[0])


def test_relative_margins_pull_where_fixed_ones_do_not_yet() -> None:
    """At the start every distance is inside both margins of the hinge, which then only pushes."""
    z0, z1 = (z.detach() for z in embeddings(8, 0.05))
    assert (z0 - z1).abs().sum(1).max() < 1
    assert not ContrastiveHinge(neg_margin=0).error_signal(z0, z1)[0].any()
    pull = RelativeHinge(0.5, neg_share=0).error_signal(z0, z1)[0]
    assert ((pull * (z0 - z1).sign()).sum(1) > 0).sum() > 4


def test_predictors_refuse_embeddings_of_another_size() -> None:
    z = torch.rand(3, 5, dtype=torch.float64)
    for name in ("byol", "simsiam"):
        loss = loss_of(name)
        with pytest.raises(ConfigError, match="embedding_dim=6, but embeddings have 5 numbers"):
            loss(*inputs(loss, z, z))


CLOSED_FORMS = [
    *((ContrastiveHinge(**f), lambda a, b, f=f: broadcast_hinge(a, b, **f, margins=(1, 3))) for f in FORMS),
    *(
        (ContrastiveHinge(**f, window=1.5), lambda a, b, f=f: broadcast_hinge(a, b, **f, margins=(1, 3), window=1.5))
        for f in FORMS
    ),
    (RelativeHinge(0.5, 1.2, 0.8, 99, 99), lambda a, b: broadcast_relative(a, b, 0.5, 1.2, 0.8)),
    (L1Margin(2.0), lambda a, b: broadcast_triplet(a, b, 2.0)),
    (L1Margin(2.0, form="pairs"), lambda a, b: broadcast_hinge(a, b, "all", "active", (0, 2.0))),
    (
        L1Margin(2.0, normalize=True),
        lambda a, b: broadcast_triplet(torch.nn.functional.normalize(a), torch.nn.functional.normalize(b), 2.0),
    ),
    (PositiveOnly(), lambda a, b: (a - b).abs().sum(1).mean()),
]


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("loss,reference", CLOSED_FORMS)
def test_error_signal_equals_autograd_of_the_formula(loss: nn.Module, reference: Callable, scale: float) -> None:
    z0, z1 = embeddings(7, scale)
    y0, y1 = embeddings(7, scale)
    value, expected = loss(z0, z1), reference(y0, y1)
    torch.testing.assert_close(value, expected)
    (3 * value).backward()
    (3 * expected).backward()
    torch.testing.assert_close(z0.grad, y0.grad)
    torch.testing.assert_close(z1.grad, y1.grad)
    if not getattr(loss, "normalize", False):
        torch.testing.assert_close(torch.stack(loss.error_signal(z0, z1)) * 3, torch.stack([y0.grad, y1.grad]))


@pytest.mark.parametrize("loss", [ContrastiveHinge(), ContrastiveHinge(pairs="cross"), L1Margin()])
def test_blocks_do_not_change_the_result(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    z0, z1 = embeddings(9, 0.4)
    whole = loss.value_and_error(z0, z1)
    monkeypatch.setattr(l1, "BLOCK", 40)  # two rows a block
    monkeypatch.setattr(l1, "SIDE", 4)
    for a, b in zip(whole, loss.value_and_error(z0, z1), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", [ContrastiveHinge(), ContrastiveHinge(pairs="cross"), L1Margin(2.0)])
def test_active_pairs_may_be_gathered_one_by_one(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    z0, z1 = embeddings(9, 0.6)
    found = []
    for sparsity in (0, 10**6):  # always, never
        monkeypatch.setattr(l1, "SPARSITY", sparsity)
        found.append(loss.value_and_error(z0.detach(), z1.detach()))
    assert found[0][1].abs().sum() > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_ties_have_no_sign() -> None:
    z = torch.zeros(3, 4)
    for loss in (ContrastiveHinge(), L1Margin(), PositiveOnly()):
        assert all((e == 0).all() for e in loss.error_signal(z, z))


def test_evaluation_needs_no_error_signal() -> None:
    z0, z1 = embeddings(4)
    with torch.no_grad():
        value = ContrastiveHinge()(z0, z1)
    assert not value.requires_grad
    torch.testing.assert_close(value, ContrastiveHinge()(z0, z1).detach())


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
    assert (z0.grad == 0).all()
    assert z1.grad.abs().sum() > 0


def test_multiclass_hinge_teaches_each_unit_by_itself_and_its_label() -> None:
    logits = torch.tensor([[0.5, -2.0, 0.3], [2.0, 0.0, -0.5]], requires_grad=True)
    loss = MulticlassHinge()(logits, torch.tensor([0, 1]))
    # image 0: right 1 - 0.5; wrong (0 + 1.3)/2. image 1: right 1 - 0; wrong (3 + 0.5)/2
    torch.testing.assert_close(loss, torch.tensor((0.5 + 0.65 + 1.0 + 1.75) / 2))
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0, 0.25], [0.25, -0.5, 0.25]]))


def test_few_negatives_need_the_papers_form() -> None:
    with pytest.raises(ValueError, match="pairs=cross reduction=sum"):
        ContrastiveHinge(diagonals=5)


def test_a_librarys_loss_gets_its_declarations() -> None:
    contrastive, supervised = as_objective(NTXentLoss()), as_objective(nn.CrossEntropyLoss())
    assert (contrastive.supervised, contrastive.smallest_batch) == (False, 2)
    assert (supervised.supervised, supervised.smallest_batch) == (True, 1)
    assert not contrastive.state_dict(), "checkpoints hold what they held without the adapter"
    z0, z1 = embeddings(5)
    torch.testing.assert_close(contrastive(z0, z1), NTXentLoss()(z0, z1))
    ours = ContrastiveHinge()
    assert as_objective(ours) is ours


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lpl"])
def test_more_than_two_views_are_compared_in_pairs_with_a_large_crop(name: str) -> None:
    """Every objective of two views; of the target network's embeddings each goes with its own view."""
    torch.manual_seed(0)
    loss = as_objective(build(checked(composed(f"loss={name}", "model.embedding_dim=5")[0]).loss))
    views = list(torch.randn(4, 6, 5))
    targets = list(torch.randn(4, 6, 5)) if loss.target_momentum else []
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    each = [loss(views[a], views[b], *([targets[a], targets[b]] if targets else [])) for a, b in pairs]
    torch.testing.assert_close(over_pairs(loss, views, targets), sum(each) / 5)
    assert torch.equal(over_pairs(loss, views[:2], targets[:2]), each[0])
