"""A W&B report made by code, beside the workspace: the table of cells, what it says, every panel, and the origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dtp_lightning.report.text import conclusions, table
from dtp_lightning.report.wandb_panels import ACROSS, chosen, grouping, panels

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report

WIDTH, HEIGHT = 24, 8  # of a row of panels, in W&B's units


def report(runs: Sequence[Mapping[str, Any]], entity: str, project: str, title: str) -> Report:
    """The comparison as `dtp report` prints it, and the panels of the workspace, which stay alive.

    Args:
        runs: summaries, each with its ``folder``, all logged to W&B.
        entity, project: W&B's, where the runs are.
        title: of the report.
    """
    from wandb_workspaces.reports import v2 as wr

    runset = wr.Runset(
        entity=entity, project=project, name="runs",
        filters=chosen(runs),
        groupby=[_as_text(key) for key in grouping(runs)],
    )  # fmt: skip
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("Accuracy on the test split"),
        wr.MarkdownBlock(table(runs, "test")),
    ]
    if said := conclusions(runs, "test"):
        blocks.append(wr.UnorderedList([*said]))
    for section, there in panels(runs).items():
        for place, panel in enumerate(there):
            row, column = divmod(place, ACROSS)
            across = WIDTH // ACROSS
            panel.layout = wr.Layout(x=column * across, y=row * HEIGHT, w=across, h=HEIGHT)
        blocks += [wr.H1(section.capitalize()), wr.PanelGrid(runsets=[runset], panels=there)]
    blocks += [wr.H1("Where these runs come from"), wr.MarkdownBlock(_origins(runs))]
    description = f"{len(runs)} runs of {', '.join(dict.fromkeys(run['learner'] for run in runs))}, by dtp dashboard"
    return wr.Report(entity=entity, project=project, title=title[:128], description=description, blocks=blocks)


def _as_text(key: Any) -> str:
    """A grouping key as a report wants it: ``config.names.learner``, ``group``."""
    from wandb_workspaces import expr

    if isinstance(key, expr.Config):
        return f"config.{key.name}"
    return {"JobType": "jobType", "Group": "group"}[key.name]


def _origins(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: commits and versions of the code that made these numbers, each with its number of runs."""
    lines = ["| commit | runs | versions |", "|---|---|---|"]
    made = [(str(run.get("git_commit", "unknown")), str(run.get("versions", "unknown"))) for run in runs]
    lines += [f"| `{commit}` | {made.count((commit, known))} | {known} |" for commit, known in dict.fromkeys(made)]
    return "\n".join(lines)
