"""A W&B workspace made by code: ``dtp dashboard FOLDER... --entity NAME --project NAME``.

Reads the run folders that were uploaded: every panel names quantities that these runs logged.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp_lightning.errors import UserError
from dtp_lightning.runs.reader import config_of, read_runs
from dtp_lightning.runs.summary import RANDOM, figures_in, scalars_of

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SECTIONS = {
    "training": r"train/.*|val/loss|plots/(views|curves)",
    "probes": r"val/\w+_acc|.*/test_acc|plots/confusion_.*",
    "pictures": r"plots/(embedding_map|neighbours|filters)",
    "alignment": r"diagnostics/.*|plots/diagnostics",
    "distances": r".*distances/.*|plots/distances",
    "cost": r"(fit|cost)/.*",
}
"""Section -> names of the quantities and figures in it, whole; what fits none (such as a probe's C) has no panel."""
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


def tracked(runs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that were logged to W&B.

    Raises:
        UserError: none was.
    """
    logged = [run for run in runs if (Path(run["folder"]) / "wandb").exists()]
    if not logged:
        raise UserError("no run here was logged to W&B: run with logger=wandb")
    return logged


def workspace(runs: Sequence[Mapping[str, Any]], entity: str, project: str, name: str) -> Workspace:
    """Training, probes, alignment, distances and cost of these runs, grouped by learner.

    A section is there if some run logged anything that belongs in it. A learner's line is the mean over its runs, its
    band their standard deviation. Where its runs are of several tasks, there are groups inside its group.

    Args:
        runs: summaries, each with its ``folder``, all logged to W&B.
        entity, project: W&B's, where the runs are.
        name: of the workspace.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws
    except ModuleNotFoundError as error:
        raise UserError("a dashboard needs wandb-workspaces: pip install '.[dashboard]'") from error
    from dtp_lightning.figures.plots import COLOURS  # torch and Lightning take seconds: not before a mistake is found
    from dtp_lightning.loggers.trackers import STEP

    learners = list(dict.fromkeys(run["learner"] for run in runs))
    tasks = {(_group(run), run["loss"]) for run in runs}
    groups = sorted({group for group, _ in tasks})
    inner = {"Group": len(groups) > 1, "Name": len(tasks) > len(groups)}  # a run's name is learner-loss
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(runs),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=max(10, len(learners))),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group").isin(groups)),
            groupby=[expr.Metric("JobType"), *(expr.Metric(by) for by, varies in inner.items() if varies)],
            group_colors={learner: COLOURS[i % len(COLOURS)] for i, learner in enumerate(learners)},
        ),
    )


def _group(run: Mapping[str, Any]) -> str:
    """The run's W&B group."""
    from dtp_lightning.loggers.trackers import group_of

    given = config_of(Path(run["folder"])).get("logger.wandb.group")
    return group_of(run, None if given in (None, "None") else given)


def _sections(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    from dtp_lightning.figures.plots import names_in
    from dtp_lightning.loggers.trackers import STEP
    from dtp_lightning.runtime.files import read_rows

    folders = [Path(run["folder"]) for run in runs]
    curves = sorted({name for folder in folders for name in names_in(read_rows(folder / "metrics.csv"))})
    bars = sorted({name for run in runs for name in scalars_of(run)})
    pictures = sorted({name for folder in folders for name in figures_in(folder)})
    bands: Any = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    sections = []
    for section, pattern in SECTIONS.items():
        inside = [[name for name in names if re.fullmatch(pattern, name)] for names in (curves, bars, pictures)]
        panels: list[Any] = [
            wr.LinePlot(title=title, x=STEP, y=[*names], log_y=bool(LOGARITHMIC.fullmatch(names[0])) or None, **bands)
            for title, names in panels_of(inside[0]).items()
        ]
        panels += [wr.BarPlot(title=title, metrics=[*names], **bands) for title, names in panels_of(inside[1]).items()]
        panels += [wr.MediaBrowser(title=name, media_keys=[name], num_columns=1) for name in inside[2]]
        if panels:
            layout = ws.SectionLayoutSettings(columns=ACROSS, rows=-(-len(panels) // ACROSS))
            sections.append(ws.Section(name=section, panels=panels, is_open=True, layout_settings=layout))
    return sections


def upload(made: Workspace) -> str:
    """Save the workspace in W&B, as a new view; returns its address.

    Raises:
        UserError: nobody is logged in, or W&B refused.
    """
    import wandb

    try:
        user = wandb.login(prompt=False)
        address = str(made.save().url) if user else None
    except Exception as error:  # a refusal is a private class of W&B's, derived from nothing of wandb.errors
        raise UserError(f"W&B did not take the dashboard: {str(error).strip() or type(error).__name__}") from error
    if address is None:
        raise UserError("nobody is logged in to W&B: wandb login")
    return address


def main() -> None:
    """Make the workspace of these runs; say where it is and what it lacks."""
    parser = argparse.ArgumentParser(prog="dtp dashboard", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--entity", default="", help="W&B user or team that the runs were uploaded to")
    parser.add_argument("--project", default="", help="W&B project that they are in")
    parser.add_argument("--name", help="of the workspace; default is what the folders are called")
    arguments = parser.parse_args()
    try:
        if not (arguments.entity and arguments.project):
            raise UserError("where are the runs in W&B? make dashboard ENTITY=... PROJECT=...")
        runs = tracked(read_runs(arguments.folders))
        name = arguments.name or ", ".join(folder.resolve().name for folder in arguments.folders)
        made = workspace(runs, arguments.entity, arguments.project, name)
        address = upload(made)
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    missing = SECTIONS.keys() - {section.name for section in made.sections}
    if missing:
        print(f"no run logged anything for: {', '.join(sorted(missing))}")
    print(f"dashboard {address}")


if __name__ == "__main__":
    main()
