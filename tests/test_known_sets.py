"""SVHN and Tiny ImageNet, from files of their formats."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from conftest import composed
from PIL import Image
from scipy.io import savemat

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data import ImageData, tiny_imagenet
from dtp_lightning.errors import DataError


def loaded(*overrides: str) -> ImageData:
    data: ImageData = build(checked(composed(*overrides)[0]).images)
    return data


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real .mat files: images H x W x C x N, and a 10 for the digit 0."""
    lists = dict(torchvision.datasets.SVHN.split_list)
    for split, count in (("train", 30), ("test", 10)):
        images = np.zeros((32, 32, 3, count), dtype=np.uint8)
        images[3, 5, 1] = np.arange(count)
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": np.arange(count)[:, None] % 10 + 1})
        lists[split] = [lists[split][0], path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    data = loaded("dataset=svhn", f"dataset.root={tmp_path}", "dataset.val_size=10", "dataset.download=false")
    assert data.classes == tuple("0123456789") and not data.mirror_safe
    assert [len(s) for s in (data.train, data.val, data.test)] == [20, 10, 10]
    assert data.train.images[:, 1, 3, 5].tolist() == list(range(20))
    assert data.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


CLASSES = {"n01": "goldfish, Carassius auratus", "n02": "bullfrog", "n03": "tailed frog"}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes as the archive unpacks."""
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i, name in enumerate(CLASSES):
        (folder / "train" / name / "images").mkdir(parents=True)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t9\t9\n")
        for j in range(10):
            Image.new("RGB" if j else "L", (64, 64), 50 * i).save(folder / "train" / name / "images" / f"{j}.JPEG")
        for j in range(2):
            Image.new("RGB", (64, 64), (50 * i,) * 3).save(folder / "val" / "images" / f"val_{2 * i + j}.JPEG")
            lines.append(f"val_{2 * i + j}.JPEG\t{name}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (folder / "words.txt").write_text("".join(f"{name}\t{words}\n" for name, words in CLASSES.items()))
    return folder


def test_tiny_imagenet(tiny: Path) -> None:
    data = loaded("dataset=tiny_imagenet", f"dataset.root={tiny.parent}")
    assert data.classes == ("goldfish", "bullfrog", "tailed frog")
    assert [len(s) for s in (data.train, data.val, data.test)] == [27, 3, 6]
    for split in (data.train, data.val, data.test):
        assert (split.images[:][:, 0, 0, 0] // 50 == split.labels).all(), "grey levels say the class"
        assert tuple(split.images.shape[1:]) == (3, 64, 64)
    assert len(tiny_imagenet(str(tiny)).train) == 27, "the folder itself"


def test_tiny_imagenet_sorted_into_classes(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    for i, name in enumerate(CLASSES):
        (tiny / "val" / name).mkdir()
        (tiny / "val" / "images" / f"val_{2 * i}.JPEG").rename(tiny / "val" / name / "a.JPEG")
    for left in (tiny / "val" / "images").iterdir():
        left.unlink()
    (tiny / "val" / "images").rmdir()
    assert tiny_imagenet(str(tiny)).test.labels.tolist() == [0, 1, 2]


def test_tiny_imagenet_wrong_is_one_line(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Tiny ImageNet is missing in .*nowhere"):
        tiny_imagenet(str(tmp_path / "nowhere"))
    annotations = tiny / "val" / "val_annotations.txt"
    for text, expected in (
        ("val_0.JPEG\tn99\t0\n", "line 1: 'n99' is no class of train"),
        ("val_0.JPEG\tn01\t0\nval_9.JPEG\tn01\t0\n", "line 2: there is no"),
        ("", "is empty"),
    ):
        annotations.write_text(text)
        with pytest.raises(DataError, match=expected):
            tiny_imagenet(str(tiny))
