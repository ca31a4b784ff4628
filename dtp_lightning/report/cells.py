"""Runs -> cells: what differs in nothing but the seed, what is to be compared, and what should not have differed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtp_lightning.config.keys import key, key_of_override
from dtp_lightning.report.statistics import Interval
from dtp_lightning.runs.reader import config_of, trained_in
from dtp_lightning.runs.summary import AXES, RANDOM

Run = Mapping[str, Any]
ABSENT = "(not there)"
PREFERRED = ("linear", "linear_thesis", "knn")  # whose accuracy stands for a task, the first that is there
RANDOM_NAME = "random encoder"


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed.

    Attributes:
        names: axis -> value, and ``settings``, all as text.
        runs: seed -> summary; the summaries of a seed's several folders are merged.
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

    @property
    def training(self) -> Path:
        """Folder of the training with its lowest seed."""
        return trained_in(next(iter(self.folders.values()))[0])

    def values(self, name: str, factor: float = 1.0) -> dict[int, float]:
        """Seed -> quantity, of the runs that have it."""
        return {seed: factor * run[name] for seed, run in self.runs.items() if run.get(name) is not None}

    def interval(self, name: str, factor: float = 1.0) -> Interval | None:
        """The quantity's mean over seeds; None where no run has it."""
        values = self.values(name, factor)
        return Interval.of(list(values.values())) if values else None


