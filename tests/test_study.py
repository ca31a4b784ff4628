"""Many runs: each file is read once or twice, and a page of them stays one that can be read."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_page import write_run

from dtp_lightning.config.flatten import flatten
from dtp_lightning.errors import DataError
from dtp_lightning.report.alignment import stages_of
from dtp_lightning.report.cells import cells_of
from dtp_lightning.report.page import write_page
from dtp_lightning.report.page_figures import MOST, MOST_TASKS, figures, left_out
from dtp_lightning.report.text import conclusions, differences, table
from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.status import failures
from dtp_lightning.runs.stored import read_flat, read_yaml
from dtp_lightning.runtime.metrics import metrics_of

RULES, RATES, SEEDS = ("bp", "dtp", "fa", "tp"), 10, 5
opened: Counter[str] | None = None


def _count(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str):
        opened[arguments[0]] += 1


@pytest.fixture
def opens() -> Iterator[Counter[str]]:
    """How often each file is opened while the test runs. (Python keeps such a hook for good; it sleeps afterwards.)"""
    global opened
    if opened is None:
        sys.addaudithook(_count)
    opened = Counter()
    yield opened
    opened = None


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs: 4 rules, 10 rates, 5 seeds; of each rule the third rate is best."""
    folder = tmp_path_factory.mktemp("study")
    for rule in RULES:
        for k in range(RATES):
            for seed in range(SEEDS):
                word = f"learner.lr={k}"
                accuracy = 0.9 - 0.01 * abs(k - 2) + 0.001 * seed
                write_run(folder / f"{rule},{word},{seed}", rule, seed, accuracy, word, f"seed={seed}")
    return folder


def test_each_file_is_read_once(study: Path, opens: Counter[str], tmp_path: Path) -> None:
    runs = read_runs([study])
    assert not differences(runs)
    for text in (table(runs, "test"), *conclusions(runs, "test")):
        assert text
    stages = stages_of(cells_of(runs))
    write_page(runs, tmp_path / "page.html", "study", failed=failures(study), stages=stages)
    assert len(runs) == len(RULES) * RATES * SEEDS
    for name, times in (("config.yaml", 1), ("metrics.csv", 1), ("overrides.yaml", 1), ("summary.json", 2)):
        found = {path: n for path, n in opens.items() if path.startswith(str(study)) and path.endswith(f"/{name}")}
        assert len(found) == len(runs) and max(found.values()) == times, name
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 1_000_000 and len(re.findall('<tr[^>]*><td>[0-4]</td><td class="wide">', page)) == len(runs)
    assert f"more than {MOST} cells" in page


def test_a_figure_has_the_best_cell_of_each_learner_by_validation(study: Path) -> None:
    cells = cells_of(read_runs([study]))
    drawn = {drawing.name: drawing.figure.axes[0].get_legend_handles_labels()[1] for drawing in figures(cells, "test")}
    assert sorted(drawn["learning-curves"]) == sorted(RULES), "all of one rate, which no label needs to name"
    few = [cell for cell in cells if cell.names["learner"] in RULES[:2]]
    assert len(few) == 2 * RATES < MOST and left_out(few) == ""
    (learning, *_) = figures(few, "test")
    assert len(learning.figure.axes[0].get_legend_handles_labels()[1]) == len(few)


def test_so_many_tasks_have_figures(tmp_path: Path) -> None:
    for k in range(MOST_TASKS + 1):
        write_run(tmp_path / str(k), "bp", 0, 0.9)
        path = tmp_path / str(k) / "summary.json"
        path.write_text(path.read_text().replace("hinge", f"loss{k}"))
    cells = cells_of(read_runs([tmp_path]))
    assert {drawing.title.split(" · ")[-1] for drawing in figures(cells, "test") if "Learning" in drawing.title} == {
        f"loss{k}" for k in range(MOST_TASKS + 1) if k != 9
    }, "in the order of their folders: 0, 1, 10, 11, 12, 2 to 8"
    assert left_out(cells).startswith(f"The first {MOST_TASKS} of {MOST_TASKS + 1} ")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1e-4\nb: 1_000\nc: 2026-01-01\nd: yes\ne: .inf\nf: 0x1F\ng: 1:30\n",
        "a: {b: [1, 2.5, null, ~, x]}\nc: 'quoted: 1e-4'\nd: \"${e}\"\n",
        "a: |\n  lines\n  of text\nb: -1E5\nc: +3\nd: 1.\n",
        "",
    ],
)
def test_yaml_is_read_as_omegaconf_reads_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_yaml(path) == OmegaConf.to_container(OmegaConf.load(path))
    assert read_flat(path) == (dict(flatten(read_yaml(path))) if text else {})


@pytest.mark.parametrize(
    "text", ["a: 1\nb 2\n", "a: 1\nb: [1\nc: 2]\n", "a: 1\nb: 2\na: 3\n", "a: 'x\nb: 1\n", "- 1\n"]
)
def test_damaged_yaml_is_so_in_sections_too(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    found = []
    for read in (lambda path: dict(flatten(read_yaml(path))), read_flat):
        try:
            found.append(read(path))
        except DataError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_whole_files_are_read_as_damaged_ones_are(tmp_path: Path) -> None:
    path, damaged = tmp_path / "whole.csv", tmp_path / "damaged.csv"
    text = "epoch,step,val/loss,a,empty\n0,0,,1.5,\n0,4,2,,\n1,9,3,nan,\n"
    path.write_text(text)
    damaged.write_text(text + "half\n")
    assert repr(metrics_of(path)) == repr(metrics_of(damaged)) != repr(metrics_of(tmp_path / "none.csv"))


def test_columns_are_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text('epoch,step,val/loss,a\n0,0,,1.5\n0,4,"2",\nnonsense,1\n0,"5,\n1,9,3,nan\n1,12,,2\n')
    metrics = metrics_of(path)
    assert [*metrics.steps] == [0, 4, 9, 12] and metrics.steps_per_epoch == 5
    assert metrics.points("val/loss") == [(4, 2), (9, 3)] and len(metrics.points("a")) == 3
    assert metrics.points("b") == [] and metrics_of(tmp_path / "none.csv").steps == ()
    path.write_text(path.read_text() + "2,14,4,\n")
    assert metrics_of(path).points("val/loss")[-1] == (14, 4), "a file that grew is read again"
