"""Hugging Face data sets that lie on this disk; without the library, one line that says how to install it."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data import ImageData, array_file, huggingface, image_folder
from dtp_lightning.errors import ConfigError, DataError

NAMES = ["cat", "dog"]
X = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
Y = (np.arange(20) % 2).tolist()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'dtp-lightning\[huggingface\]'"):
        huggingface("uoft-cs/cifar10")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets", reason="pip install 'dtp-lightning[huggingface]' to run this")


@pytest.fixture
def table(library: Any) -> Callable[..., Any]:
    """Makes a table of images and labels, with further columns."""

    def make(labels: list[int] = Y, **more: tuple[list[Any], Any]) -> Any:
        columns = {"picture": [Image.fromarray(x) for x in X[: len(labels)]], "kind": labels}
        features = {"picture": library.Image(), "kind": library.ClassLabel(names=NAMES)}
        return library.Dataset.from_dict(
            columns | {name: values for name, (values, _) in more.items()},
            library.Features(features | {name: kind for name, (_, kind) in more.items()}),
        )

    return make


def same(a: ImageData, b: ImageData) -> bool:
    a, b = a.in_memory(), b.in_memory()
    splits = [(getattr(a, name), getattr(b, name)) for name in ("train", "val", "test")]
    return a.classes == b.classes and all(
        torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels) for one, other in splits
    )


def test_folder_arrays_and_tables_of_the_same_images_are_the_same(table: Callable[..., Any], tmp_path: Path) -> None:
    """Saved on disk as a table, as several, and as Parquet; and as image files and an .npz, which need no library."""
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        (tmp_path / "folder" / "train" / NAMES[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(tmp_path / "folder" / "train" / NAMES[y] / f"{i:02}.png")
    np.savez(tmp_path / "mine.npz", images=X, labels=Y, classes=NAMES)
    table().save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    table().to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    data = array_file(str(tmp_path / "mine.npz"))
    assert [len(s) for s in (data.train, data.val, data.test)] == [14, 2, 4]
    for name in ("saved", "parquet", "folder"):
        overrides = ("dataset=huggingface", f"dataset.name={tmp_path / name}", f"dataset.root={tmp_path / 'cache'}")
        assert same(build(checked(composed(*overrides, "dataset.size=8")[0]).images), data), name
    assert same(image_folder(str(tmp_path / "folder"), size=8), data)


def test_splits_and_hidden_labels(
    library: Any, table: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test split without labels is none; images of other sizes are made alike; ``unsupervised`` pre-trains."""
    tables = {"train": table(), "validation": table(Y[:6]), "test": table([-1] * 5), "unsupervised": table(Y[:9])}
    library.DatasetDict(tables).save_to_disk(str(tmp_path / "a"))
    with caplog.at_level(logging.WARNING):
        data = huggingface(str(tmp_path / "a"), size=6, channels=1)
    assert "the test split has no labels" in caplog.text
    assert [len(s) for s in (data.train, data.val, data.test, data.pretraining())] == [16, 6, 4, 9]
    assert data.pretraining().labels.tolist() == [-1] * 9
    assert data.train.images[torch.tensor([3, 1])].shape == (2, 1, 6, 6)
    assert torch.equal(data.train.images[:][[3, 1]], data.train.images[torch.tensor([3, 1])])


def test_streaming_takes_a_fixed_sample(table: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    table().to_parquet(str(tmp_path / "a" / "train.parquet"))
    first, second = (huggingface(str(tmp_path / "a"), size=8, max_images=12, root=str(tmp_path)) for _ in range(2))
    assert same(first, second)
    assert sum(len(s) for s in (first.train, first.val, first.test)) == 12
    of_image = {x.tobytes(): y for x, y in zip(X.transpose(0, 3, 1, 2).copy(), Y, strict=True)}
    train = first.in_memory().train
    assert [of_image[x.numpy().tobytes()] for x in train.images] == train.labels.tolist()  # type: ignore[union-attr]


def test_what_is_wrong_is_one_line(library: Any, table: Callable[..., Any], tmp_path: Path) -> None:
    saved = {
        "two": table(coarse=(Y, library.ClassLabel(names=NAMES))),
        "bare": table().select_columns(["kind"]),
        "holes": table([-1, *Y[1:]]),
        "test": library.DatasetDict({"test": table()}),
    }
    for name, tables in saved.items():
        tables.save_to_disk(str(tmp_path / name))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("two", {}, "several columns of ClassLabel: set dataset.label=kind or coarse"),
        ("two", {"label": "fine"}, r"dataset.label=fine: of the columns of .* of type ClassLabel are kind, coarse"),
        ("bare", {}, r"no column of type Image among its columns \(kind\)"),
        ("holes", {}, "some train images have no label"),
        ("test", {}, "no split train to train on; it has test"),
        ("nowhere", {}, "there is no such folder"),
    ]
    for name, arguments, expected in cases:
        with pytest.raises(DataError, match=expected) as raised:
            huggingface(str(tmp_path / name), **arguments)
        assert "\n" not in str(raised.value)
    assert huggingface(str(tmp_path / "two"), label="coarse").classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"dataset.name=nobody/nothing cannot be loaded: .* is there a network\?"):
        huggingface("nobody/nothing", root=str(tmp_path))


def test_a_damaged_image_is_one_line(library: Any, tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(X[0]).save(good, "png")
    rows = [{"picture": {"bytes": good.getvalue() if i else b"no image", "path": None}} for i in range(9)]
    features = library.Features({"picture": library.Image()})
    library.Dataset.from_list(rows, features).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match="column picture holds what is not an image") as raised:
        huggingface(str(tmp_path / "a")).in_memory()
    assert "\n" not in str(raised.value)
