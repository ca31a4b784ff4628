"""Networks: published sizes, torchvision's and timm's cut at their blocks, norms, projectors, exports, refusals."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import TINY, composed, learner_of, option, sgd
from torch import Tensor, nn

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.export.encoder import BUILDERS, Architecture, Encoder, Input
from dtp_lightning.learners import FeedbackAlignment, KolenPollackFeedback, TargetPropagation
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import BlockTranspose, Network, Stage, features_of, freeze, library_net, resnet
from dtp_lightning.runs.checkpoint import Checkpoint

NORMS = ["none", "batch", "group", "layer"]


def test_features_of_an_image_depend_on_no_other() -> None:
    network = resnet(TINY, channels=[4, 6], blocks=[1, 1])
    network(torch.rand(8, 3, 16, 16))
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    before = copy.deepcopy(network.state_dict())
    features = features_of(network, images, batch_size=3)
    torch.testing.assert_close(features, features_of(network, images))
    assert features.shape == (7, 6) and network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("feedback", ["strided", "unpool", "transposable"])
def test_norms_stand_before_pooling_in_a_stage_of_any_feedback(norm: str, feedback: str, views: Tensor) -> None:
    learner = learner_of("learner=dtp_autoencoder", f"model.norm={norm}", f"model.feedback={feedback}")
    kinds = [type(layer).__name__ for layer in learner.model.stages[1].layers()]
    expected = {"none": [], "batch": ["BatchNorm2d"]}.get(norm, ["GroupNorm"])
    assert kinds[1 : kinds.index("MaxPool2d")] == expected
    assert all(torch.isfinite(value) for value in learner.step(views).values())


@pytest.mark.parametrize("name,convolutions,stages", [("resnet18", 20, 9), ("resnet20", 21, 10), ("vgg11", 8, 8)])
def test_published_networks_have_their_size(name: str, convolutions: int, stages: int) -> None:
    network = build(option("model", name), images=ImageSpec(3, 32, 32, True))
    assert len(network.stages) == stages
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    sizes = {"resnet18": 11_168_832, "resnet20": 269_722 - 650 + 2_752, "vgg11": 9_225_984 - 2_752}
    backbone = sum(p.numel() for stage in network.stages for p in stage.forward_parameters())
    assert backbone == sizes[name]


def test_resnet18_is_torchvisions() -> None:
    """Of the same modules in the same order: with its weights it gives its features."""
    ours = resnet(ImageSpec(3, 64, 64, True), channels=[4, 6, 8, 8], stem="imagenet")
    from torchvision.models.resnet import BasicBlock, ResNet

    theirs = ResNet(BasicBlock, [2, 2, 2, 2])
    theirs.fc = nn.Identity()
    ours = resnet(ImageSpec(3, 64, 64, True), stem="imagenet")
    renamed = dict(zip(stage_state(ours), theirs.state_dict().values(), strict=True))
    ours.load_state_dict({**ours.state_dict(), **renamed})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().features(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def stage_state(network: Network) -> list[str]:
    return [key for key in network.state_dict() if key.startswith("stages")]


RULES_WITHOUT_INVERSE = ["bp", "fa", "urf", "sign_symmetric", "kolen_pollack", "dfa", "gll", "rll"]
BACKBONES = {  # of torchvision: stages, and whether the transpose of its blocks is known
    "resnet18": (9, True),
    "mobilenet_v2": (19, True),
    "densenet121": (8, False),
    "shufflenet_v2_x0_5": (18, False),
    "regnet_y_400mf": (17, False),
    "efficientnet_b0": (18, False),
    "convnext_tiny": (22, False),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_torchvisions_networks_are_cut_at_their_blocks(name: str) -> None:
    network = library_net(ImageSpec(1, 32, 32, False), library="torchvision", name=name)
    stages, transposable = BACKBONES[name]
    assert len(network.stages) == stages
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 64)
    if transposable:
        network.complete_feedback()
        assert all(isinstance(stage.feedback_map, BlockTranspose) for stage in network.stages[1:])
        return
    with pytest.raises(ConfigError, match=r"knows no transpose of \w+: take a rule without feedback maps"):
        network.complete_feedback()


@pytest.mark.parametrize("name", RULES_WITHOUT_INVERSE)
def test_rules_without_an_inverse_run_on_blocks_that_nobody_can_transpose(name: str) -> None:
    torch.manual_seed(0)
    network = library_net(ImageSpec(3, 32, 32, True), library="torchvision", name="shufflenet_v2_x0_5")
    learner = build(option("learner", name), model=network, loss=ContrastiveHinge())
    before = copy.deepcopy(network.state_dict())
    learner.start_epoch(1000)
    metrics = learner.step(torch.rand(2, 3, 3, 32, 32))
    assert all(torch.isfinite(value) for value in metrics.values())
    moved = {key.split(".")[1] for key, value in network.state_dict().items() if "stages" in key and ".weight" in key
             and not torch.equal(before[key], value)}  # fmt: skip
    assert len(moved) == (18 if learner.trains_all_stages else 1)


@pytest.mark.parametrize(
    "words,line",
    [
        (["model.name=resnet81"], r"model\.name=resnet81: torchvision has no network of this name; take resnet"),
        (["model.name=swin_t"], "SwinTransformer is not known as a row of blocks"),
        (["model.name=densenet121", "model.stem=own"], r"images of 16 x 16 pixels are too small"),
        (["model.name=mobilenet_v2", "model.stem=cifar"], "is for ResNets, whose stem is 7x7"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_in_one_line(words: list[str], line: str) -> None:
    values = checked(composed("model=torchvision", *words)[0])
    with pytest.raises(ConfigError, match=line) as refusal:
        build(values.model, images=TINY)
    assert "\n" not in str(refusal.value)


def test_rules_refuse_what_they_cannot_serve_in_one_line() -> None:
    attention = Network([Stage(nn.MultiheadAttention(4, 2))], nn.Linear(4, 4), shapes=[(4, 1, 1)])
    with pytest.raises(ConfigError, match="are known for Conv2d and Linear, and this network has MultiheadAttention"):
        FeedbackAlignment(attention, ContrastiveHinge(), sgd)
    decoder = resnet(TINY, channels=[4], blocks=[1], feedback="decoder")
    kolen_pollack = checked(composed("learner=dtp")[0]).learner
    with pytest.raises(ConfigError, match=r"model\.feedback=transposable"):
        build(kolen_pollack, model=decoder, loss=ContrastiveHinge())
    grouped = library_net(TINY, library="torchvision", name="mobilenet_v2")
    with pytest.raises(ConfigError, match="noise teaches no grouped or dilated convolution"):
        build(kolen_pollack, model=grouped, loss=ContrastiveHinge())
    learner = TargetPropagation(grouped, ContrastiveHinge(), sgd, KolenPollackFeedback())
    assert all(torch.isfinite(value) for value in learner.step(torch.rand(2, 3, 3, 16, 16)).values())


def test_timm_is_asked_for_or_cut_alike() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"model=timm needs timm: pip install 'dtp-lightning\[timm\]'"):
            build(checked(composed("model=timm")[0]).model, images=TINY)
        return
    network = build(checked(composed("model=timm", "model.name=resnet18")[0]).model, images=TINY)
    assert len(network.stages) == 9 and network.shapes[0] == (64, 16, 16)
    network.complete_feedback()
    assert all(isinstance(stage.feedback_map, BlockTranspose) for stage in network.stages[1:])


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", ["bp", "fa", "dtp", "gll", "dfa", "sdtp"])
def test_a_projector_learns_by_the_objective_alone_and_features_are_below_it(
    name: str, norm: str, views: Tensor
) -> None:
    """Under every rule that has no feedback of its own through the head, with backprop's gradient."""
    mlp_head = ["model.projector=[7,7]"]
    words = [*mlp_head, f"model.projector_norm={norm}", "model.head_activation=Identity"]
    learner, exact = (learner_of(f"learner={n}", *words) for n in (name, "bp"))
    learner.skip_first_phase()
    learner.start_epoch(1000)
    linear = [layer for layer in learner.model.head if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [7, 7, 5] and learner.model.embedding_dim == 5
    assert learner.model.features(views[0]).shape == (4, 8 * 2 * 2)
    for rule in (learner, exact):
        rule.step(views, update=lambda: None)
    if name in ("fa", "sdtp"):  # the error goes through the head as through a stage
        return
    for ours, theirs in zip(learner.model.head.parameters(), exact.model.head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_an_encoder_of_blocks_leaves_its_checkpoint_without_the_rules_feedback(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet(TINY, channels=[4, 6], blocks=[1, 1])
    weights = {**copy.deepcopy(network.state_dict())}
    network.complete_feedback()
    assert len(network.state_dict()) > len(weights)
    stored = Checkpoint(tmp_path / "last.ckpt", {}, {}, {}, [], 1, 1, network.state_dict())
    fresh = resnet(TINY, channels=[4, 6], blocks=[1, 1])
    stored.load_into(fresh)
    assert all(torch.equal(value, weights[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(DataError, match="do not fit its model"):
        stored.load_into(resnet(TINY, channels=[4, 8], blocks=[1, 1]))


@pytest.mark.parametrize("builder,arguments", [
    ("resnet", {"channels": [4, 6], "blocks": [1, 1]}), ("mlp", {"widths": [5, 4], "norm": "batch"}),
    ("library_net", {"library": "torchvision", "name": "shufflenet_v2_x0_5"}),
])  # fmt: skip
def test_networks_are_rebuilt_from_the_card_of_an_export(builder: str, arguments: dict) -> None:
    """On the meta device, as an exported encoder is, and with the trained one's keys and features."""
    spec = ImageSpec(3, 32, 32, True)
    network = freeze(BUILDERS[builder](spec, **arguments))
    architecture = Architecture(builder=builder, arguments=arguments, input=Input(**asdict(spec)))
    encoder = Encoder(architecture.build(), spec, {})
    encoder.load_state_dict({key: network.state_dict()[key] for key in encoder.state_dict()}, assign=True)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(freeze(encoder)(images), network.features(images))
