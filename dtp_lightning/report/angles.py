"""The angle between a rule's weight gradients and backprop's, as one number for each step or each run."""

from __future__ import annotations

import statistics
from pathlib import Path

from dtp_lightning.runs.metrics import angle_rows, top_stage

WHEN = ("start", "middle", "end")


def below_the_top(metrics: Path) -> list[tuple[int, dict[int, float]]]:
    """:func:`~dtp_lightning.runs.metrics.angle_rows` without the top stage, and without steps that had no other.

    At the top stage target propagation takes its target from the objective's own gradient: its angle there is 0 by
    construction, and would lower every mean.
    """
    top = top_stage(metrics)
    rows = [(step, {s: angle for s, angle in stages.items() if s != top}) for step, stages in angle_rows(metrics)]
    return [(step, stages) for step, stages in rows if stages]


def mean_angles(metrics: Path) -> list[tuple[int, float]]:
    """(step, mean angle in degrees over the stages :func:`below_the_top`), from a run's metrics.csv.

    Layer-wise rules train one stage at a time: a step's mean is over the stages that were trained.
    """
    return [(step, statistics.fmean(stages.values())) for step, stages in below_the_top(metrics)]


def angles(metrics: Path) -> dict[str, float]:
    """``angle/start``, ``angle/middle`` and ``angle/end``: :func:`mean_angles` of the first, middle and last step.

    Empty for a run without ``callbacks=[alignment]``, and for a network of one stage.
    """
    means = [mean for _, mean in mean_angles(metrics)]
    if not means:
        return {}
    return {f"angle/{when}": means[i] for when, i in zip(WHEN, (0, len(means) // 2, -1), strict=True)}
