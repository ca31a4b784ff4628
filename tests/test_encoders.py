"""Encoders that come with the package: they load by name, and do what their page says; float16 exports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import encoders
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from dtp_lightning import load_encoder
from dtp_lightning.errors import DataError
from dtp_lightning.export.encoder import PUBLISHED, published
from dtp_lightning.export.writer import export
from dtp_lightning.runs.checkpoint import Checkpoint

PAGE = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
SHORT = (
    "dataset=mnist5k", "model.channels=[4,6]", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1", "logger=none", "callbacks=[]", "evaluation=[]", "batch_size=20",
)  # fmt: skip


def fields(name: str) -> dict[str, str]:
    """The row of an encoder in the page's table."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | ") and line.count("|") > 4)
    return dict(zip(encoders.COLUMNS, [field.strip(" `") for field in line.strip("|").split("|")], strict=True))


@pytest.mark.parametrize("name", published())
def test_a_published_encoder_is_what_the_page_says(name: str) -> None:
    encoder, row = load_encoder(name), fields(name)
    spec = encoder.spec
    features = encoder(torch.rand(3, spec.channels, spec.height, spec.width))
    assert features.shape == (3, int(row["features"])) and features.dtype == torch.float32 and features.isfinite().all()
    assert encoder.card["sha256"].startswith(row["sha256"]) and len(row["sha256"]) == 12
    assert encoder.card["learner"] == row["learner"] and encoder.card["git_commit"].startswith(row["commit"])
    assert encoder.card["license"] and not encoder.card["exported_by"]["git_commit"].endswith("dirty")
    assert name == f"{encoder.card['dataset']}-{encoder.card['loss']}-{encoder.card['learner']}"


def test_the_page_names_every_published_encoder_and_the_package_stays_small() -> None:
    assert published() == sorted(re.findall(r"^\| `([\w-]+)` \| \w+ \|", PAGE, re.MULTILINE))
    assert sum(file.stat().st_size for file in PUBLISHED.iterdir()) < 10_000_000


def test_an_accuracy_of_the_page_is_that_of_the_file() -> None:
    found = 100 * encoders.probed("mnist5k-hinge-dtp")
    assert found == pytest.approx(float(fields("mnist5k-hinge-dtp")["test"]), abs=0.11), "one image of 1,000"


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'mnist5k-hinge-dtp'"):
        load_encoder("mnist5k-hinge-dpt")


def test_half_is_float16_in_the_file_and_float32_in_memory(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*SHORT, "model.norm=batch")
    whole = load_encoder(export(tmp_path, tmp_path / "whole"))
    half = load_encoder(export(tmp_path, tmp_path / "half", half=True))
    stored = {str(value.dtype) for value in load_file(tmp_path / "half.safetensors").values()}
    assert stored == {"torch.float16", "torch.int64"}
    images = torch.rand(5, 1, 28, 28)
    assert not torch.equal(half(images), whole(images))
    torch.testing.assert_close(half(images), whole(images), rtol=0, atol=5e-3)


def test_weights_beyond_float16_are_refused(
    run_pipeline: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(*SHORT)
    read = Checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")
    name = next(name for name in read.weights if name.startswith("stages.0"))
    read.weights[name].fill_(1e6)
    monkeypatch.setattr(Checkpoint, "read", lambda path: read)
    with pytest.raises(DataError, match="export without --half"):
        export(tmp_path, tmp_path / "half", half=True)
    assert not (tmp_path / "half.safetensors").exists()
