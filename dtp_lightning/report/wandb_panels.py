"""What a W&B workspace and a report share: panels of what runs logged, and how their runs are grouped."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtp_lightning.loggers.identity import Identity
from dtp_lightning.runs.reader import config_of
from dtp_lightning.runs.summary import RANDOM, figures_in, scalars_of
from dtp_lightning.runtime.metrics import metrics_of

SECTIONS = {
    "training": r"train/.*|val/loss|plots/(views|curves)",
    "probes": r"val/\w+_acc|.*/test_acc|plots/confusion_.*",
    "pictures": r"plots/(embedding_map|neighbours|filters)",
    "tables": r"tables/.*",
    "alignment": r"diagnostics/.*|plots/diagnostics",
    "distances": r".*distances/.*|plots/distances",
    "cost": r"(fit|cost)/.*",
}
"""Section -> names of the quantities, figures and tables in it, whole; what fits none (as a probe's C) has no panel."""
LOGARITHMIC = re.compile(r"train/local_loss/.*|.*norm_ratio/.*")
ACROSS = 3  # panels in a row of a section


def panels_of(names: Iterable[str]) -> dict[str, list[str]]:
    """What shares a panel: quantities that differ in the stage, the split, the encoder or the kind of pair alone.

    Returns:
        title -> names.
    """
    panels: dict[str, list[str]] = defaultdict(list)
    for name in names:
        title = re.sub(rf"^(train|val|{RANDOM.rstrip('/')})/", "", name)
        panels[re.sub(r"stage\d+|positive|negative", "*", title)].append(name)
    return dict(panels)


def grouping(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Keys that W&B groups these runs by: the learner, inside it what else differs, and at last only seeds differ.

    Runs of version 0.1 have the learner as their job type, and no names in their configuration.
    """
    from wandb_workspaces import expr

    if any(Identity.read(Path(run["folder"])) is None for run in runs):
        return [expr.Metric("JobType"), expr.Metric("Group")]
    varying = [axis for axis in ("dataset", "model", "loss") if len({run[axis] for run in runs}) > 1]
    cells = {(run["learner"], *(run[axis] for axis in varying)) for run in runs}
    within = {(*(run[axis] for axis in ("learner", *varying)), group_of(run)) for run in runs}
    axes = [expr.Config(f"names.{axis}") for axis in ("learner", *varying)]
    return [*axes, *([expr.Metric("Group")] if len(within) > len(cells) else [])]


def chosen(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Filters that leave these runs' groups, without evaluations if none is given: they would be averaged in."""
    from wandb_workspaces import expr

    groups = expr.Metric("Group").isin(sorted({group_of(run) for run in runs}))
    evaluations = any("checkpoint" in run for run in runs)
    return [groups, *([] if evaluations else [expr.Metric("JobType") != "evaluation"])]


def group_of(run: Mapping[str, Any]) -> str:
    """The run's W&B group, as its folder says; runs of version 0.1 say nothing, and had dataset-model-loss."""
    folder = Path(run["folder"])
    if (identity := Identity.read(folder)) is not None:
        return identity.group
    given = config_of(folder).get("logger.wandb.group")
    return given if given not in (None, "None") else "{dataset}-{model}-{loss}".format(**run)


def tables_in(folder: Path) -> set[str]:
    """Names of the tables that a run logged to W&B, without those of charts."""
    files = folder.glob("wandb/*run-*/files/media/table/tables/*.table.json")
    return {f"tables/{re.sub(r'_[0-9]+_[0-9a-f]+[.]table[.]json$', '', path.name)}" for path in files}


def panels(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Section -> its panels, each of what some run logged; sections of which no run logged anything are not there."""
    from wandb_workspaces.reports import v2 as wr

    from dtp_lightning.loggers.trackers import STEP

    folders = [Path(run["folder"]) for run in runs]
    curves = sorted({name for folder in folders for name in metrics_of(folder / "metrics.csv").names})
    bars = sorted({name for run in runs for name in scalars_of(run)})
    pictures = sorted({name for folder in folders for name in figures_in(folder)})
    tables = sorted({name for folder in folders for name in tables_in(folder)})
    bands: Any = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    found = {}
    for section, pattern in SECTIONS.items():
        inside = [[name for name in names if re.fullmatch(pattern, name)] for names in (curves, bars, pictures, tables)]
        there: list[Any] = [
            wr.LinePlot(title=title, x=STEP, y=[*names], log_y=bool(LOGARITHMIC.fullmatch(names[0])) or None, **bands)
            for title, names in panels_of(inside[0]).items()
        ]
        there += [wr.BarPlot(title=title, metrics=[*names], **bands) for title, names in panels_of(inside[1]).items()]
        there += [wr.MediaBrowser(title=name, media_keys=[name], num_columns=1) for name in inside[2]]
        there += [wr.WeavePanelSummaryTable(table_name=name) for name in inside[3]]
        if there:
            found[section] = there
    return found
