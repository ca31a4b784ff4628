"""A user's own arrays: every usual way to name and lay them out, and one clear line for what is wrong."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data import array_file, image_folder
from dtp_lightning.errors import DataError


def images(n: int = 20, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *(shape or (6, 5, 3))), dtype=np.uint8)


Y = np.arange(20) % 2


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "mine.npz", **arrays)
    return str(path / "mine.npz")


def test_images_and_labels(tmp_path: Path) -> None:
    x = images()
    data = array_file(saved(tmp_path, images=x, labels=Y))
    assert data.classes == ("0", "1")
    assert [len(s) for s in (data.train, data.val, data.test)] == [14, 2, 4]
    assert data.spec.channels == 3 and (data.spec.height, data.spec.width) == (6, 5)
    whole = data.in_memory()
    of_image = {image.tobytes(): label for image, label in zip(x.transpose(0, 3, 1, 2).copy(), Y, strict=True)}
    every = [(s.images[i], s.labels[i]) for s in (whole.train, whole.val, whole.test) for i in range(len(s))]
    assert {image.numpy().tobytes(): int(y) for image, y in every} == of_image, "each image once, with its label"
    again = array_file(str(tmp_path / "mine.npz")).in_memory()
    assert torch.equal(again.val.images, whole.val.images), "the split is fixed"


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X", "y", "X_test", "Y_test"),
        ("train_data", "train_targets", "test_data", "test_targets"),
    ],
)
def test_usual_keys(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """Keras', MedMNIST's (whose labels are N x 1) and others."""
    arrays = (images(), Y[:, None], images(8, seed=1), Y[:8, None])
    data = array_file(saved(tmp_path, **dict(zip(keys, arrays, strict=True))))
    assert [len(s) for s in (data.train, data.val, data.test)] == [18, 2, 8]
    assert torch.equal(data.test.images[:], torch.from_numpy(images(8, seed=1)).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == Y[:8].tolist()


def test_layouts(tmp_path: Path) -> None:
    x = images(20, 6, 5, 3)
    for array, layout in ((x, "auto"), (x.transpose(0, 3, 1, 2), "auto"), (x, "nhwc")):
        data = array_file(saved(tmp_path, images=array, labels=Y), layout=layout)
        assert data.train.images.shape == (14, 3, 6, 5) == data.train.images[:].shape
    assert array_file(saved(tmp_path, images=images(20, 6, 5), labels=Y)).train.images[:].shape == (14, 1, 6, 5)
    thin = images(20, 3, 7, 3)
    with pytest.raises(DataError, match="which axis is the channels"):
        array_file(saved(tmp_path, images=thin, labels=Y))
    assert array_file(saved(tmp_path, images=thin, labels=Y), layout="nchw").spec.width == 3


def test_names_of_classes(tmp_path: Path) -> None:
    text = np.array(["dog", "cat"])[Y]
    assert array_file(saved(tmp_path, images=images(), labels=text)).classes == ("cat", "dog")
    sparse = np.array([2, 7])[Y]
    data = array_file(saved(tmp_path, images=images(), labels=sparse, classes=np.array(list("abcdefgh"))))
    assert data.classes == ("c", "h") and set(data.train.labels.tolist()) == {0, 1}


def test_images_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", images())
    for path in (str(tmp_path / "mine.npy"), saved(tmp_path, images=images())):
        data = array_file(path)
        assert data.classes == () and [len(s) for s in (data.train, data.val, data.test)] == [18, 2, 0]
        assert data.in_memory().train.labels.tolist() == [-1] * 18
    pretrained = array_file(saved(tmp_path, images=images(), labels=Y, unlabelled_images=images(9)))
    assert len(pretrained.pretraining()) == 9 and len(pretrained.pretraining(supervised=True)) == 14


def test_an_array_on_disk_is_read_as_it_is_indexed(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", images())
    data = array_file(str(tmp_path / "mine.npy"))
    assert isinstance(data.train.images.images.array, np.memmap)  # type: ignore[attr-defined]
    batch = data.train.images[torch.tensor([3, 1, 3])]
    assert batch.shape == (3, 3, 6, 5) and torch.equal(batch[0], batch[2])
    assert torch.equal(batch[0], data.in_memory().train.images[3])


def test_a_folder_of_the_same_images_is_the_same(tmp_path: Path) -> None:
    x, folder = images(20, 8, 8, 3), tmp_path / "folder"
    for i, (image, label) in enumerate(zip(x, Y, strict=True)):
        (folder / "train" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "train" / str(label) / f"{i:02}.png")
    a, b = array_file(saved(tmp_path, images=x, labels=Y)).in_memory(), image_folder(str(folder), size=8).in_memory()
    assert a.classes == b.classes and a.spec == b.spec
    for one, other in ((a.train, b.train), (a.val, b.val), (a.test, b.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)  # type: ignore[arg-type]


def test_unknown_keys_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        array_file(saved(tmp_path, images=images(), labels=Y, weights=np.ones(20)))
    assert "weights is not read" in caplog.text


@pytest.mark.parametrize(
    "arrays,expected",
    [
        ({"pictures": images(), "labels": Y}, r"no images to train on among its keys \(pictures, labels\)"),
        ({"x_test": images(), "y_test": Y}, "no images to train on"),
        ({"images": images() / 255, "labels": Y}, "images are float64: save them as uint8 in 0..255"),
        ({"images": images(20, 30), "labels": Y}, "images are 20 x 30: N x H x W"),
        ({"images": images(20, 6, 5, 4), "labels": Y}, "no axis of 1 or 3 channels"),
        ({"images": images(0, 6, 5, 3), "labels": Y[:0]}, "images are 0 x 6 x 5 x 3"),
        ({"images": images(), "labels": Y[:19]}, "20 train images and 19 labels"),
        ({"images": images(), "labels": Y / 2}, "labels are float64: integers or names"),
        ({"images": images(), "labels": Y - 1}, "labels go down to -1"),
        ({"images": images(), "labels": np.eye(2)[Y]}, "labels are 20 x 2: one label an image"),
        ({"images": images(), "labels": Y, "x": images()}, "x is a second array of train images"),
        ({"images": images(), "y": Y, "y_val": Y}, "labels of val without images"),
        ({"images": images(), "y": Y, "x_val": images()}, "either train or val has labels"),
        ({"images": images(), "y": Y, "x_val": images(4), "y_val": Y[:4] + 1}, "val has labels 2, and train has none"),
        ({"images": images(), "y": Y, "x_val": images(4, 9, 9), "y_val": Y[:4]}, "val images are 1 x 9 x 9 and train"),
        ({"images": images(), "labels": np.arange(20)}, "class 0 has too few images to cut validation and test from"),
        ({"images": images(3), "labels": Y[:3]}, "3 training images are too few"),
        ({"images": images(), "labels": Y, "classes": np.array(["a"])}, "1 names for labels up to 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as raised:
        array_file(saved(tmp_path, **arrays))
    assert "\n" not in str(raised.value) and "mine.npz" in str(raised.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


def test_damaged_and_dangerous_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Path(saved(tmp_path, images=images(200), labels=np.arange(200) % 2)).read_bytes()
    flipped = bytearray(whole)
    flipped[3000] ^= 255
    (tmp_path / "object.npz").touch()
    np.savez(tmp_path / "object.npz", images=np.array([Evil()], dtype=object))
    files = {
        "half.npz": whole[: len(whole) // 2],
        "header.npz": whole[:3000],
        "flipped.npz": bytes(flipped),
        "empty.npz": b"",
        "text.npz": b"not an archive",
        "half.npy": b"\x93NUMPY\x01\x00",
        "pickle.npy": pickle.dumps(Evil()),
        "object.npz": (tmp_path / "object.npz").read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read") as raised:
            array_file(str(tmp_path / name))
        assert "\n" not in str(raised.value), name
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(DataError, match="there is no such file"):
        array_file("nowhere.npz")


def test_by_the_command_line(tmp_path: Path) -> None:
    data = build(
        checked(composed("dataset=npz", f"dataset.path={saved(tmp_path, images=images(), labels=Y)}")[0]).images
    )
    assert len(data.train) == 14
