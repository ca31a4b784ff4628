"""Probes on frozen features."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from conftest import TINY, composed, options
from torch import nn

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data import ImageData, Split
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.evaluation import (
    Distances,
    Evaluation,
    FeatureSplit,
    FewLabels,
    FrozenEncoder,
    Layerwise,
    LinearProbe,
    NearestNeighbours,
    Result,
    ThesisLinearProbe,
    Transfer,
    linear,
)
from dtp_lightning.evaluation.encoders import evaluate_encoders
from dtp_lightning.evaluation.layerwise import TruncatedNetwork
from dtp_lightning.evaluation.linear import fit_probe
from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.models import conv_net, freeze

EVALUATIONS = options("evaluation")


def blobs(n: int, seed: int, spread: float = 0.5, dim: int = 5) -> FeatureSplit:
    """Three Gaussian classes around fixed centres, n points each."""
    centres = 2 * torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3 * n, dim, generator=torch.Generator().manual_seed(seed))
    return FeatureSplit(centres.repeat_interleave(n, 0) + spread * noise, torch.arange(3).repeat_interleave(n))


class Features(FrozenEncoder):
    """Given features instead of a network's."""

    def __init__(self, train: FeatureSplit, val: FeatureSplit, test: FeatureSplit | None) -> None:
        self.__dict__ |= {"train": train, "val": val, "seed": 0}
        if test is not None:
            self.__dict__["test"] = test


@pytest.mark.parametrize(
    "evaluate", [LinearProbe(), NearestNeighbours(), FewLabels(per_class=[5, 20], draws=2), ThesisLinearProbe(lr=0.1)]
)
def test_separable_classes_are_told_apart(evaluate) -> None:
    metrics = evaluate(Features(blobs(30, 1), blobs(10, 2), blobs(20, 3))).metrics
    accuracies = [value for name, value in metrics.items() if name.endswith(("test_acc", "val_acc"))]
    assert len(accuracies) in (2, 4) and min(accuracies) > 0.95


@pytest.mark.parametrize("evaluate", [LinearProbe(), NearestNeighbours()])
def test_unrelated_labels_stay_at_chance(evaluate) -> None:
    train, val, test = blobs(100, 1, spread=50), blobs(100, 2, spread=50), blobs(100, 3, spread=50)
    assert evaluate(Features(train, val, test)).metrics["test_acc"] < 0.45


def test_strength_is_chosen_on_validation_not_on_test() -> None:
    train, val = blobs(8, 1, spread=3), blobs(200, 2, spread=3)
    grid = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    alone = [fit_probe(train, val, [c], 5000).val_acc for c in grid]
    first_fall = next((i for i in range(1, 5) if alone[i] < max(alone[:i])), 5)
    assert fit_probe(train, val, grid, 5000).val_acc == pytest.approx(max(alone[:first_fall]), abs=0.005)
    chosen = [LinearProbe(grid)(Features(train, val, blobs(20, s, spread=3))).metrics["C"] for s in (3, 4, 5)]
    assert len(set(chosen)) == 1, "the test split has no say"


def test_search_ends_when_validation_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    scores = iter([0.5, 0.7, 0.7, 0.6, 0.9])

    def scripted(predicted: torch.Tensor, labels: torch.Tensor) -> float:
        tried.append(1)
        return next(scores)

    monkeypatch.setattr(linear, "accuracy", scripted)
    probe = fit_probe(blobs(5, 1), blobs(5, 2), [1e-4, 1e-3, 1e-2, 1e-1, 1.0], 2000)
    assert len(tried) == 4
    assert probe.strength == 1e-3, "a tie goes to the stronger penalty"


def test_probe_converges_or_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit_probe(blobs(30, 1), blobs(10, 2), [1.0], max_iter=1)
    assert "did not converge in 1 iterations" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fit_probe(blobs(30, 1), blobs(10, 2), [1e-3, 1.0], max_iter=2000)
    assert not caplog.text


def test_thesis_probe_reports_the_last_and_the_best_epoch() -> None:
    splits = Features(blobs(20, 1, spread=3), blobs(200, 2, spread=3), blobs(50, 3, spread=3))
    metrics = ThesisLinearProbe(epochs=60, lr=0.3)(splits).metrics
    assert metrics["best_val/val_acc"] >= metrics["val_acc"]
    one = ThesisLinearProbe(epochs=1)(splits).metrics
    assert one["best_val/test_acc"] == one["test_acc"]
    assert ThesisLinearProbe(epochs=5)(splits).metrics == ThesisLinearProbe(epochs=5)(splits).metrics


