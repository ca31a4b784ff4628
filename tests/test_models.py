"""Stages, their feedback, and networks."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, composed, option, options
from torch import nn
from torch.nn import functional as F

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models import ConvFeedback, FeedbackMap, Stage, conv_net, conv_stage, features_of
from dtp_lightning.models.convolution import FEW_PIXELS, TransposedConv, weight_gradient
from dtp_lightning.models.feedback_maps import unpool


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 6), (2, 3), (5, 28)])
@pytest.mark.parametrize("kernel_size,pool,stride", [(3, 2, 1), (5, 2, 1), (3, 1, 1), (3, 3, 1), (5, 4, 1), (3, 1, 2)])
@pytest.mark.parametrize("kind", [{}, {"feedback": "unpool"}, {"feedback": "unpool", "pooling": "average"}], ids=str)
def test_feedback_restores_the_input_size(
    size: tuple[int, int], kernel_size: int, pool: int, stride: int, kind: dict
) -> None:
    if min(size) < pool:
        pytest.skip("nothing is left after pooling")
    stage = conv_stage(2, 3, kernel_size=kernel_size, pool=pool, stride=stride, **kind)
    x = torch.rand(2, 2, *size)
    y, pool_indices, _ = stage.run(x)
    back = stage.feedback(y, x, pool_indices)
    assert back.shape == x.shape
    assert y.shape[-2:] == tuple(-(-n // stride) // pool for n in size)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("size", [8, 7])
def test_unpooling_feedback_can_be_the_exact_transpose(pooling: str, size: int) -> None:
    """With f's own kernel, g without its activation is J_f^T: what no strided transposed convolution can be."""
    stage = conv_stage(
        2, 3, pooling=pooling, feedback="unpool", activation="Identity", activation_below="Identity", bias=False
    )
    stage.feedback_map.weight.data = stage.forward_map[0].weight.data
    x = torch.randn(2, 2, size, size, requires_grad=True)
    y, pool_indices, _ = stage.run(x)
    u = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, u)
    torch.testing.assert_close(stage.feedback(u, x, pool_indices), expected)


