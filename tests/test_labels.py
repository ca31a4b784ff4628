"""Coarse, noisy and few labels: what a supervised objective is told, and that nothing else hears of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONF, ROOT, composed
from hydra import compose, initialize_config_dir
from numpy.random import default_rng
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from runs import TINY, assert_equal, figures, stored, weights

from dtp_lightning import pipeline
from dtp_lightning.cli import evaluate_checkpoint
from dtp_lightning.config.keys import SINCE
from dtp_lightning.config.run_config import OUR_KEYS
from dtp_lightning.config.schema import checked
from dtp_lightning.data import ImageData, Split, mnist5k, relabel
from dtp_lightning.data.coarse_classes import COARSE
from dtp_lightning.data.module import ImageDataModule
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.runs.folder import acquire
from dtp_lightning.runs.reader import config_of

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SUPERCLASS_OF = [  # coarse_labels of the published files, by fine label
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1,
    10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0,
    17, 8, 14, 13,
]  # fmt: skip
SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("transfer_*.yaml"))


@pytest.fixture(scope="module")
def photographs() -> ImageData:
    """CIFAR-10's classes, 40 images of 4 x 4 each for training; the first pixel of an image is its number."""

    def split(size: int) -> Split:
        images = torch.zeros(size, 3, 4, 4, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(size) % 256
        images[:, 0, 0, 1] = torch.arange(size) // 256
        return Split(images, torch.arange(size) % 10)

    return ImageData(split(400), split(50), split(50), CIFAR10, mirror_safe=True)


def numbers_of(split: Split) -> torch.Tensor:
    first = split.images[:][:, 0, 0].long()
    return first[:, 0] + 256 * first[:, 1]


def test_the_superclasses_are_the_published_ones() -> None:
    of = {fine: i for i, members in enumerate(COARSE["CIFAR-100"].values()) for fine in members}
    assert [of[fine] for fine in sorted(of)] == SUPERCLASS_OF
    animals = {"bird", "cat", "deer", "dog", "frog", "horse"}
    assert set(COARSE["CIFAR-10"]["animal"]) == animals
    assert set(COARSE["CIFAR-10"]["vehicle"]) == set(CIFAR10) - animals


def test_defaults_change_nothing(photographs: ImageData) -> None:
    assert relabel(photographs) is photographs
    assert relabel(photographs, "fine", 0, 1, label_seed=3) is photographs, "whole numbers too"


def test_coarse_labels_are_for_the_supervised_objective_alone(photographs: ImageData) -> None:
    data = relabel(photographs, labels="coarse")
    assert data.supervised_classes == ("animal", "vehicle") and data.classes == CIFAR10
    vehicle = torch.tensor([name in COARSE["CIFAR-10"]["vehicle"] for name in CIFAR10]).long()
    told = data.pretraining(supervised=True)
    assert torch.equal(told.labels, vehicle[photographs.train.labels]) and told.images is photographs.train.images
    assert torch.equal(data.validation.labels, vehicle[photographs.val.labels])
    assert (data.train, data.val, data.test) == (photographs.train, photographs.val, photographs.test)
    assert data.pretraining() is photographs.train


def test_coarse_labels_of_some_of_the_classes(photographs: ImageData) -> None:
    names = ("pear", "whale", "seal", "apple")  # in any order, and not all 100
    few = Split(photographs.train.images[:4], torch.tensor([0, 1, 2, 3]))
    data = relabel(replace(photographs, train=few, val=few, classes=names), labels="coarse")
    assert data.supervised_classes == ("aquatic_mammals", "fruit_and_vegetables")
    assert data.pretraining(supervised=True).labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("share", [0.4, 0.8, 1.0])
def test_noise_replaces_exactly_its_share_by_other_classes(share: float, photographs: ImageData) -> None:
    clean, data = photographs.train.labels, relabel(photographs, label_noise=share)
    noisy = data.pretraining(supervised=True).labels
    assert (noisy != clean).sum() == share * 400 and noisy.min() >= 0 and noisy.max() < 10
    shifts = ((noisy - clean) % 10)[noisy != clean].bincount(minlength=10)
    expected = share * 400 / 9
    assert shifts[0] == 0 and ((shifts[1:] - expected) ** 2 / expected).sum() < 26.1, "chi-square, 8 degrees, 0.001"
    assert torch.equal(data.validation.labels, photographs.val.labels) and data.train is photographs.train


def test_noise_has_its_own_seed_and_grows(photographs: ImageData) -> None:
    def noisy(**options: float) -> torch.Tensor:
        torch.manual_seed(int(options.pop("run", 0)))
        return relabel(photographs, **options).pretraining(supervised=True).labels  # type: ignore[arg-type]

    clean, some, more = photographs.train.labels, noisy(label_noise=0.4), noisy(label_noise=0.8)
    assert torch.equal(noisy(label_noise=0.4, run=5), some), "whatever the run's seed"
    assert not torch.equal(noisy(label_noise=0.4, label_seed=1), some)
    assert torch.equal(more[some != clean], some[some != clean]), "the labels that are wrong already stay as they are"
    coarse = noisy(labels="coarse", label_noise=1.0)
    assert torch.equal(coarse, 1 - relabel(photographs, "coarse").pretraining(supervised=True).labels)


@pytest.mark.parametrize("share,per_class", [(0.001, 1), (0.1, 4), (0.35, 14), (0.8, 32)])
def test_a_share_of_each_class_is_labelled_and_recurs(share: float, per_class: int, photographs: ImageData) -> None:
    data = relabel(photographs, labelled_fraction=share)
    told = data.pretraining(supervised=True)
    assert len(told) == 400 and told.images.shape == (400, 3, 4, 4), "an epoch stays as long as it was"
    number, count = numbers_of(told).unique(return_counts=True)
    assert photographs.train.labels[number].bincount().tolist() == [per_class] * 10
    assert count.max() - count.min() <= 1, "all recur equally often"
    assert torch.equal(told.labels, photographs.train.labels[numbers_of(told)]), "each has its own label"
    assert data.pretraining() is photographs.train, "a contrastive objective sees all"


def test_what_recurs_once_more_is_of_no_certain_class(photographs: ImageData) -> None:
    ordered = photographs.train.labels.argsort(stable=True)  # as folders give them
    data = relabel(replace(photographs, train=photographs.train.select(ordered)), labelled_fraction=0.8)
    counts = data.pretraining(supervised=True).labels.bincount()
    assert counts.sum() == 400 and counts.max() - counts.min() < 20, counts


def test_a_smaller_share_is_part_of_a_larger_one(photographs: ImageData) -> None:
    def seen(share: float, seed: int = 0) -> set[int]:
        data = relabel(photographs, labelled_fraction=share, label_seed=seed)
        return set(numbers_of(data.pretraining(supervised=True)).tolist())

    assert seen(0.05) < seen(0.1) < seen(0.5) and seen(0.1) != seen(0.1, seed=1)
    coarse = relabel(photographs, labels="coarse", labelled_fraction=0.1).pretraining(supervised=True)
    assert set(numbers_of(coarse).tolist()) == seen(0.1), "the same images, whatever they are called"


def test_noise_among_few_labels(photographs: ImageData) -> None:
    told = relabel(photographs, label_noise=0.5, labelled_fraction=0.1).pretraining(supervised=True)
    label_of = dict(zip(numbers_of(told).tolist(), told.labels.tolist(), strict=True))
    wrong = [label != photographs.train.labels[number] for number, label in label_of.items()]
    assert (sum(wrong), len(wrong)) == (20, 40)
    assert all(label_of[n] == y for n, y in zip(numbers_of(told).tolist(), told.labels.tolist(), strict=True)), (
        "for good"
    )


def test_batches_from_memory_and_from_workers_are_the_same(photographs: ImageData) -> None:
    data = relabel(photographs, "coarse", 0.4, 0.1)
    loaders = [
        ImageDataModule(data, 30, 0, supervised=True, loading=loading, workers=0) for loading in ("memory", "stream")
    ]
    batches = [list(loader.train_dataloader()) for loader in loaders]
    assert len(batches[0]) == 14
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert next(iter(loaders[0].val_dataloader())).labels.max() == 1, "the validation loss has the same classes"


def test_unlabelled_images_are_for_contrastive_objectives(photographs: ImageData) -> None:
    extra = Split.unlabelled(torch.zeros(7, 3, 4, 4, dtype=torch.uint8))
    data = relabel(replace(photographs, unlabelled=extra), labelled_fraction=0.1)
    assert len(data.pretraining()) == 7 and len(data.pretraining(supervised=True)) == 400
    assert len(data.in_memory().pretraining(supervised=True)) == 400


WRONG = [
    (
        {"labels": "coarse"},
        tuple("0123"),
        r"classes 0, 1, 2, \.\.\. have no coarse ones; there is: CIFAR-10 \(2 coarse ",
    ),
    ({"labels": "coarse"}, ("cat", "dog", "bird", "frog"), "all classes are animal; choose dataset.labels=fine"),
    ({"labels": "coarse"}, (), "dataset.labels=coarse: these images have no labels; remove it"),
    ({"label_noise": 0.1}, (), "dataset.label_noise=0.1: these images have no labels; remove it"),
    ({"label_noise": 0.1}, ("cat",), "the images are all of one class"),
]


@pytest.mark.parametrize("options,classes,message", WRONG)
def test_what_cannot_be_told(options: dict, classes: tuple[str, ...], message: str, photographs: ImageData) -> None:
    with pytest.raises(DataError, match=message) as raised:
        relabel(replace(photographs, classes=classes), **options)
    assert "\n" not in str(raised.value)


def test_four_places_say_the_same() -> None:
    """The function, the schema, the configuration, and the table of what older runs did."""
    parameters = list(inspect.signature(relabel).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters}
    assert defaults.keys() == OUR_KEYS["dataset"].keys()
    assert yaml.safe_load((CONF / "train.yaml").read_text())["dataset"] == defaults
    assert {f"dataset.{name}": value for name, value in defaults.items()}.items() <= SINCE.items()


OUT_OF_RANGE = [
    ("dataset.labels=corse", "dataset.labels=corse: must be one of fine, coarse; did you mean 'coarse'?"),
    ("dataset.label_noise=1.2", "dataset.label_noise=1.2: should be less than or equal to 1"),
    ("dataset.labelled_fraction=0", "dataset.labelled_fraction=0: should be greater than 0"),
    ("dataset.labelled_fraction=2", "dataset.labelled_fraction=2: should be less than or equal to 1"),
    ("dataset.label_seed=-1", "dataset.label_seed=-1: should be greater than or equal to 0"),
    ("+dataset.label_nois=0.4", "unknown key 'dataset.label_nois'; did you mean 'dataset.label_noise'?"),
]


@pytest.mark.parametrize("word,message", OUT_OF_RANGE)
def test_values_are_checked(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(composed(word)[0])
    assert message in str(raised.value)


FEW = ("dataset.label_noise=0.5", "dataset.labelled_fraction=0.1")


@pytest.mark.usefixtures("no_pictures")
def test_a_contrastive_run_is_the_same_whatever_labels_say(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    words = (*TINY, "trainer.max_epochs=1", "evaluation=[knn]")
    run_pipeline(*words, folder=tmp_path / "plain")
    run_pipeline(*words, *FEW, folder=tmp_path / "told")
    assert_equal(weights(tmp_path / "told"), weights(tmp_path / "plain"), "weights")
    assert figures(tmp_path / "told") == figures(tmp_path / "plain")


@pytest.mark.usefixtures("no_pictures")
def test_supervised_pretraining_on_coarse_labels_is_probed_on_fine_ones(
    run_pipeline: Callable[..., dict], tmp_path: Path
) -> None:
    generator = default_rng(0)
    for name in ("cat", "dog", "ship", "truck"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype="uint8")
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{i}.png")
    words = (
        *TINY, "trainer.max_epochs=1", "dataset=image_folder", f"dataset.root={tmp_path / 'data'}", "dataset.size=16",
        "batch_size=8", "learner=bp", "loss=cross_entropy", "evaluation=[knn]", "callbacks=[alignment,online_knn]",
        "dataset.labels=coarse", *FEW,
    )  # fmt: skip
    folder = tmp_path / "run"
    summary = run_pipeline(*words, folder=folder)
    made = stored(folder)["hyper_parameters"]
    assert made["classes"] == ["animal", "vehicle"], "what the head tells apart"
    assert [len(w) for name, w in weights(folder).items() if name.endswith("head.bias") or "head" in name][-1] == 2
    with initialize_config_dir(str(CONF), version_base="1.3"):
        line = [f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}", "evaluation=[knn]", "accelerator=cpu"]
        config = compose("evaluate", line, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    (tmp_path / "again").mkdir()
    again = evaluate_checkpoint.evaluate(config, choices, tmp_path / "again", tmp_path)
    assert {k: v for k, v in again.items() if "knn" in k} == {k: v for k, v in summary.items() if "knn" in k}
    spoilt = run_pipeline(*words, "dataset.label_noise=1.0", folder=tmp_path / "spoilt")
    same = {k: v for k, v in summary.items() if k.startswith("random_encoder/")}
    assert same and all(spoilt[k] == v for k, v in same.items()), "probes of what no label touched"


def test_run_folders_of_before_there_were_such_options(tmp_path: Path) -> None:
    config = checked(composed()[0])
    old = config.model_dump()
    for name in OUR_KEYS["dataset"]:
        del old["dataset"][name]
    OmegaConf.save(OmegaConf.create(old), tmp_path / "config.yaml")
    with acquire(tmp_path, checked(composed("resume=true")[0])) as state:
        assert state.finished is None
    message = r"another dataset\.labels \(was fine, now coarse\): resume it as it was"
    with (
        pytest.raises(ConfigError, match=message),
        acquire(tmp_path, checked(composed("resume=true", "dataset.labels=coarse")[0])),
    ):
        pass
    (tmp_path / "new").mkdir()
    OmegaConf.save(OmegaConf.create(config.model_dump()), tmp_path / "new" / "config.yaml")
    assert config_of(tmp_path) == config_of(tmp_path / "new"), "a report sees no difference"


def job_of(name: str) -> tuple[DictConfig, dict[str, str]]:
    """The last job of a sweep: its configuration and choices, on embedded images, with two batches."""
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        search = f"hydra.searchpath=[file://{CONF}]"
        params = compose(name, [search], return_hydra_config=True).hydra.sweeper.params
        words = [f"{key}={str(value).split(',')[-1]}" for key, value in params.items()]
        quick = ["dataset=mnist5k", "trainer.max_epochs=1", "++trainer.limit_train_batches=2", "model.channels=[4,6]"]
        quick += ["evaluation.layerwise.train_images=200", "evaluation.layerwise.probe.strengths=[1e-2]"]
        quick += ["evaluation.linear.max_iter=20", "evaluation.layerwise.probe.max_iter=20"]
        quick += [
            "++trainer.limit_val_batches=1",
            "evaluation.linear.strengths=[1e-2]",
            "evaluation.layerwise.max_features=16",
        ]
        config = compose(name, [*words, *quick, search], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    return config, choices


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", SWEEPS)
def test_a_job_of_each_comparison(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COARSE, "digits", {"low": tuple("01234"), "high": tuple("56789")})
    config, choices = job_of(name)
    summary = pipeline.run(config, choices, tmp_path)
    assert choices["loss"] == ("hinge" if name == "transfer_contrastive" else "cross_entropy")
    assert {"linear/test_acc", "layerwise/stage1/test_acc", "knn/test_acc"} <= summary.keys()
    supervised = relabel(mnist5k(), **checked(config).label_options).supervision
    assert (supervised is None) == (name == "transfer_contrastive")
    if name in ("transfer_noise", "transfer_few_labels"):
        assert config.dataset.label_seed == config.seed == 2
