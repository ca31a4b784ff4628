"""A user's own images: any mixture, and one clear line for what is wrong with it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dtp_lightning.data import image_folder
from dtp_lightning.data.image_folder import FolderImages
from dtp_lightning.errors import DataError


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten images with odd sizes, grey, palette and transparency."""
    for name in ("cat", "dog"):
        for i in range(10):
            mode, suffix = [("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg")][i % 5]
            picture(tmp_path / "train" / name / f"{i}.{suffix}", (31 + 7 * i, 53), mode, seed=i)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_any_mixture_becomes_one_tensor(folder: Path) -> None:
    data = image_folder(str(folder), size=16)
    assert data.classes == ("cat", "dog")
    assert [len(s) for s in (data.train, data.val, data.test)] == [14, 2, 4]
    for split in (data.train, data.val, data.test):
        images = split.images[:]
        assert images.shape == (len(split), 3, 16, 16) == tuple(split.images.shape)
        assert images.dtype == torch.uint8
        assert set(split.labels.tolist()) == {0, 1}
    assert torch.equal(data.train.images[torch.tensor([3, 1])], data.train.images[:][[3, 1]])
    assert data.in_memory().train.images.equal(data.train.images[:])
    assert data.spec.height == 16


def test_split_is_fixed_and_disjoint(folder: Path) -> None:
    first, second = (image_folder(str(folder), size=8) for _ in range(2))
    paths = [set(s.images.paths) for s in (first.train, first.val, first.test)]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 20
    assert list(first.val.images.paths) == list(second.val.images.paths)


def test_given_splits_are_kept(folder: Path) -> None:
    picture(folder / "test" / "cat" / "a.png")
    picture(folder / "test" / "dog" / "a.png")
    picture(folder / "val" / "dog" / "a.png")
    data = image_folder(str(folder), size=8)
    assert [len(s) for s in (data.train, data.val, data.test)] == [20, 1, 2]
    assert data.val.labels.tolist() == [1], "a split may lack a class"


def test_middle_is_cut_out(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    square = FolderImages([tmp_path / "wide.png"], 8, 1)[:]
    assert square.shape == (1, 1, 8, 8) and (square == 255).all()
    assert (FolderImages([tmp_path / "wide.png"], 8, 1, invert=True)[:] == 0).all()


def test_unlabelled_folder_pre_trains(folder: Path) -> None:
    for i in range(5):
        picture(folder / "unlabelled" / "deep" / f"{i}.png")
    data = image_folder(str(folder), size=8)
    assert len(data.pretraining()) == 5 and len(data.pretraining(supervised=True)) == 14


def test_pictures_alone_are_unlabelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        picture(tmp_path / f"{i}.png", seed=i)
    with caplog.at_level(logging.WARNING):
        data = image_folder(str(tmp_path), size=8)
    assert "20 images are taken as unlabelled" in caplog.text
    assert [len(s) for s in (data.train, data.val, data.test)] == [18, 2, 0]
    assert data.classes == () and data.in_memory().test.images.shape == (0, 3, 8, 8)
    with pytest.raises(DataError, match="needs labels"):
        data.pretraining(supervised=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_truncated_file_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = folder / "train" / "cat" / "0.jpg"
    truncate(broken)
    (folder / "train" / "dog" / "0.jpg").write_text("no image")
    with pytest.raises(DataError) as raised:
        image_folder(str(folder)).in_memory()
    message = str(raised.value)
    assert str(broken) in message and "dataset.skip_damaged=true" in message and "\n" not in message
    with caplog.at_level(logging.WARNING):
        data = image_folder(str(folder), skip_damaged=True).in_memory()
    assert sum(len(s) for s in (data.train, data.val, data.test)) == 18
    assert "left out 2 damaged files" in caplog.text and "not an image" in caplog.text


def test_truncated_file_met_by_a_worker_is_one_line(folder: Path) -> None:
    truncate(folder / "train" / "cat" / "5.jpg")
    done = processes.run(
        [sys.executable, str(ROOT / "train.py"), "dataset=image_folder", f"dataset.root={folder}", "loading=stream",
         "batch_size=4", "evaluation=[]", "callbacks=[]", "logger=none"],
        cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {folder / 'train' / 'cat' / '5.jpg'} cannot be read")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "break_it,expected",
    [
        (lambda f: (f / "train" / "zebra").mkdir(), "train/zebra holds no images"),
        (lambda f: picture(f / "test" / "bird" / "a.png"), "test/bird is a class that train/ does not have"),
        (lambda f: (f / "unlabelled").mkdir(), "unlabelled holds no images"),
        (lambda f: picture(f / "train" / "lone" / "a.png"), "train/lone holds too few images"),
        (lambda f: (f / "test").mkdir(), "holds no class folders"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, break_it: Callable[[Path], object], expected: str) -> None:
    break_it(folder)
    with pytest.raises(DataError, match=expected) as raised:
        image_folder(str(folder))
    assert "\n" not in str(raised.value)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        image_folder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds 0 images"):
        image_folder(str(tmp_path))
