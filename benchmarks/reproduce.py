"""One row of Table 1, from nothing to its line: ``make reproduce ROW=table1/bp [EPOCHS=10] [SEED=0]``.

Trains the row, or goes on where it stopped; probes the snapshots that have no line yet; writes a line for each to
results/table1.csv, and the tables of docs/reproduction.md. Without a row it lists them.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

import reproduction
import table_one
from omegaconf import OmegaConf

from dtp_lightning.cli import paths
from dtp_lightning.cli.words import quoted
from dtp_lightning.config.keys import key_of_override
from dtp_lightning.runs.reader import read_runs, save_runs
from dtp_lightning.runs.status import finished
from dtp_lightning.runs.summary import AXES

PUBLISHED_EPOCHS = 400
RESULTS = reproduction.ROOT / "results" / "table1.csv"


def rows() -> dict[str, str]:
    """Preset of every row -> the first line of its file."""
    experiments = paths.conf() / "experiment"
    files = [path for group in table_one.PROTOCOLS for path in sorted((experiments / group).glob("*.yaml"))]
    return {
        str(path.relative_to(experiments).with_suffix("")): path.read_text().splitlines()[1].lstrip("# ")
        for path in files
    }


def words_of(row: str, seed: int, epochs: int | None, words: Sequence[str]) -> list[str]:
    """The training's command line, without its folder.

    Args:
        row: preset.
        seed: of the training.
        epochs: of each stage for layer-wise learning, of the network for the others; None is the paper's 400.
        words: more of the command line.
    """
    preset = OmegaConf.load(paths.conf() / "experiment" / f"{row}.yaml")
    total = OmegaConf.select(preset, "trainer.max_epochs", default=PUBLISHED_EPOCHS)
    chosen = [f"experiment={row}", f"seed={seed}", *words]
    if epochs is not None:
        chosen.append(f"trainer.max_epochs={epochs * total // PUBLISHED_EPOCHS}")
        if OmegaConf.select(preset, "learner.epochs_per_stage") is not None:
            chosen.append(f"learner.epochs_per_stage={epochs}")
    return chosen


def folder_of(words: Sequence[str], runs: Path) -> Path:
    """The folder of a training: that of the same job in ``dtp sweep table1``, whatever its number of epochs."""
    group = next(word for word in words if word.startswith("experiment=")).partition("=")[2].partition("/")[0]
    keys = {word: key_of_override(word) for word in words}
    # epochs, paths and what else may change on resume name no folder
    named = [word for word, key in keys.items() if key.in_folder_name and (key.splits_cells or not key.free_on_resume)]
    return runs / group / ",".join(sorted(named))


def train(words: Sequence[str], folder: Path) -> None:
    """Run, or go on with, a training in a process of its own; ends this one where it fails."""
    place = f"hydra.run.dir={quoted(str(folder))}"
    command = [sys.executable, "-m", "dtp_lightning", "train", *words, "resume=true", "logger=none", place]
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(f"error: the training ended with {done.returncode}; the same command goes on with it")


def probe(folder: Path, evaluations: Path) -> list[Path]:
    """Evaluate, as the run itself does at its end, the snapshots of a run that were not evaluated yet.

    Args:
        folder: of the training.
        evaluations: gets a folder for each snapshot.

    Returns:
        the folders that hold figures of this run.
    """
    from dtp_lightning.cli import evaluate_checkpoint  # torch and Lightning take seconds

    found = [folder] if finished(folder) else []
    done = {run["epochs"] for run in read_runs(found)}
    evaluation = OmegaConf.load(folder / "config.yaml").evaluation
    for snapshot in sorted((folder / "checkpoints").glob("epoch*.ckpt")):
        place = evaluations / snapshot.stem
        if int(snapshot.stem.removeprefix("epoch")) in done:
            continue  # the run's end
        if not finished(place):
            shutil.rmtree(place, ignore_errors=True)  # an evaluation that was broken off begins again
            place.mkdir(parents=True)
            asked = {"checkpoint": str(snapshot.resolve()), "accelerator": "auto", "evaluation": evaluation}
            evaluate_checkpoint.evaluate(OmegaConf.create(asked), {}, place, Path.cwd())
        found.append(place)
    return found


def collect(folders: Sequence[Path], results: Path) -> int:
    """Write a line for each row, seed and number of epochs; lines that are there stay, and are replaced by newer ones.

    Args:
        folders: of runs and of evaluations.
        results: CSV file.

    Returns:
        number of its lines.
    """
    lines: dict[tuple, dict] = {}
    for run in read_runs([*([results] if results.exists() else []), *folders]):
        key = (run["settings"], *(run[axis] for axis in AXES), run["seed"])
        lines[key] = lines.get(key, {}) | run
    ordered = sorted(lines.values(), key=lambda run: (run["settings"], run["dataset"], run["seed"], run["epochs"]))
    save_runs(ordered, results)
    return len(ordered)


def reproduce(
    words: Sequence[str], runs: Path, results: Path, training: Callable[[Sequence[str], Path], object] | None = train
) -> int:
    """Train, probe and collect.

    Args:
        words: from :func:`words_of`.
        runs: where the trainings' folders are; those of evaluations are in ``evaluations`` beside it.
        results: CSV file.
        training: called with the words and the folder; None probes what is there.

    Returns:
        number of lines of the CSV file.
    """
    folder = folder_of(words, runs)
    if training is not None:
        training(words, folder)
    if not (folder / "config.yaml").exists():
        sys.exit(f"error: no training in {folder}")
    folders = probe(folder, runs.parent / "evaluations" / folder.relative_to(runs))
    if not folders:
        sys.exit(f"error: {folder} has neither figures nor snapshots yet")
    return collect(folders, results)


def count_costs(path: Path) -> None:
    """Write the multiply-accumulates of a view of an image, and the epochs, of each row."""
    from hydra import compose, initialize_config_dir  # and torch, take seconds

    from dtp_lightning.callbacks.macs import macs_per_image
    from dtp_lightning.config.instantiate import build
    from dtp_lightning.config.schema import checked
    from dtp_lightning.data.images import ImageSpec
    from dtp_lightning.losses import as_objective

    images = ImageSpec(channels=3, height=32, width=32, mirror_safe=True)
    with path.open("w", newline="") as file, initialize_config_dir(str(paths.conf()), version_base="1.3"):
        writer = csv.writer(file)
        writer.writerow(["preset", "epochs", "macs_per_image"])
        for row in rows():
            config = checked(compose("train", [f"experiment={row}"]))
            model = build(config.model, images=images, classes=None)
            learner = build(config.learner, model=model, loss=as_objective(build(config.loss)))
            writer.writerow([row, config.max_epochs, f"{macs_per_image(learner, images, 2):.0f}"])


def main() -> None:
    """List the rows, or make one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", help="preset, such as table1/bp")
    parser.add_argument("--epochs", type=int, help="fewer than 400; of each stage for GLL, and on average for RLL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-train", action="store_true", help="only probe the snapshots that are there")
    parser.add_argument("words", nargs="*", help="passed on to dtp train: dataset=cifar100_folder")
    parser.add_argument("--cost", action="store_true", help="count the multiply-accumulates of every row")
    arguments = parser.parse_intermixed_args()
    if arguments.cost:
        count_costs(RESULTS.with_name("table1_cost.csv"))
        return
    if arguments.row is None:
        width = max(map(len, rows()))
        print("\n".join(f"{name:<{width}}  {says}" for name, says in rows().items()))
        print("\nmake reproduce ROW=table1/bp EPOCHS=10 SEED=0        the untrained encoder comes with every row")
        return
    if arguments.row not in rows():
        near = get_close_matches(arguments.row, rows(), 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        parser.error(f"{arguments.row}: no such row; {hint}make reproduce lists them")
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error(f"--epochs {arguments.epochs}: give a number of 1 or more")
    words = words_of(arguments.row, arguments.seed, arguments.epochs, arguments.words)
    count = reproduce(words, Path("multirun"), RESULTS, None if arguments.no_train else train)
    print(f"{RESULTS.relative_to(reproduction.ROOT)}: {count} lines")
    reproduction.write()


if __name__ == "__main__":
    main()
