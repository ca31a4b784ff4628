"""docs/reproduction.md says what results/ says; each row of Table 1 runs from nothing to its line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import reproduce
import reproduction
import table_one
import transfer
from conftest import ROOT, composed
from PIL import Image

from dtp_lightning import pipeline
from dtp_lightning.cli import evaluate_checkpoint
from dtp_lightning.config.keys import WHERE_DATA_LIES
from dtp_lightning.errors import DataError
from dtp_lightning.runs.reader import read_runs, save_runs

RESULTS = ROOT / "results"
ROWS = list(reproduce.rows())
THROUGH_THE_COMMAND = "table1/bp"  # in a process of its own, as make does; the others share this one


def test_the_page_says_what_the_results_say() -> None:
    page = reproduction.PAGE.read_text(encoding="utf-8")
    assert reproduction.filled(page, RESULTS) == page, "make reproduction-page"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of results/."""
    return shutil.copytree(RESULTS, tmp_path / "results")


def change(path: Path, **values: object) -> None:
    """Other values in the first run of a results file."""
    first, *others = read_runs([path])
    save_runs([first | values, *others], path)


def test_a_changed_result_changes_the_page(results: Path) -> None:
    page = reproduction.PAGE.read_text(encoding="utf-8")
    change(results / "distances.csv", **{"linear/test_acc": 0.5})
    assert reproduction.filled(page, results) != page


def test_a_verdict_that_no_longer_holds_stops_the_page(results: Path) -> None:
    path = results / "tuned_cifar10.csv"
    ahead = [run | {"linear_thesis/test_acc": 0.9 if run["learner"] != "bp" else 0.6} for run in read_runs([path])]
    save_runs(ahead, path)
    with pytest.raises(DataError, match=r"claim 'backprop', results/tuned_cifar10.csv.*'above 0'.*read the claim"):
        reproduction.filled("<!-- table: backprop -->\n<!-- end -->", results)


def test_a_condition_that_turned_stops_the_page(results: Path) -> None:
    path = results / "transfer.csv"
    save_runs([run | {"linear/test_acc": 0.6 + run["seed"] / 100} for run in read_runs([path])], path)
    with pytest.raises(DataError, match=r"'all labels': 'holds 0'.*read claim 5"):
        reproduction.filled("<!-- table: conditions -->\n<!-- end -->", results)


def test_two_runs_of_one_seed_stop_the_page(results: Path) -> None:
    change(results / "distances.csv", loss="simclr")
    with pytest.raises(DataError, match="several runs are one cell and seed"):
        reproduction.filled("<!-- table: losses -->\n<!-- end -->", results)


def told(loss: str, settings: str, seed: int, acc: float) -> dict:
    return {
        "settings": settings, "learner": "bp", "loss": loss, "model": "cnn4", "dataset": "cifar10", "seed": seed,
        "epochs": 5, "linear/test_acc": acc, "layerwise/stage1/test_acc": acc, "random_encoder/linear/test_acc": 0.5,
    }  # fmt: skip


