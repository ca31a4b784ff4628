"""Runs -> one HTML file that opens from disk: table, paired differences, figures, and every run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from dtp_lightning.config.keys import key as key_of
from dtp_lightning.report.cells import (
    ABSENT,
    Cell,
    Run,
    cells_of,
    config_of,
    differing,
    probes_of,
    repeated,
    trained_in,
    unexpected,
)
from dtp_lightning.report.page_figures import Drawn, figures
from dtp_lightning.report.page_tables import NONE, Table, comparison, csv_table, paired, pairs, place_of, spread
from dtp_lightning.runs.summary import AXES

SAID = 6  # sentences at the head of the page; the others follow their table
THUMBNAILS = ("views.png", "distances.png")


def write_page(
    runs: Sequence[Run], path: Path, title: str, split: str = "test", failed: Mapping[str, str] | None = None
) -> None:
    """Write the page, and beside it its table as .csv and .md and its figures as .svg and .png.

    The page holds everything but the pictures of the runs, which it shows from their folders as long as they are there.

    Args:
        runs: from :func:`dtp_lightning.report.__main__.read_runs`, at least one.
        path: HTML file; NAME.csv, NAME.md and the folder NAME_figures/ are written beside it.
        title: of the page.
        split: whose accuracies, ``test`` or ``val``.
        failed: jobs that began and did not finish -> why.
    """
    cells, probes = cells_of(runs), probes_of(runs, split)
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    cells.sort(key=lambda cell: tasks.index(cell.task))  # what is to be compared stands together
    table = comparison(cells, runs, split)
    drawn = list(figures(cells, split))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(table.markdown(), encoding="utf-8")
    csv_table(cells, runs, split).save_csv(path.with_suffix(".csv"))
    for figure in drawn:
        figure.save(path.with_name(f"{path.stem}_figures"))  # NAME may be the folder of the runs
    differences, sentences = paired(cells, probes, split)
    main = [f"<p><code>{escape(probe)}</code> {escape(text)}</p>" for probe, text, first in sentences if first]
    parts = [
        _head(cells, runs, title, failed or {}, split),
        f'<div class="said">{"".join(main)}</div>' if main and len(main) <= SAID else "",
        _warnings(runs, cells),
        "<h2>Comparison</h2>"
        f"<p>Accuracy on {split} in percent: mean over n seeds [95&nbsp;% interval, Student's t]. "
        "Seconds are of the training with its validation; "
        "MACs are multiply-accumulates of a learning step, for one view of one image.</p>"
        '<div class="filter" hidden><label for="filter">Filter rows</label>'
        '<input id="filter" type="search" placeholder="dtp hinge" autocomplete="off">'
        '<span id="shown" class="faint" role="status"></span></div>',
        table.html("Accuracy and cost of each cell"),
        _spread(spread(cells, probes, split), split),
        _figures(drawn),
        _paired(differences.html("Differences of learners on the same seeds"), sentences),
        _failed(failed or {}),
        _runs(cells, path),
    ]
    path.write_text(_document(title, "\n".join(part for part in parts if part)), encoding="utf-8")


def _document(title: str, body: str) -> str:
    here = files("dtp_lightning.report")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _head(cells: Sequence[Cell], runs: Sequence[Run], title: str, failed: Mapping[str, str], split: str) -> str:
    """What is compared on what, how much of it is there, and by which code."""

    def each(axis: str) -> str:
        return ", ".join(dict.fromkeys(cell.names[axis] for cell in cells))

    seeds = sorted({seed for cell in cells for seed in cell.runs})
    commits = sorted({str(run.get("git_commit", "unknown")) for run in runs})
    finished = sum(len(cell.runs) for cell in cells)
    shown = ", ".join(map(str, seeds)) if len(seeds) < 9 else f"{len(seeds)} of {seeds[0]} to {seeds[-1]}"
    lost = f', <strong class="failed">{len(failed)} unfinished</strong>' if failed else ", none unfinished"
    facts = [
        f"<strong>{finished} run{'s' * (finished != 1)} finished</strong>{lost}",
        f"{len(cells)} cell{'s' * (len(cells) != 1)}",
        f"seed{'s' * (len(seeds) != 1)} {shown}",
        f"{split} split",
        f"commit{'s' * (len(commits) != 1)} " + ", ".join(f"<code>{escape(_short(c))}</code>" for c in commits),
    ]
    compared = " · ".join(f"{axis} {each(axis)}" for axis in AXES if axis != "learner")
    return (
        f"<header><h1>{escape(title)}</h1>\n<p><strong>{escape(each('learner'))}</strong> on {escape(compared)}</p>\n"
        f'<p class="meta">{" · ".join(facts)}</p></header>'
    )


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return name[:10] + dash + dirty


def _warnings(runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    """What makes a row of the table something else than a mean over seeds."""
    found = [
        f"{cell} averages runs that differ in {key}: {' and '.join(values)}."
        for cell, keys in unexpected(runs).items()
        for key, values in keys.items()
    ]
    found += [f"{text}; the last one counts." for text in repeated(cells)]
    if len({run.get("git_commit") for run in runs}) > 1:
        found.append("These runs are of several commits.")
    dirty = sum(str(run.get("git_commit", "")).endswith("-dirty") for run in runs)
    if dirty:
        found.append(f"{dirty} of {len(runs)} runs are of code that no commit holds (-dirty).")
    for a, b in pairs(cells):
        keys = [key for key in _between(a, b) if not key.startswith("learner.")]
        if keys:
            names = f"{a.names['learner']} and {b.names['learner']}"
            found.append(f"{names} ({place_of(a)}) differ in more than the learner: {', '.join(keys)}.")
    if not found:
        return ""
    return f'<div class="warning"><strong>Mind</strong>{"".join(f"<p>{escape(text)}</p>" for text in found)}</div>'


def _between(a: Cell, b: Cell) -> list[str]:
    """Keys in which two cells' first trainings differ, but for those of what a run is watched by."""
    configs = {i: config_of(trained_in(next(iter(cell.folders.values()))[0])) for i, cell in enumerate((a, b))}
    if len({"checkpoint" in config for config in configs.values()}) > 1:
        return []
    return [key for key in differing(configs)[0] if not key_of(key).may_differ]


