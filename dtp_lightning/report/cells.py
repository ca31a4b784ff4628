"""Runs -> cells: what differs in nothing but the seed, what is to be compared, and what should not have differed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtp_lightning.config.flatten import flatten
from dtp_lightning.config.keys import key as key_of
from dtp_lightning.report.statistics import Interval
from dtp_lightning.runs.summary import AXES, RANDOM

Run = Mapping[str, Any]
ABSENT = "(not there)"
PREFERRED = ("linear", "linear_thesis", "knn")  # whose accuracy stands for a task, the first that is there


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed.

    Attributes:
        names: axis -> value, and ``settings``, all as text.
        runs: seed -> summary; what was found about a seed in several folders is joined.
        folders: seed -> these folders; the first is that of the training, if it is among the runs.
    """

    names: Mapping[str, str]
    runs: Mapping[int, Run]
    folders: Mapping[int, Sequence[Path]]

    @property
    def group(self) -> tuple[str, ...]:
        """Cells with the same one differ in the learner alone."""
        return tuple(value for name, value in self.names.items() if name != "learner")

    @property
    def task(self) -> tuple[str, ...]:
        """Data set, model and loss: cells that share a figure."""
        return tuple(self.names[name] for name in ("dataset", "model", "loss"))

    def values(self, key: str, factor: float = 1.0) -> dict[int, float]:
        """Seed -> quantity, of the runs that have it."""
        return {seed: factor * run[key] for seed, run in self.runs.items() if run.get(key) is not None}

    def interval(self, key: str, factor: float = 1.0) -> Interval | None:
        """Its mean over seeds; None where no run has it."""
        found = self.values(key, factor)
        return Interval.of(list(found.values())) if found else None


def cells_of(runs: Sequence[Run]) -> list[Cell]:
    """One cell for each combination of axes and settings, in the order of the runs."""
    found: dict[tuple[str, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[*(str(run[axis]) for axis in AXES), run["settings"]][run["seed"]].append(run)
    cells = []
    for names, seeds in found.items():
        # an evaluation adds to the run it is of, so that it comes second
        ordered = {seed: sorted(seeds[seed], key=lambda run: "checkpoint" in run) for seed in sorted(seeds)}
        joined = {seed: {key: v for run in runs for key, v in run.items()} for seed, runs in ordered.items()}
        folders = {seed: [Path(run["folder"]) for run in runs] for seed, runs in ordered.items()}
        cells.append(Cell(dict(zip((*AXES, "settings"), names, strict=True)), joined, folders))
    return cells


def labels_of(cells: Sequence[Cell]) -> list[str]:
    """A name for each cell within its task: the learner, and those of epochs and settings that vary."""
    words = [set(cell.names["settings"].split()) for cell in cells]
    common = set.intersection(*words) if words else set()
    vary = len({cell.names["epochs"] for cell in cells}) > 1
    labels = []
    for cell in cells:
        own = [word for word in cell.names["settings"].split() if word not in common]
        epochs = [f"{cell.names['epochs']} epochs"] if vary else []
        labels.append(", ".join([cell.names["learner"], *epochs, *own]))
    return labels


def probes_of(runs: Sequence[Run], split: str) -> list[str]:
    """Names of the probes that some run has an accuracy of on this split."""
    ending = f"/{split}_acc"
    keys = dict.fromkeys(key for run in runs for key in run if key.endswith(ending) and not key.startswith(RANDOM))
    return [key.removesuffix(ending) for key in keys]


def main_probe(cells: Sequence[Cell], split: str) -> str | None:
    """The probe to show where there is room for one: of those that these cells have."""
    probes = probes_of([run for cell in cells for run in cell.runs.values()], split)
    return next((probe for probe in (*PREFERRED, *probes) if probe in probes), None)


def random_encoders(runs: Sequence[Run]) -> dict[tuple[str, str], dict[int, Run]]:
    """(data set evaluated on, model) -> seed -> a summary that holds the untrained encoder's accuracies.

    The untrained encoder depends on the seed alone: however many rules started from it, it counts once.
    """
    found: dict[tuple[str, str], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if any(key.startswith(RANDOM) for key in run):
            seeds = found[run.get("evaluated_on", run["dataset"]), run["model"]]
            seeds[run["seed"]] = {**seeds.get(run["seed"], {}), **run}
    return found


def config_of(folder: Path, *, defaults: bool = False) -> dict[str, str]:
    """A run's config.yaml as dotted key -> value, both text; empty where there is none.

    Args:
        folder: the run's.
        defaults: also what the file leaves to the defaults of classes, which then have to be loaded (seconds).
    """
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    if defaults:
        from dtp_lightning.config.instantiate import with_defaults  # checks of numbers load torch

        config = with_defaults(config)
    return {key: str(value) for key, value in flatten(config)}


def trained_in(folder: Path) -> Path:
    """Where the training of this run is written down: for an evaluation the folder of its checkpoint, if it is here."""
    checkpoint = config_of(folder).get("checkpoint")
    if checkpoint:
        trained = Path(checkpoint).parent.parent
        return trained if (trained / "config.yaml").exists() else folder
    return folder


def differing(configs: Mapping[Any, Mapping[str, str]]) -> dict[Any, dict[str, str]]:
    """What is not the same in all: name -> key -> own value; nothing for names without a configuration."""
    known = {name: config for name, config in configs.items() if config}
    keys = sorted({key for config in known.values() for key in config})
    differ = [key for key in keys if len({config.get(key, ABSENT) for config in known.values()}) > 1]
    return {name: {k: config.get(k, ABSENT) for k in differ if known.get(name)} for name, config in configs.items()}


def unexpected(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Keys of config.yaml that differ between runs of one cell although neither its axes nor its settings say so.

    Trainings are compared with trainings and evaluations with evaluations, because their keys are others.

    Returns:
        cell -> key -> the values seen.
    """
    found = _unexpected(runs, defaults=False)
    if any(ABSENT in values for keys in found.values() for values in keys.values()):
        return _unexpected(runs, defaults=True)  # an older version may have had fewer parameters
    return found


def _unexpected(runs: Sequence[Run], *, defaults: bool) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells_of(runs):
        kinds: dict[bool, dict[Path, dict[str, str]]] = {True: {}, False: {}}
        for folder in (folder for folders in cell.folders.values() for folder in folders):
            config = config_of(folder, defaults=defaults)
            if "checkpoint" in config and trained_in(folder) != folder:
                trained = trained_in(folder)
                kinds[False][trained] = config_of(trained, defaults=defaults)
            kinds["checkpoint" in config][folder] = config
        name = " ".join(value for value in cell.names.values() if value)
        for configs in kinds.values():
            for difference in differing(configs).values():
                for key, value in difference.items():
                    if not key_of(key).may_differ:
                        values = found.setdefault(name, {}).setdefault(key, [])
                        values.extend([value] if value not in values else [])
    return found


def repeated(cells: Iterable[Cell]) -> list[str]:
    """Sentences about seeds that a cell has more than one training of: only the last is counted."""
    sentences = []
    for cell in cells:
        for seed, folders in cell.folders.items():
            trainings = [folder for folder in folders if "checkpoint" not in config_of(folder)]
            if len(trainings) > 1:
                where = ", ".join(map(str, trainings))
                sentences.append(f"{cell.names['learner']}, seed {seed} was trained {len(trainings)} times ({where})")
    return sentences
