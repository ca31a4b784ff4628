"""An exported encoder gives the run's features, by itself; files that were changed are refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, composed, options
from PIL import Image
from safetensors.torch import save_file

import dtp_lightning
from dtp_lightning.config.instantiate import build
from dtp_lightning.data import mnist5k
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import DataError
from dtp_lightning.export.encoder import digest
from dtp_lightning.export.writer import export
from dtp_lightning.models import features_of, freeze
from dtp_lightning.pipeline import run as run_one
from dtp_lightning.runs.checkpoint import Checkpoint

SHORT = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "logger=none",
    "callbacks=[]", "evaluation=[knn]", "batch_size=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an export in it."""
    folder = tmp_path_factory.mktemp("run")
    run_one(*composed(*SHORT, "model.channels=[4,6]", "dataset=mnist5k"), folder)
    export(folder)
    return folder


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of colour images of two classes."""
    root = tmp_path_factory.mktemp("coloured")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    return root


def of_the_run(folder: Path, name: str = "last") -> tuple[Checkpoint, torch.nn.Module]:
    """The whole network of a checkpoint, as evaluate.py builds it."""
    stored = Checkpoint.read(folder / "checkpoints" / f"{name}.ckpt")
    supervised = len(stored.classes) if stored.names["loss"] == "cross_entropy" else None
    network = build(stored.node("model"), images=ImageSpec.from_dict(stored.images), classes=supervised)
    stored.load_into(network)
    return stored, freeze(network)


def test_features_equal_those_of_the_run(finished: Path) -> None:
    images = mnist5k().test.images[:300]
    _, network = of_the_run(finished)
    expected = features_of(network, images)
    state = torch.get_rng_state()
    encoder = dtp_lightning.load_encoder(finished / "encoder.safetensors")
    assert torch.equal(torch.get_rng_state(), state), "loading draws no random number"
    assert torch.equal(encoder(images), expected)
    assert torch.equal(encoder(images.float() / 255), expected)
    assert torch.equal(features_of(encoder, images), expected), "the probes can read it"
    maps = zip(encoder.activations(images), network.activations(images.float() / 255), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in maps)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert encoder.embedding_dim == expected.shape[1]


def test_the_same_run_gives_the_same_file(finished: Path, tmp_path: Path) -> None:
    files = {export(finished, tmp_path / str(i)).read_bytes() for i in range(8)}
    assert len(files) == 1


@pytest.mark.parametrize("model", options("model"))
def test_every_model_is_exported(model: str, run_pipeline: Callable[..., dict], coloured: Path, tmp_path: Path) -> None:
    if model == "timm":
        pytest.importorskip("timm", reason="timm is an extra")
    values = composed(f"model={model}")[0].model
    few = [f"model.{key}={[4] * len(values[key])}".replace(" ", "") for key in ("channels", "widths") if key in values]
    run_pipeline(
        *SHORT, f"model={model}", *few, "learner=bp", "evaluation=[]", "loss=cross_entropy", "augment=clean",
        "batch_size=4", "dataset=image_folder", f"dataset.root={coloured}",
    )  # fmt: skip
    encoder = dtp_lightning.load_encoder(export(tmp_path, tmp_path / "elsewhere" / "mine"))
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(encoder(images), of_the_run(tmp_path)[1].features(images))
    assert str(coloured) not in (tmp_path / "elsewhere" / "mine.json").read_text(), "a card is made to be shown"


def test_the_card_tells_where_the_weights_come_from(finished: Path) -> None:
    card = json.loads((finished / "encoder.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("learner", "loss", "model", "dataset", "seed", "epochs", "git_commit", "versions"):
        assert card[key] == summary[key]
    assert card["accuracy"]["knn/test_acc"] == summary["knn/test_acc"]
    assert card["accuracy"]["random_encoder/knn/test_acc"] == summary["random_encoder/knn/test_acc"]
    assert card["encoder"]["input"] == {
        "channels": 1, "height": 28, "width": 28, "mean": 0.0, "std": 1.0, "mirror_safe": False,
    }  # fmt: skip
    assert card["config"]["learner"]["target_step"] == 0.5 and "logger" not in card["config"]
    assert card["classes"] == list("0123456789") and card["features"] == 6 * 7 * 7
    assert {"license", "library_name", "pipeline_tag", "tags", "limitations", "exported_by"} <= card.keys()


def test_accuracies_of_another_epoch_are_left_out(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(
        *SHORT, "trainer.max_epochs=2", "callbacks=[snapshots]", "callbacks.snapshots.every_n_epochs=1",
        "model.channels=[4,4]",
    )  # fmt: skip
    weights = export(tmp_path / "checkpoints" / "epoch1.ckpt", licence="CC0-1.0")
    card = json.loads((tmp_path / "encoder_epoch1.json").read_text())
    assert weights.name == "encoder_epoch1.safetensors" and card["epochs"] == 1 and card["accuracy"] == {}
    assert card["license"] == "CC0-1.0" and card["git_commit"] == "unknown"


def test_neither_hydra_nor_lightning_is_needed(finished: Path, tmp_path: Path) -> None:
    """Not even installed: importing them fails here."""
    code = f"""