def cells_of(runs: Sequence[Run]) -> list[Cell]:
    """One cell for each combination of axes and settings, in the order of the runs; cells of a task stand together."""
    by_names: dict[tuple[str, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_names[*(str(run[axis]) for axis in AXES), run["settings"]][run["seed"]].append(run)
    cells = []
    for names, seeds in by_names.items():
        # an evaluation adds to the run that it evaluates, so it comes second
        ordered = {seed: sorted(seeds[seed], key=lambda run: "checkpoint" in run) for seed in sorted(seeds)}
        merged = {seed: {name: v for run in runs for name, v in run.items()} for seed, runs in ordered.items()}
        folders = {seed: [Path(run["folder"]) for run in runs] for seed, runs in ordered.items()}
        cells.append(Cell(dict(zip((*AXES, "settings"), names, strict=True)), merged, folders))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    return sorted(cells, key=lambda cell: tasks.index(cell.task))


def random_cells(runs: Sequence[Run]) -> list[Cell]:
    """A cell of untrained encoders for each data set (that of the evaluation), model, and settings of these two.

    An untrained encoder depends on its seed alone: however many trainings began with it, it counts once. Its quantities
    have the names of the trained one's; its ``names`` have no loss, its ``folders`` are empty.
    """
    by_names: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        values = {name.removeprefix(RANDOM): value for name, value in run.items() if name.startswith(RANDOM)}
        if values:
            settings = " ".join(word for word in run["settings"].split() if key_of_override(word).of_untrained)
            by_names[run.get("evaluated_on", run["dataset"]), run["model"], settings][run["seed"]] |= values
    return [
        Cell(
            {"dataset": dataset, "model": model, "loss": "", "learner": RANDOM_NAME, "epochs": "0", "settings": words},
            {seed: seeds[seed] for seed in sorted(seeds)},
            {},
        )
        for (dataset, model, words), seeds in by_names.items()
    ]


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
    names = dict.fromkeys(name for run in runs for name in run if name.endswith(ending) and not name.startswith(RANDOM))
    return [name.removesuffix(ending) for name in names]


def main_probe(cells: Sequence[Cell], split: str) -> str | None:
    """The probe to show where there is room for one: of those that these cells have."""
    probes = probes_of([run for cell in cells for run in cell.runs.values()], split)
    return next((probe for probe in (*PREFERRED, *probes) if probe in probes), None)


def differing(configs: Mapping[Any, Mapping[str, str]]) -> dict[Any, dict[str, str]]:
    """What is not the same in all: name -> key -> own value; nothing for names without a configuration."""
    known = {name: config for name, config in configs.items() if config}
    keys = sorted({k for config in known.values() for k in config})
    differ = [k for k in keys if len({config.get(k, ABSENT) for config in known.values()}) > 1]
    return {name: {k: config.get(k, ABSENT) for k in differ if known.get(name)} for name, config in configs.items()}


def differences_between(a: Cell, b: Cell) -> list[str]:
    """Keys in which two cells' trainings differ and that matter (:attr:`~dtp_lightning.config.keys.Key.may_differ`)."""
    configs = {i: config_of(cell.training) for i, cell in enumerate((a, b))}
    if len({"checkpoint" in config for config in configs.values()}) > 1:
        return []  # a training and an evaluation have other keys
    return [name for name in differing(configs)[0] if not key(name).may_differ]


def differences_within(cells: Iterable[Cell]) -> dict[str, dict[str, list[str]]]:
    """Keys of config.yaml that differ between runs of one cell although neither its axes nor its settings say so.

    Trainings are compared with trainings and evaluations with evaluations, because their keys are others.

    Returns:
        cell -> key -> its values.
    """
    cells = list(cells)
    differences = _differences_within(cells, defaults=False)
    if any(ABSENT in values for keys in differences.values() for values in keys.values()):
        return _differences_within(cells, defaults=True)  # an older version may have had fewer parameters
    return differences


def _differences_within(cells: Iterable[Cell], *, defaults: bool) -> dict[str, dict[str, list[str]]]:
    differences: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        kinds: dict[bool, dict[Path, dict[str, str]]] = {True: {}, False: {}}
        for folder in (folder for folders in cell.folders.values() for folder in folders):
            config = config_of(folder, defaults=defaults)
            if "checkpoint" in config and trained_in(folder) != folder:
                trained = trained_in(folder)
                kinds[False][trained] = config_of(trained, defaults=defaults)
            kinds["checkpoint" in config][folder] = config
        label = " ".join(value for value in cell.names.values() if value)
        for configs in kinds.values():
            for difference in differing(configs).values():
                for name, value in difference.items():
                    if not key(name).may_differ:
                        values = differences.setdefault(label, {}).setdefault(name, [])
                        values.extend([value] if value not in values else [])
    return differences


def duplicate_trainings(cells: Iterable[Cell]) -> list[str]:
    """Sentences about seeds that a cell has more than one training of: only the last is counted."""
    sentences = []
    for cell in cells:
        for seed, folders in cell.folders.items():
            trainings = [folder for folder in folders if "checkpoint" not in config_of(folder)]
            if len(trainings) > 1:
                where = ", ".join(map(str, trainings))
                sentences.append(f"{cell.names['learner']}, seed {seed} was trained {len(trainings)} times ({where})")
    return sentences


def warnings_of(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each cell with runs whose summary says that their figures are worth little (``warnings``)."""
    sentences = []
    for cell in cells:
        told = {seed: run["warnings"] for seed, run in cell.runs.items() if run.get("warnings")}
        if told:
            seed, first = next(iter(told.items()))
            which = f"{len(told)} of {len(cell.runs)} runs, seed {seed}" if len(cell.runs) > 1 else f"seed {seed}"
            sentences.append(f"{cell.names['learner']} ({group_label(cell)}), {which}: {', '.join(first)}")
    return sentences


def group_label(cell: Cell, among: Sequence[Cell] = ()) -> str:
    """What a group of learners shares: data set, model, loss, epochs, settings, as text.

    Args:
        cell: one of the group.
        among: leaves out what all of these cells share.
    """
    axes = [a for a in cell.names if a != "learner" and (not among or len({c.names[a] for c in among}) > 1)]
    words = {axis: cell.names[axis] for axis in axes if cell.names[axis]}
    return " · ".join(f"{word} epochs" if axis == "epochs" else word for axis, word in words.items()) or "no settings"
