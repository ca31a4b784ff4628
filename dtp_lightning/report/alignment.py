"""Rule by rule and stage by stage: angle to backprop, size of the step, saturation; as a table and as a CSV file.

All from the columns that ``callbacks=[alignment]`` leaves in a run's metrics.csv (docs/diagnostics.md).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtp_lightning.errors import UserError
from dtp_lightning.report.cells import Cell
from dtp_lightning.report.tables import NONE, Entry, Table
from dtp_lightning.runs.metrics import stage_points, top_stage
from dtp_lightning.runs.reader import config_of, trained_in

ANGLE = "angle/stage<i>/weight"
NORM_RATIO = "norm_ratio/stage<i>/weight"
STEP = "effective_step/stage<i>"
MEAN_ABS = "mean_abs/stage<i>"
SATURATED = "saturated/stage<i>"
FROM_BATCH = 1
"""Feedback is what it was made as at batch 0: that measurement says nothing about a rule."""
Looks = list[tuple[int, float]]  # (batch, value)


def looks(cell: Cell, *quantities: str) -> dict[str, dict[int, dict[int, Looks]]]:
    """Quantity -> stage -> seed -> (batch, value), in the order of batches; stages and seeds without one are absent.

    Angles and norms of the top stage are left out: target propagation takes its target there from the objective's own
    gradient, so that it follows backprop by construction.

    Args:
        cell: runs of one kind.
        quantities: as in :func:`dtp_lightning.runs.metrics.stage_points`.
    """
    found: dict[str, dict[int, dict[int, Looks]]] = {quantity: {} for quantity in quantities}
    for seed, folders in cell.folders.items():
        metrics = trained_in(folders[0]) / "metrics.csv"
        top = top_stage(metrics)
        for quantity in quantities:
            for stage, points in stage_points(metrics, quantity).items():
                if stage != top or quantity not in (ANGLE, NORM_RATIO):
                    found[quantity].setdefault(stage, {})[seed] = points
    return found


@dataclass(frozen=True)
class StageAlignment:
    """How one stage of one cell learned; None where nothing was logged.

    Attributes:
        cell: which runs.
        stage: 1..L.
        batches: of the longest run, up to its last look.
        looks: of all seeds that count, those from the given batch on.
        angle: median over these looks, in degrees, [0, 180]; ``largest`` likewise.
        norm_ratio, effective_step: medians over these looks.
        mean_abs, saturated: at each seed's last look, mean over seeds.
    """

    cell: Cell
    stage: int
    batches: int
    looks: int
    angle: float | None
    largest: float | None
    norm_ratio: float | None
    effective_step: float | None
    mean_abs: float | None
    saturated: float | None


def stages_of(cells: Sequence[Cell], from_batch: int = FROM_BATCH) -> list[StageAlignment]:
    """What ``callbacks=[alignment]`` measured: an entry for each cell and stage, in the order of the cells.

    Args:
        cells: those without these measurements have no entry.
        from_batch: first batch whose look counts for angles, norms and steps.
    """
    found = []
    for cell in cells:
        by_quantity = looks(cell, ANGLE, NORM_RATIO, STEP, MEAN_ABS, SATURATED)
        for stage in sorted({stage for stages in by_quantity.values() for stage in stages}):
            seeds = {name: stages.get(stage, {}) for name, stages in by_quantity.items()}
            counted = {name: _from(each, from_batch) for name, each in seeds.items()}
            last = {name: [rows[-1][1] for rows in each.values()] for name, each in seeds.items()}
            angles = counted[ANGLE]
            found.append(
                StageAlignment(
                    cell=cell,
                    stage=stage,
                    batches=max(rows[-1][0] for each in seeds.values() for rows in each.values()),
                    looks=max(len(values) for values in counted.values()),
                    angle=statistics.median(angles) if angles else None,
                    largest=max(angles, default=None),
                    norm_ratio=statistics.median(counted[NORM_RATIO]) if counted[NORM_RATIO] else None,
                    effective_step=statistics.median(counted[STEP]) if counted[STEP] else None,
                    mean_abs=statistics.fmean(last[MEAN_ABS]) if last[MEAN_ABS] else None,
                    saturated=statistics.fmean(last[SATURATED]) if last[SATURATED] else None,
                )
            )
    return found


def _from(seeds: dict[int, Looks], batch: int) -> list[float]:
    return [value for rows in seeds.values() for at, value in rows if at >= batch]


def alignment_table(stages: Sequence[StageAlignment]) -> Table:
    """A row for each cell and stage, as the terminal and the page show it."""
    shown = {name for one in stages for name in ("dataset", "model", "loss", "settings") if one.cell.names[name]}
    vary = [name for name in sorted(shown) if len({one.cell.names[name] for one in stages}) > 1]
    numeric = ["stage", "angle", "largest", "norm ratio", "step / rate", "mean abs(h)", "saturated, %"]
    table = Table("alignment", ["learner", *vary, *numeric], numeric=frozenset(numeric))
    for one in stages:
        table.rows.append(
            [
                *(Entry(one.cell.names[name]) for name in ("learner", *vary)),
                Entry(str(one.stage), one.stage),
                _entry(one.angle, ".1f"),
                _entry(one.largest, ".1f"),
                _entry(one.norm_ratio, ".2f"),
                _entry(one.effective_step, ".2f"),
                _entry(one.mean_abs, ".2f"),
                _entry(None if one.saturated is None else 100 * one.saturated, ".1f"),
            ]
        )
    return table


def alignment_text(stages: Sequence[StageAlignment], from_batch: int = FROM_BATCH) -> str:
    """:func:`alignment_table` for the terminal, under a line that says what its columns are."""
    return f"{legend(from_batch)}\n\n{alignment_table(stages).markdown().rstrip()}"


def legend(from_batch: int = FROM_BATCH) -> str:
    """What the columns of :func:`alignment_table` mean."""
    return (
        f"Each stage, from batch {from_batch} on: angle to backprop in degrees (median over looks and seeds, and the "
        "largest), length of the gradient over backprop's, root mean square of a step over the learning rate (medians);"
        " at the last look: mean abs(h), and the share of h at the bounds of its activation."
    )


def _entry(value: float | None, form: str) -> Entry:
    return Entry(NONE) if value is None else Entry(f"{value:{form}}", value)


def save_stages(stages: Sequence[StageAlignment], from_batch: int, path: Path) -> None:
    """Every number in full, with what was run and by which code, as a CSV file; its folder is made if need be.

    Args:
        stages: from :func:`stages_of`.
        from_batch: the one that they were made with.
        path: to write.

    Raises:
        UserError: there are none.
    """
    if not stages:
        raise UserError("no run has angles to write: train with callbacks=[alignment]")
    columns = ["learner", "model", "feedback", "dataset", "loss", "settings", "seeds", "batches", "batch_size", "rate"]
    columns += ["git_commit", "from_batch", "stage", "looks", "angle/median", "angle/largest", "norm_ratio/median"]
    table = Table("alignment", [*columns, "effective_step/median", "mean_abs/last", "saturated/last"])
    for one in stages:
        names, config = one.cell.names, config_of(one.cell.training)
        commits = sorted({str(run.get("git_commit", "unknown")) for run in one.cell.runs.values()})
        values = [
            *(names["learner"], names["model"], config.get("model.feedback"), names["dataset"], names["loss"]),
            *(names["settings"], " ".join(map(str, one.cell.runs)), one.batches, config.get("batch_size")),
            *(config.get("learner.forward_optimizer.lr"), " ".join(commits), from_batch, one.stage, one.looks),
            *(one.angle, one.largest, one.norm_ratio, one.effective_step, one.mean_abs, one.saturated),
        ]
        table.rows.append([Entry("", "" if value is None else value) for value in values])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save_csv(path)
