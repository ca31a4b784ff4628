"""A W&B workspace and a report made by code: ``dtp dashboard FOLDER... --entity NAME --project NAME``.

Reads the run folders that were uploaded: every panel names quantities that these runs logged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp_lightning.errors import UserError
from dtp_lightning.report.wandb_panels import ACROSS, SECTIONS, chosen, grouping, panels
from dtp_lightning.report.wandb_report import report
from dtp_lightning.runs.reader import read_runs

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace


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
    """Training, probes, pictures, tables, alignment, distances and cost of these runs, grouped by learner.

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
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(runs),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=max(10, len(learners))),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*chosen(runs)),
            groupby=grouping(runs),
            group_colors={learner: COLOURS[i % len(COLOURS)] for i, learner in enumerate(learners)},
        ),
    )


def _sections(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
    from wandb_workspaces import workspaces as ws

    return [
        ws.Section(
            name=section, panels=there, is_open=True,
            layout_settings=ws.SectionLayoutSettings(columns=ACROSS, rows=-(-len(there) // ACROSS)),
        )
        for section, there in panels(runs).items()
    ]  # fmt: skip


def upload(made: Workspace | Report) -> str:
    """Save a workspace or a report in W&B, as a new one; returns its address.

    Raises:
        UserError: nobody is logged in, or W&B refused.
    """
    import wandb

    try:
        user = wandb.login(prompt=False)
        address = str(made.save().url) if user else None
    except Exception as error:  # a refusal is a private class of W&B's, derived from nothing of wandb.errors
        what, why = type(made).__name__.lower(), str(error).strip() or type(error).__name__
        raise UserError(f"W&B did not take the {what}: {why}") from error
    if address is None:
        raise UserError("nobody is logged in to W&B: wandb login")
    return address


def main() -> None:
    """Make the workspace and the report of these runs; say where they are and what is missing."""
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
        print(f"dashboard {upload(made)}", flush=True)
        print(f"report    {upload(report(runs, arguments.entity, arguments.project, name))}")
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    missing = SECTIONS.keys() - {section.name for section in made.sections}
    if missing:
        print(f"no run logged anything for: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