def _spread(table: Table, split: str) -> str:
    return (
        "<details><summary>Worst, median and best seed</summary>"
        f"<p>Accuracy on {split} in percent. The best of n seeds is not what a method does: it grows with n.</p>"
        f"{table.html('Worst, median and best seed of each cell')}</details>"
    )


def _paired(table: str, sentences: Sequence[tuple[str, str, bool]]) -> str:
    if not sentences:
        return ""
    said = "".join(f"<li>{escape(probe)}: {escape(text)}</li>" for probe, text, _ in sentences)
    many = (
        f" Of {len(sentences)} such p values some are small by chance; they are not corrected."
        if len(sentences) > 1
        else ""
    )
    return (
        "<h2>Differences between learners</h2>"
        "<p>In points, over the seeds that both learners have: a seed fixes weights and batches of both. "
        "95&nbsp;% interval by Student's t; p, two-sided, by flipping signs; "
        f"“smallest p” is what so many seeds could show at best.{many}</p>"
        f"{table}<details><summary>In words</summary><ul>{said}</ul></details>"
    )


def _figures(drawn: Sequence[Drawn]) -> str:
    if not drawn:
        return ""
    shown = "".join(
        f"<figure><h3>{escape(figure.title)}</h3>{figure.svg()}<figcaption>{escape(figure.caption)}</figcaption></figure>\n"
        for figure in drawn
    )
    return f'<h2>Figures</h2>\n<div class="figures">\n{shown}</div>'


def _failed(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    items = "".join(f"<li><code>{escape(job)}</code>: {escape(why)}</li>" for job, why in failed.items())
    return f"<h2>Unfinished jobs</h2><p>Begun, without a summary: failed, stopped or still running.</p><ul>{items}</ul>"


def _runs(cells: Sequence[Cell], path: Path) -> str:
    """Every run's folder, by cell."""
    firsts = {i: config_of(trained_in(next(iter(cell.folders.values()))[0])) for i, cell in enumerate(cells)}
    between = differing(firsts)
    parts = []
    for i, cell in enumerate(cells):
        own = {seed: {f: config_of(f) for f in folders} for seed, folders in cell.folders.items()}
        within = differing({folder: config for configs in own.values() for folder, config in configs.items()})
        rows = "".join(
            _run(seed, folder, within[folder], cell.runs[seed], path)
            for seed, folders in cell.folders.items()
            for folder in folders
        )
        unlike = ", ".join(f"{key}={value}" for key, value in between[i].items() if key != "seed" and value != ABSENT)
        note = f'<p class="faint differs">Unlike other cells: {escape(unlike)}</p>' if unlike else ""
        name = f"<strong>{escape(cell.names['learner'])}</strong> · {escape(place_of(cell))}"
        parts.append(
            f"<details{' open' if len(cells) < 4 else ''}><summary>{name} "
            f'<span class="faint">({len(cell.runs)})</span></summary>{note}'
            '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="runs"><thead><tr>'
            '<th scope="col">seed</th><th scope="col">folder</th>'
            '<th scope="col">in its cell it differs in</th><th scope="col">commit</th><th scope="col">pictures</th>'
            "</tr></thead>"
            f"<tbody>{rows}</tbody></table></div></details>"
        )
    return "<h2>Runs</h2>\n" + "\n".join(parts)


def _run(seed: int, folder: Path, differs: Mapping[str, str], run: Run, path: Path) -> str:
    link = quote(os.path.relpath(folder, path.parent))
    pictures = "".join(
        f'<a href="{link}/plots/{name}">'
        f'<img src="{link}/plots/{name}" loading="lazy" alt="{name.removesuffix(".png")}"></a>'
        for name in THUMBNAILS
        if (folder / "plots" / name).exists()
    )
    commit = escape(_short(str(run.get("git_commit", "unknown"))))
    own = ", ".join(f"{key}={value}" for key, value in differs.items()) or NONE
    return (
        f'<tr><td>{seed}</td><td class="wide"><a href="{link}/">{escape(folder.name)}</a></td>'
        f'<td class="wide differs">{escape(own)}</td><td><code>{commit}</code></td>'
        f'<td><div class="thumbnails">{pictures}</div></td></tr>\n'
    )