def test_what_contrastive_gains_is_paired_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "transfer.csv"
    runs = [told("hinge", "", 0, 0.60), told("hinge", "", 1, 0.62)]
    noisy = [told("cross_entropy", "dataset.label_noise=0.8", seed, 0.55) for seed in (0, 1)]
    save_runs([*runs, *noisy], path)
    contrastive, wrong, random = transfer.table(tmp_path).splitlines()[2:]
    assert contrastive.startswith("| nothing: contrastive (hinge) | 2 | 61.0")
    assert wrong.startswith("| 80 % of labels wrong | 2 | 55.0") and "| 6.0 [-6.7, 18.7]" in wrong
    assert random.startswith("| random encoder | 2 | 50.0") and "| 11.0 [" in random
    transfer.draw(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    save_runs([*runs, told("cross_entropy", "dataset.label_noise=0.3", 0, 0.5)], path)
    with pytest.raises(DataError, match="not one of the conditions"):
        transfer.table(tmp_path)
    save_runs([*runs, *noisy, noisy[0]], path)
    with pytest.raises(DataError, match="two runs of '80 % of labels wrong', seed 0"):
        transfer.table(tmp_path)


def test_every_row_is_in_the_table_and_in_its_sweep() -> None:
    named = {row["preset"] for row in table_one.published()} - {"", "random"}
    assert named == {row for row in ROWS if row.startswith("table1/")}
    for protocol in table_one.PROTOCOLS:
        swept = (ROOT / "sweeps" / f"{protocol}.yaml").read_text().partition("experiment: " + protocol + "/bp,")[2]
        rows = {f"{protocol}/bp", *swept.splitlines()[0].split(",")}
        assert rows == {row for row in ROWS if row.startswith(f"{protocol}/")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled folder of colour images, in place of both data sets."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    return root


def tiny(images: Path) -> list[str]:
    """Two batches of eight images; a probe of two epochs."""
    node = "evaluation.transfer.to.cifar10"
    return [
        "dataset=cifar100_folder", f"dataset.root={images}", f"dataset@{node}=image_folder", f"{node}.root={images}",
        "batch_size=8", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        "evaluation.transfer.probe.epochs=2",
    ]  # fmt: skip


def here(words: Sequence[str], folder: Path) -> None:
    """A training in this process, with the file of its command line that Hydra leaves."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    pipeline.run(*composed(*words, "resume=true", "logger=none"), folder)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.usefixtures("no_pictures")
def test_a_row_from_nothing_to_its_line(row: str, images: Path, tmp_path: Path) -> None:
    words = reproduce.words_of(row, 3, 1, tiny(images))
    training = reproduce.train if row == THROUGH_THE_COMMAND else here
    assert reproduce.reproduce(words, tmp_path / "multirun", tmp_path / "table1.csv", training) == 1
    (found,) = read_runs([tmp_path / "table1.csv"])
    protocol, _, name = row.partition("/")
    stages = {"table1": 5, "table1_thesis": 4}[protocol]
    assert found["epochs"] == (stages if name in ("gll", "rll") else 1) and found["seed"] == 3
    assert f"experiment={row}" in found["settings"].split()
    assert found["learner"] == {"simclr": "bp"}.get(name, name.removesuffix("_few"))
    for encoder in ("", "random_encoder/"):
        assert 0 <= found[f"{encoder}transfer/cifar10/test_acc"] <= 1


@pytest.mark.usefixtures("no_pictures")
def test_snapshots_are_probed_once_and_more_epochs_go_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, runs = tmp_path / "table1.csv", tmp_path / "multirun"
    words = [*tiny(images), "callbacks.snapshots.epochs=[1,3,9]"]
    first = reproduce.words_of("table1_thesis/bp", 0, 1, words)
    assert reproduce.reproduce(first, runs, results, here) == 1
    more = reproduce.words_of("table1_thesis/bp", 0, 4, words)
    assert reproduce.folder_of(more, runs) == reproduce.folder_of(first, runs)
    assert reproduce.reproduce(more, runs, results, here) == 3
    assert [run["epochs"] for run in read_runs([results])] == [1, 3, 4], "snapshots of the list, and the end"
    lines = results.read_text()
    monkeypatch.setattr(evaluate_checkpoint, "evaluate", None)  # nothing is left to evaluate
    assert reproduce.reproduce(more, runs, results, None) == 3 and results.read_text() == lines


def test_a_row_has_the_folder_of_its_sweeps_job() -> None:
    elsewhere = [f"{WHERE_DATA_LIES[0]}=data", "evaluation.transfer.to.cifar10.root=/data"]
    words = reproduce.words_of("table1/bp", 1, 10, elsewhere)
    assert reproduce.folder_of(words, Path("m")) == Path("m/table1/experiment=table1/bp,seed=1")
    greedy = reproduce.words_of("table1/gll", 0, 10, [])
    assert {"trainer.max_epochs=50", "learner.epochs_per_stage=10"} <= set(greedy)
    assert "learner.epochs_per_stage=10" in str(reproduce.folder_of(greedy, Path("m"))), "other weights"
    assert not [word for word in reproduce.words_of("table1/gll", 0, None, []) if "epochs" in word]
