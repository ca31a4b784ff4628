"""Runs -> one HTML file that opens from disk: table, paired differences, figures, and every run.

What it shows is collected here; the templates say how it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from dtp_lightning.report.alignment import alignment_table, legend, stages_of
from dtp_lightning.report.cells import (
    ABSENT,
    Cell,
    Run,
    cells_of,
    differences_between,
    differences_within,
    differing,
    duplicate_trainings,
    group_label,
    probes_of,
    warnings_of,
)
from dtp_lightning.report.page_figures import figures
from dtp_lightning.report.pictures import link_to, pictures
from dtp_lightning.report.tables import NONE, comparison_table, csv_table, extremes_table, paired_table, pairs
from dtp_lightning.runs.reader import config_of
from dtp_lightning.runs.summary import AXES
from dtp_lightning.runtime.files import write_atomically

AT_THE_HEAD = 6  # conclusions shown at the head of the page; if there are more, all follow their table
THUMBNAILS = ("views", "distances", "embedding_map", "neighbours", "filters")

templates = Environment(
    loader=PackageLoader("dtp_lightning.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Head:
    """What is compared on what, how much of it there is, and by which code; all but the numbers as text."""

    learners: str
    shared: Mapping[str, str]
    finished: int
    several_seeds: bool
    seeds: str
    commits: Sequence[str]

    @classmethod
    def of(cls, cells: Sequence[Cell], runs: Sequence[Run]) -> Head:
        """From the cells of these runs."""
        names = {axis: ", ".join(dict.fromkeys(cell.names[axis] for cell in cells)) for axis in AXES}
        seeds = sorted({seed for cell in cells for seed in cell.runs})
        return cls(
            learners=names.pop("learner"),
            shared=names,
            finished=sum(len(cell.runs) for cell in cells),
            several_seeds=len(seeds) != 1,
            seeds=", ".join(map(str, seeds)) if len(seeds) < 9 else f"{len(seeds)} of {seeds[0]} to {seeds[-1]}",
            commits=[_short(commit) for commit in sorted({_commit(run) for run in runs})],
        )


@dataclass(frozen=True)
class ListedRun:
    """A run's row in the list of runs: its folder's name and address, own configuration, and pictures, as text."""

    seed: int
    folder: str
    link: str
    differs: str
    commit: str
    pictures: Sequence[str]


@dataclass(frozen=True)
class ListedCell:
    """A cell in the list of runs.

    Attributes:
        learner, group: its name.
        count: seeds.
        unlike: configuration in which it differs from the other cells.
        runs: one for each folder.
    """

    learner: str
    group: str
    count: int
    unlike: str
    runs: Sequence[ListedRun]


def write_page(
    runs: Sequence[Run], path: Path, title: str, split: str = "test", failed: Mapping[str, str] | None = None
) -> None:
    """Write the page, and beside it its table as .csv and .md and its figures as .svg and .png.

    The page holds everything but the pictures of the runs, which it shows from their folders as long as they are there.

    Args:
        runs: from :func:`dtp_lightning.runs.reader.read_runs`, at least one.
        path: HTML file; NAME.csv, NAME.md and the folder NAME_figures/ are written beside it.
        title: of the page.
        split: whose accuracies, ``test`` or ``val``.
        failed: jobs that began and did not finish -> reason.
    """
    cells, probes = cells_of(runs), probes_of(runs, split)
    comparison = comparison_table(cells, runs, split)
    drawings, stages = list(figures(cells, split)), stages_of(cells)
    paired, conclusions = paired_table(cells, probes, split)
    main = [conclusion for conclusion in conclusions if conclusion.main]
    page = templates.get_template("page.html").render(
        title=title,
        split=split,
        head=Head.of(cells, runs),
        cells=cells,
        conclusions=main if len(main) <= AT_THE_HEAD else [],
        warnings=warnings(cells, runs),
        comparison=comparison,
        extremes=extremes_table(cells, probes, split),
        figures=drawings,
        pictures=pictures(cells, path),
        alignment=alignment_table(stages) if stages else None,
        alignment_legend=legend(),
        paired=paired,
        differences=conclusions,
        unfinished=failed or {},
        listed=listed(cells, path),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(comparison.markdown(), encoding="utf-8")
    csv_table(cells, runs, split).save_csv(path.with_suffix(".csv"))
    for drawing in drawings:
        drawing.save(path.with_name(f"{path.stem}_figures"))  # NAME may be the folder of the runs
    write_atomically(path, page, shared=True)  # two sweeps may end in one folder


def warnings(cells: Sequence[Cell], runs: Sequence[Run]) -> list[str]:
    """Sentences about what makes a row of the table something else than a mean over seeds."""
    sentences = [
        f"{cell} averages runs that differ in {name}: {' and '.join(values)}."
        for cell, keys in differences_within(cells).items()
        for name, values in keys.items()
    ]
    sentences += [f"{text}; the last one counts." for text in duplicate_trainings(cells)]
    sentences += [f"{text}." for text in warnings_of(cells)]
    if len({_commit(run) for run in runs}) > 1:
        sentences.append("These runs are of several commits.")
    dirty = sum(_commit(run).endswith("-dirty") for run in runs)
    if dirty:
        sentences.append(f"{dirty} of {len(runs)} runs are of code that no commit holds (-dirty).")
    for a, b in pairs(cells):
        keys = [name for name in differences_between(a, b) if not name.startswith("learner.")]
        if keys:
            names = f"{a.names['learner']} and {b.names['learner']}"
            sentences.append(f"{names} ({group_label(a)}) differ in more than the learner: {', '.join(keys)}.")
    return sentences


def listed(cells: Sequence[Cell], path: Path) -> list[ListedCell]:
    """Every run's folder, by cell.

    Args:
        cells: of the page.
        path: of the page; links are relative to it.
    """
    between = differing({i: config_of(cell.training) for i, cell in enumerate(cells)})
    rows = []
    for i, cell in enumerate(cells):
        within = differing({folder: config_of(folder) for folders in cell.folders.values() for folder in folders})
        unlike = [f"{name}={value}" for name, value in between[i].items() if name != "seed" and value != ABSENT]
        members = [
            ListedRun(
                seed=seed,
                folder=folder.name,
                link=link_to(folder, path),
                differs=", ".join(f"{name}={value}" for name, value in within[folder].items()) or NONE,
                commit=_short(_commit(cell.runs[seed])),
                pictures=[name for name in THUMBNAILS if (folder / "plots" / f"{name}.png").exists()],
            )
            for seed, folders in cell.folders.items()
            for folder in folders
        ]
        rows.append(ListedCell(cell.names["learner"], group_label(cell), len(cell.runs), ", ".join(unlike), members))
    return rows


def _commit(run: Run) -> str:
    return str(run.get("git_commit", "unknown"))


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return name[:10] + dash + dirty