def test_probe_equals_a_cold_start() -> None:
    """Starting each fit from the weaker one's weights changes speed, not the result."""
    train, val = blobs(30, 1, spread=3), blobs(30, 2, spread=3)
    warm = fit_probe(train, val, [1e-3, 1e-2, 1e-1], 5000)
    cold = fit_probe(train, val, [warm.strength], 5000)
    assert abs(warm.classifier.coef_ - cold.classifier.coef_).max() < 1e-2


def test_in_the_span_of_few_images_the_probe_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    parts = [FeatureSplit(torch.randn(30, 400, generator=generator) + 0.3 * y[:, None], y) for _ in range(2)]
    others = torch.randn(500, 400, generator=generator)
    wide = fit_probe(*parts, [1e-3], 2000)
    assert wide.standardise.basis is None
    monkeypatch.setattr(linear, "WIDE", 100)
    narrow = fit_probe(*parts, [1e-3], 2000)
    assert narrow.standardise.basis.shape == (400, 30) and narrow.classifier.coef_.shape == (3, 30)
    weights = torch.from_numpy(narrow.classifier.coef_) @ narrow.standardise.basis.T
    torch.testing.assert_close(weights, torch.from_numpy(wide.classifier.coef_), rtol=1e-2, atol=1e-4)
    assert torch.equal(narrow.predict(others), wide.predict(others))


def test_constant_features_do_no_harm() -> None:
    splits = [FeatureSplit(torch.cat([s.x, torch.ones(len(s.x), 1)], 1), s.y) for s in (blobs(30, 1), blobs(10, 2))]
    assert fit_probe(*splits, [1.0], 2000).val_acc > 0.95


def test_k_may_exceed_the_bank() -> None:
    metrics = NearestNeighbours(k=500)(Features(blobs(3, 1), blobs(3, 2), blobs(3, 3))).metrics
    assert metrics["test_acc"] > 0.9


def test_too_few_labels_are_explained(caplog: pytest.LogCaptureFixture) -> None:
    splits = Features(blobs(4, 1), blobs(3, 2), blobs(3, 3))
    with pytest.raises(DataError, match=r"smallest class has 4 images.*lower evaluation\.few_labels"):
        FewLabels(per_class=[10])(splits)
    with caplog.at_level(logging.WARNING):
        metrics = FewLabels()(splits).metrics
    assert {name.split("/")[0] for name in metrics} == {"1"}, "the others are left out"
    assert "[10, 100]: left out" in caplog.text


@pytest.fixture
def noise_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(n) % 2)

    return ImageData(split(40), split(20), split(20), ("a", "b"), True)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_runs_on_a_real_encoder(name: str, noise_data: ImageData) -> None:
    transfer = [f"+dataset@evaluation.{name}.to.mnist5k=mnist5k"] if name.startswith("transfer") else []
    if name == "transfer_thesis":
        transfer = ["+dataset@evaluation.transfer.to.mnist5k=mnist5k", "evaluation.transfer.probe.epochs=2"]
    values = checked(composed(f"evaluation={name}", *transfer)[0])
    (node,) = values.evaluation.values()
    evaluate = build(node, augment=build(values.augment, images=noise_data.spec))
    result = evaluate(FrozenEncoder(freeze(conv_net(TINY, channels=[4, 6])), noise_data))
    accuracies = [value for key, value in result.metrics.items() if key.endswith("_acc")]
    assert accuracies or result.histograms
    assert all(0 <= value <= 1 for value in accuracies)
    assert all(isinstance(value, float) for value in result.metrics.values())


def test_distances_of_known_embeddings() -> None:
    """Two images at 0 and at (4, 0): views 0.5 apart, images 4 apart give or take."""
    z0 = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    z1 = torch.tensor([[0.5, 0.0], [4.0, 1.5]])
    metrics = Distances(nn.Identity()).compute(torch.stack([z0, z1])).metrics
    assert metrics["l1/positive_mean"] == pytest.approx(1.0)
    assert metrics["l1/negative_mean"] == pytest.approx((4 + 5.5 + 3.5 + 5.0) / 4)
    assert metrics["l1/positive_beyond_margin"] == 0.5
    assert metrics["l1/negative_within_margin"] == 0
    assert metrics["l1/auc"] == 1