@pytest.mark.parametrize("size", [6, 7])
def test_every_input_pixel_is_reached_by_feedback(size: int) -> None:
    stage = conv_stage(1, 1)
    with torch.no_grad():
        stage.feedback_map.weight.fill_(1)
        stage.feedback_map.bias.fill_(0)
        back = stage.feedback(torch.ones(1, 1, size // 2, size // 2), like=torch.zeros(1, 1, size, size))
    assert (back > 0).all()


@pytest.mark.parametrize("kernel_size,pool", [(4, 2), (1, 2)])
def test_kernels_that_cannot_be_undone_are_refused(kernel_size: int, pool: int) -> None:
    with pytest.raises(ValueError, match="must be odd and at least"):
        conv_stage(1, 1, kernel_size=kernel_size, pool=pool)


def test_first_stage_has_no_feedback() -> None:
    network = conv_net(TINY)
    assert [bool(s.feedback_parameters()) for s in network.stages] == [False, True, True, True]
    with pytest.raises(RuntimeError, match="feedback=True"):
        network.stages[0].feedback(torch.zeros(1, 32, 8, 8), like=torch.zeros(1, 3, 16, 16))


def test_thesis_network_has_the_published_size() -> None:
    network = conv_net(ImageSpec(3, 32, 32, True))
    feedback = sum(p.numel() for s in network.stages for p in s.feedback_parameters())
    assert feedback == 387_296
    assert sum(p.numel() for p in network.parameters()) - feedback == 454_016


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_weights_of_a_seed_are_the_same_under_any_feedback(pooling: str, bias: bool) -> None:
    states = []
    for feedback in ("strided", "unpool", "transposable"):
        torch.manual_seed(0)
        network = conv_net(TINY, pooling=pooling, bias=bias, feedback=feedback)
        states.append({k: v for k, v in network.state_dict().items() if "feedback_map" not in k})
    for state in states[1:]:
        assert state.keys() == states[0].keys() and all(torch.equal(v, states[0][k]) for k, v in state.items())


def test_a_rule_names_its_feedback_map_and_the_model_has_the_last_word() -> None:
    feedback = {
        words: checked(composed(*words)[0]).model["feedback"]
        for words in [
            ("learner=dtp",), ("learner=bp",), ("learner=dtp_thesis",), ("learner=sdtp",),
            ("learner=dtp_thesis", "model=cnn4_unpool"), ("learner=dtp", "model.feedback=strided"),
        ]
    }  # fmt: skip
    assert list(feedback.values()) == ["transposable", "transposable", "strided", "strided", "unpool", "strided"]
    assert "feedback_map" not in checked(composed("learner=dtp_thesis")[0]).learner
    with pytest.raises(ConfigError, match=r"learner\.feedback_map=linear: must be one of strided, unpool"):
        checked(composed("learner=dtp_thesis", "learner.feedback_map=linear")[0])


@pytest.mark.parametrize("name", options("model"))
@pytest.mark.parametrize("images", [ImageSpec(1, 32, 32, False), ImageSpec(3, 33, 47, True)], ids=str)
def test_models_fit_the_data(name: str, images: ImageSpec) -> None:
    if name == "timm":
        pytest.importorskip("timm", reason="model=timm needs timm")
    network = build(option("model", name), images=images)
    batch = torch.rand(3, images.channels, images.height, images.width)
    assert network(batch).shape == (3, 64)
    assert network.features(batch).ndim == 2


def test_normalisation_is_the_networks() -> None:
    images = torch.rand(2, 3, 16, 16)
    network = conv_net(ImageSpec(3, 16, 16, True, mean=0.5, std=0.5))
    torch.testing.assert_close(network.normalise(images), images * 2 - 1)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 x 16 is needed"):
        conv_net(ImageSpec(1, 8, 8, False))


def test_features_do_not_depend_on_the_batch() -> None:
    network = conv_net(TINY, channels=[4, 6])
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    features = features_of(network, images, batch_size=3)
    torch.testing.assert_close(features, features_of(network, images))
    assert not features.requires_grad


def test_transposed_convolution_has_torchs_gradients() -> None:
    u = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    feedback = ConvFeedback(4, 2, 3, 2, activation="Identity").double()
    inputs = (u, feedback.weight, feedback.bias)
    for height, width in ((10, 12), (9, 11), (10, 11)):
        crops = list(feedback._crops(u, (height, width)))
        options = ((2, 2), [p for p, _ in crops], [e for _, e in crops])
        ours, theirs = TransposedConv.apply(*inputs, *options), F.conv_transpose2d(*inputs, *options)
        assert ours.shape[-2:] == (height, width)
        torch.testing.assert_close(ours, theirs)
        probe = torch.randn_like(ours)
        for a, b in zip(*(torch.autograd.grad(y, inputs, probe) for y in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(lambda *x: TransposedConv.apply(*x, *options), inputs)


@pytest.mark.parametrize("size,stride", [((4, 4), 1), ((3, 4), 2), ((2, 2), 2), ((1, 1), 2), ((5, 5), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_is_torchs(size: tuple[int, int], stride: int, dtype: torch.dtype) -> None:
    """Whichever way it is computed: small outputs in bfloat16 have one of their own."""
    x = torch.randn(6, 8, *(stride * n for n in size)).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 8, 3, 3, dtype=dtype)
    at_y = torch.randn(6, 4, *size).to(dtype)
    ours = weight_gradient(x, at_y, weight, (stride, stride), (1, 1)).double()
    theirs = torch.nn.grad.conv2d_weight(x.double(), weight.shape, at_y.double(), stride=stride, padding=1)
    assert (ours - theirs).norm() < (1e-6 if dtype == torch.float32 else 6e-3) * theirs.norm()
    assert (size[0] * size[1] > FEW_PIXELS) == (size == (5, 5))


@pytest.mark.parametrize("kind", [{}, {"feedback": "unpool"}, {"feedback": "unpool", "pooling": "average"}], ids=str)
@pytest.mark.parametrize("activation", ["Tanh", "Softmax2d"])
def test_derivative_of_feedback_is_torchs(kind: dict, activation: str) -> None:
    stage = conv_stage(2, 3, activation_below=activation, **kind).double()
    x = torch.rand(4, 2, 7, 8, dtype=torch.float64)
    y, pool_indices, _ = stage.run(x)
    along = torch.randn_like(y)
    with torch.no_grad():
        expected = torch.func.jvp(lambda u: stage.feedback(u, x, pool_indices), (y.detach(),), (along,))[1]
        torch.testing.assert_close(stage.feedback_jvp(y.detach(), along, x, pool_indices), expected)


def test_unpooling_is_torchs() -> None:
    y, pool_indices = F.max_pool2d(torch.randn(2, 3, 7, 8), 2, return_indices=True)
    torch.testing.assert_close(
        unpool(y, pool_indices, 2, (7, 8)), F.max_unpool2d(y, pool_indices, [2, 2], output_size=(7, 8)), rtol=0, atol=0
    )


def test_bias_behind_the_pool_is_the_bias_before_it() -> None:
    """To the last bit, gradients but for the order of a sum."""
    stage = conv_stage(3, 8)
    conv, pool, bias, activation = stage.layers()
    plain = nn.Conv2d(3, 8, 3, padding=1)
    plain.load_state_dict({"weight": conv.weight, "bias": bias.bias})
    x = torch.randn(5, 3, 9, 9)
    ours, theirs = stage(x), activation(pool(plain(x)))
    assert torch.equal(ours, theirs)
    probe = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, [conv.weight, bias.bias], probe),
        torch.autograd.grad(theirs, [plain.weight, plain.bias], probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"feedback": "unpool"}, {"pool": 1}, {"bias": False}, {"pooling": "average"}])
def test_noise_that_images_share_costs_one_convolution(options: dict) -> None:
    stage = conv_stage(3, 4, **options).double()
    x, e = torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    beside = stage.run_perturbed(stage.run(x).preactivation, e)
    exact = stage.run(x + e[[0, 1, 2, 0, 1, 2, 0]])
    torch.testing.assert_close(beside.y, exact.y)
    assert (beside.pool_indices is None) == (exact.pool_indices is None)
    if exact.pool_indices is not None:
        assert torch.equal(beside.pool_indices, exact.pool_indices)


def test_a_feedback_map_has_a_derivative_without_writing_one() -> None:
    class Cubed(FeedbackMap):
        def forward(self, u: torch.Tensor, size: tuple[int, int], pool_indices: torch.Tensor | None = None):
            return u**3

    u, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    stage = Stage(nn.Identity(), Cubed())
    torch.testing.assert_close(stage.feedback_jvp(u, v, u), 3 * u**2 * v)