import sys
for name in ("hydra", "omegaconf", "pytorch_lightning", "lightning_fabric", "wandb", "lightly", "sklearn"):
    sys.modules[name] = None
import dtp_lightning
assert "torch" not in sys.modules, "the package itself is light"
import torch
encoder = dtp_lightning.load_encoder({str(finished / "encoder.json")!r})
print(tuple(encoder(torch.zeros(2, 1, 28, 28)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(2, 294)", done.stderr


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The folder of an export of one's own, to be changed."""
    for suffix in ("json", "safetensors"):
        shutil.copy(finished / f"encoder.{suffix}", tmp_path)
    return tmp_path


def change(folder: Path, *path: str, to: object) -> None:
    """Set a value of the card."""
    card = json.loads((folder / "encoder.json").read_text())
    node = card
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    (folder / "encoder.json").write_text(json.dumps(card))


TAMPERED = [
    (("format",), "something else", "is not a card of format"),
    (("encoder", "builder"), "os.system", "builder 'os.system' is not one of conv_net"),
    (("encoder", "builder"), "torch.hub.load", "builder 'torch.hub.load' is not one of conv_net"),
    (("encoder", "arguments", "channels"), [4, 8], "was changed since encoder.safetensors was written"),
    (("encoder", "arguments", "channels"), "wide", "encoder.arguments.channels"),
    (("encoder", "arguments", "chanels"), [4], "encoder.arguments.chanels: Unexpected keyword argument"),
    (("encoder", "arguments", "activation"), "Linear", "torch.nn.Linear is no activation"),
    (("encoder", "arguments", "channels"), [10**9, 10**9], "encoder.arguments: Storage size calculation overflowed"),
    (("encoder", "arguments", "channels"), [10**5, 10**5], "was changed since"),  # 360 GB, of which none is taken
    (("encoder", "input", "mean"), 0.5, "was changed since encoder.safetensors was written"),
    (("encoder", "input", "height"), -28, "encoder.input.height: Input should be greater than 0"),
    (("encoder", "input", "std"), 0.0, "encoder.input.std: Input should be greater than 0"),
    (("encoder", "_target_"), "os.system", "encoder._target_: Extra inputs are not permitted"),
    (("encoder",), None, "encoder.Input should be a valid dictionary"),
    (("sha256",), "0" * 64, "is not the file that this card was written for"),
]


@pytest.mark.parametrize("path,value,expected", TAMPERED, ids=[f"{'.'.join(t[0])}={t[1]}"[:50] for t in TAMPERED])
def test_a_changed_card_is_refused(path: tuple[str, ...], value: object, expected: str, copied: Path) -> None:
    change(copied, *path, to=value)
    refused(copied, expected)


def refused(folder: Path, expected: str) -> None:
    with pytest.raises(DataError) as raised:
        dtp_lightning.load_encoder(folder)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_other_weights_are_refused(copied: Path) -> None:
    file = copied / "encoder.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    refused(copied, "is not the file that this card was written for")
    described = json.loads((copied / "encoder.json").read_text())["encoder"]
    save_file({"stages.0.forward_map.0.weight": torch.zeros(2)}, file, metadata={"encoder": json.dumps(described)})
    change(copied, "sha256", to=digest(file))  # by someone who means it
    refused(copied, "the weights do not fit")
    file.write_bytes(b"no tensors")
    change(copied, "sha256", to=digest(file))
    refused(copied, "is no safetensors file")
    file.unlink()
    refused(copied, "no such file; dtp export RUN writes")


def test_a_broken_card_is_refused(copied: Path) -> None:
    (copied / "encoder.json").write_text("{")
    refused(copied, "is not JSON")
    (copied / "encoder.json").write_text("[]")
    refused(copied, "is not a card of format")


@pytest.mark.parametrize(
    "images,expected",
    [
        (torch.zeros(2, 3, 28, 28), r"takes \(N, 1, 28, 28\)"),
        (torch.zeros(2, 1, 32, 32), r"takes \(N, 1, 28, 28\)"),
        (torch.zeros(1, 28, 28), r"takes \(N, 1, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), "uint8 in 0..255, or floats"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: torch.Tensor, expected: str, finished: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        dtp_lightning.load_encoder(finished)(images)


def test_the_command(finished: Path, tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return processes.run([sys.executable, "-m", "dtp_lightning", "export", *words], cwd=ROOT)

    done = command(str(finished), "--to", str(tmp_path / "my encoder.safetensors"))
    assert done.returncode == 0 and done.stdout.splitlines()[0].endswith("my encoder.safetensors"), done.stderr
    assert dtp_lightning.load_encoder(tmp_path / "my encoder").card["learner"] == "dtp"
    done = command(str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no such file" in done.stderr


def test_networks_of_others_are_not_exported(finished: Path, tmp_path: Path) -> None:
    stored = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    stored["hyper_parameters"]["config"]["model"]["_target_"] = "mine.net"
    (tmp_path / "checkpoints").mkdir()
    torch.save(stored, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(DataError, match=r"built by mine\.net, and a card can only name conv_net"):
        export(tmp_path)