def test_distances_at_chance_and_collapsed() -> None:
    noise = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0))
    metrics = Distances(nn.Identity()).compute(noise).metrics
    assert abs(metrics["l1/auc"] - 0.5) < 0.06 and abs(metrics["cosine/auc"] - 0.5) < 0.06
    collapsed = Distances(nn.Identity()).compute(torch.ones(2, 5, 3)).metrics
    assert collapsed["alignment"] == pytest.approx(0, abs=1e-6)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-5)


def test_distances_see_the_same_views_whatever_came_before(noise_data: ImageData) -> None:
    augment = build(checked(composed()[0]).augment, images=noise_data.spec)
    network = freeze(conv_net(TINY, channels=[4, 6]))
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(Distances(augment)(FrozenEncoder(network, noise_data)).metrics)
        assert torch.equal(before, torch.get_rng_state()), "and leave the run's own draws alone"
    assert results[0] == results[1]


def test_layerwise_reads_every_stage_at_a_comparable_size(noise_data: ImageData) -> None:
    network = freeze(conv_net(TINY, channels=[4, 6]))
    images = noise_data.train.images.float() / 255
    early, late = TruncatedNetwork(network, 1, max_features=36), TruncatedNetwork(network, 2, max_features=1000)
    assert early.features(images).shape == (len(images), 4 * 3 * 3), "8 x 8 pixels averaged over 3 x 3 cells"
    torch.testing.assert_close(late.features(images), network.features(images))

    def probe(encoder: FrozenEncoder) -> Result:
        return Result({"val_acc": 0.5, "test_acc": float(encoder.train.x.shape[0])})

    metrics = Layerwise(probe, train_images=5)(FrozenEncoder(network, noise_data)).metrics
    assert metrics == {f"stage{i}/{k}": v for i in (1, 2) for k, v in (("val_acc", 0.5), ("test_acc", 5.0))}


def test_transfer_brings_other_images_to_the_encoder(noise_data: ImageData) -> None:
    network = freeze(conv_net(TINY, channels=[4, 6]))
    grey = Split(torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8), torch.arange(9) % 3)
    other = ImageData(grey, grey, grey, tuple("abc"), mirror_safe=False)
    seen = {}

    class Probe(Evaluation):
        def __call__(self, encoder: FrozenEncoder) -> Result:
            seen["shape"] = encoder.data.train.images[:].shape
            return Result({"test_acc": 0.25, "features": float(encoder.test.x.shape[1])})

    metrics = Transfer(Probe(), {"grey": other})(FrozenEncoder(network, noise_data)).metrics
    assert seen["shape"] == (9, 3, 16, 16)
    assert metrics == {"grey/test_acc": 0.25, "grey/features": 6 * 4 * 4}
    with pytest.raises(ConfigError, match="to which data set"):
        Transfer(Probe(), {})


class Counted(Evaluation):
    """Says how often it was asked, beside what the network answers."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, encoder: FrozenEncoder) -> Result:
        self.asked += 1
        return Result({"asked": self.asked, "mean": float(encoder.test.x.mean())})


def test_the_jobs_of_a_sweep_measure_an_untrained_encoder_once(noise_data: ImageData, tmp_path: Path) -> None:
    evaluate = Counted()
    untrained = [conv_net(TINY, channels=[4, 6]) for _ in range(2)]

    def found(network: int, measured_by: str) -> dict:
        trained = conv_net(TINY, channels=[4, 6])
        told, cpu = {"it": measured_by}, torch.device("cpu")
        seen = Predictions(noise_data.test.images, noise_data.test.labels, noise_data.classes)
        return evaluate_encoders(
            {"it": evaluate}, trained, untrained[network], noise_data, 0, cpu, tmp_path, seen, told
        )

    first = found(0, "seed 0")
    again = found(0, "seed 0")
    assert evaluate.asked == 3, "the trained ones, and the untrained one once"
    assert again["it/asked"] == 3 and again["random_encoder/it/asked"] == 2
    assert first["random_encoder/it/mean"] == again["random_encoder/it/mean"] != again["it/mean"]
    assert found(0, "seed 1")["random_encoder/it/asked"] == 5, "other random numbers"
    assert found(1, "seed 0")["random_encoder/it/asked"] == 7, "other weights"
