"""Pictures of what an encoder learned: what they show, and that training is the same with and without them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import learner_of
from matplotlib.figure import Figure
from PIL import Image
from runs import TINY as RUN
from runs import assert_equal, rows, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_page import write_run

from dtp_lightning.callbacks import Pictures
from dtp_lightning.callbacks.pictures import first_filters
from dtp_lightning.callbacks.projection import Map, principal_components, project
from dtp_lightning.data import ImageData, mnist5k
from dtp_lightning.data.images import ImageSpec, Split
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.figures import pictures as figures
from dtp_lightning.loggers.tables import Picture
from dtp_lightning.models import Network, conv_net, freeze
from dtp_lightning.report.page import write_page
from dtp_lightning.runs.reader import read_runs

DIGITS = ImageSpec(1, 28, 28, False)
NAMES = {"embedding_map", "filters", "neighbours"}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return mnist5k()


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return freeze(conv_net(DIGITS, channels=[4, 6], embedding_dim=5))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be saved."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        kept.append(figure)

    monkeypatch.setattr(figures, "save", keep)
    return kept


def test_training_is_the_same_and_pictures_lie_in_plots(
    run_pipeline: Callable[..., dict], no_pictures: None, tmp_path: Path
) -> None:
    run_pipeline(*RUN, folder=tmp_path / "without")
    keys = [f"callbacks.pictures.{k}" for k in ("every_n_epochs=3", "images=50", "bank=100", "queries=2")]
    with_them = [word for word in RUN if not word.startswith(("callbacks", "logger"))]
    run_pipeline(*with_them, "callbacks=[pictures]", "logger=tensorboard", *keys, folder=tmp_path / "with")
    assert_equal(weights(tmp_path / "with"), weights(tmp_path / "without"), "weights")
    assert_equal(rows(tmp_path / "with"), rows(tmp_path / "without"), "metrics.csv")
    plots = tmp_path / "with" / "plots"
    assert {path.stem for path in plots.glob("*.png")} == NAMES
    epochs = {f"{name}_epoch000{epoch}" for name in NAMES for epoch in (3, 4)}
    assert {path.stem for path in (plots / "epochs").iterdir()} == epochs, "every third, and the last"
    for name in NAMES:
        with Image.open(plots / f"{name}.png") as picture:
            assert min(picture.size) > 100
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    steps = {name: [event.step for event in events.Images(f"plots/{name}")] for name in NAMES}
    assert steps == {name: [9, 12] for name in NAMES}, "one at the third epoch's end, and the last"


def test_principal_components() -> None:
    """Rotated data of known variances, with more rows than columns and fewer."""
    torch.manual_seed(0)
    spread = torch.randn(40, 3, dtype=torch.float64) * torch.tensor([9.0, 3.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q[:3]
    centred = spread - spread.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    for x in (spread, spread @ rotation):
        points, shares = principal_components(x, 2)
        expected = (u * s)[:, :2]
        expected = expected * (expected * points).sum(0).sign()
        torch.testing.assert_close(points, expected.float(), rtol=1e-4, atol=1e-4)
        assert shares == pytest.approx((s.square() / s.square().sum())[:2].tolist())
        assert (points.gather(0, points.abs().argmax(0, keepdim=True)) > 0).all()
    assert principal_components(torch.ones(5, 4), 2)[0].abs().max() == 0, "collapsed features"


def test_tsne_keeps_neighbourhoods_and_draws_no_global_numbers() -> None:
    torch.manual_seed(0)
    clusters = torch.cat([torch.randn(20, 30) + 20 * i for i in range(2)])
    state = torch.get_rng_state()
    points, axes = project(clusters, "tsne")
    assert torch.equal(points, project(clusters, "tsne")[0]) and torch.equal(torch.get_rng_state(), state)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(nearest < 20, torch.arange(40) < 20) and axes == ("", "")


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_collapsed_features_have_a_map(kind: Map) -> None:
    """All features equal, nearly equal, and equal but for one image."""
    torch.manual_seed(0)
    equal = torch.ones(30, 8)
    for features in (equal, equal + 1e-7 * torch.randn(30, 8), torch.cat([equal, -equal[:1]])):
        points, _ = project(features, kind)
        assert points.shape == (len(features), 2) and points.isfinite().all()


def test_features_that_are_not_finite_are_told(
    data: ImageData, network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = copy.deepcopy(network)
    broken.stages[0].forward_map[0].weight.fill_(torch.nan)  # type: ignore[index]
    with caplog.at_level(logging.WARNING):
        assert Pictures(data, tmp_path, images=20, bank=20).look(broken, 3) is None
    assert "epoch 3: features are not finite, so there are no pictures" in caplog.text


def test_umap_that_is_not_installed_is_one_line(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"map=umap needs umap-learn: pip install umap-learn"):
        Pictures(data, Path(), map="umap")


def test_neighbours_of_a_training_image_begin_with_itself(
    data: ImageData, network: Network, drawn: list[Figure], tmp_path: Path
) -> None:
    same = replace(data, val=data.train)
    pictures = Pictures(same, tmp_path, images=20, queries=3, neighbours=4, bank=len(data.train))
    seen = pictures.look(network, 1)
    assert seen is not None
    pictures.draw(seen, network, tmp_path, 1)
    grid = drawn[1].axes
    assert len(grid) == 3 * 6
    for row in range(3):
        images = [axis.images[0].get_array() for axis in grid[6 * row : 6 * row + 6] if axis.images]
        assert (images[0] == images[1]).all() and (images[0] != images[2]).any()
        assert grid[6 * row].get_ylabel() == "049"[row], "classes evenly spaced"
        assert grid[6 * row + 2].spines["top"].get_edgecolor()[2] > 0.5, "blue: of the same class"
    tables = pictures.tables(seen)
    for query, name, same_class, *nearest in tables["tables/neighbours"].rows:
        assert isinstance(query, Picture) and isinstance(nearest[0], Picture)
        assert torch.equal(query.pixels, nearest[0].pixels) and nearest[0].caption == f"{name} 1.000"
        assert same_class == sum(
            found.caption.startswith(f"{name} ") for found in nearest if isinstance(found, Picture)
        )
    rows = tables["tables/embedding_map"].rows
    assert [name for name, *_ in rows] == [data.classes[label] for label in pictures.val.labels]
    torch.testing.assert_close(torch.tensor([point for _, *point in rows]), seen.points)


@pytest.mark.parametrize("classes,marked", [(2, 2), (10, 10), (30, 30), (100, 11)])
def test_each_class_has_a_look_of_its_own(classes: int, marked: int, drawn: list[Figure], tmp_path: Path) -> None:
    labels = torch.arange(classes).repeat(3)
    names = [f"class {i}" for i in range(classes)]
    figures.plot_map(torch.randn(3 * classes, 2), labels, names, "a map", ("x", "y"), tmp_path / "a.png")
    legend = drawn[0].legends[0]
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles}  # type: ignore[union-attr]
    assert len(looks) == marked == len(legend.get_texts())
    assert sum(len(points.get_offsets()) for points in drawn[0].axes[0].collections) == 3 * classes


def test_images_without_labels(data: ImageData, network: Network, drawn: list[Figure], tmp_path: Path) -> None:
    bare = replace(data, val=Split.unlabelled(data.val.images), train=Split.unlabelled(data.train.images), classes=())
    pictures = Pictures(bare, tmp_path, images=20, bank=50)
    seen = pictures.look(network, 1)
    assert seen is not None and len(pictures.draw(seen, network, tmp_path, 1)) == 3
    assert {name for name, *_ in pictures.tables(seen)["tables/embedding_map"].rows} == {""}
    assert not any(figure.legends for figure in drawn)
    few = replace(bare, val=bare.val.subset(9))
    with pytest.raises(DataError, match="pictures need 10 validation images, and there are 9"):
        Pictures(few, tmp_path).check(few)


def test_first_filters() -> None:
    network = learner_of().model
    filters = first_filters(network, (3, 16, 16))
    assert filters is not None and filters.shape == (4, 3, 3, 3)
    network.stages[0].forward_map = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 7))
    filters = first_filters(network, (3, 16, 16))
    assert filters is not None and filters.shape == (7, 3, 16, 16)
    network.stages[0].forward_map = torch.nn.Conv2d(2, 4, 3)
    assert first_filters(network, (2, 16, 16)) is None


def test_filters_are_grey_where_they_are_zero(drawn: list[Figure], tmp_path: Path) -> None:
    weights = torch.zeros(70, 1, 3, 3)
    weights[:, 0, 0, 0], weights[:, 0, 0, 1] = 2.0, -2.0
    figures.plot_filters(weights, "filters", tmp_path / "a.png")
    shown = [axis.images[0].get_array() for axis in drawn[0].axes if axis.images]
    assert len(shown) == 64, "as many as fit"
    assert shown[0][0].tolist() == [1.0, 0.0, 0.5]  # type: ignore[index]


def test_the_page_shows_them_side_by_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for learner in ("bp", "dtp", "fa"):
        write_run(tmp_path / "runs" / learner, learner, 0, 0.9)
        if learner != "fa":
            Image.new("RGB", (9, 9)).save(tmp_path / "runs" / learner / "plots" / "embedding_map.png")
    with caplog.at_level(logging.WARNING):
        write_page(read_runs([tmp_path / "runs"]), tmp_path / "page.html", "pictures")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<h2>Maps of features</h2>") == 1 and "Nearest neighbours" not in text
    for learner in ("bp", "dtp"):
        assert (
            f'<img src="runs/{learner}/plots/embedding_map.png" loading="lazy" alt="Maps of features, {learner}">'
            in text
        )
    assert "runs/fa/plots/embedding_map.png" not in text
