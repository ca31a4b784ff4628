"""Angles, steps and saturation of each stage: from run folders to the table, the CSV file and the figure."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import processes
import pytest
from conftest import ROOT

from dtp_lightning.errors import UserError
from dtp_lightning.report.alignment import alignment_table, save_stages, stages_of
from dtp_lightning.report.alignment_figure import alignment, grouped
from dtp_lightning.report.cells import cells_of
from dtp_lightning.report.tables import NONE
from dtp_lightning.runs.reader import read_runs

QUANTITIES = (
    *("angle/stage{}/weight", "norm_ratio/stage{}/weight", "effective_step/stage{}", "mean_abs/stage{}"),
    "saturated/stage{}",
)
COMMIT = "abcdef0123456789"


def write_run(folder: Path, learner: str, seed: int, rows: list[dict[str, float]], model: str = "cnn4") -> None:
    """A finished run with these rows of diagnostics, by name without the prefix."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nbatch_size: 100\nmodel: {{feedback: strided}}\n"
        f"learner: {{_target_: a.{learner}, forward_optimizer: {{lr: 0.002}}}}\n"
    )
    names = {"learner": learner, "loss": "hinge", "model": model, "dataset": "cifar10", "seed": seed, "epochs": 1}
    (folder / "summary.json").write_text(json.dumps({**names, "git_commit": COMMIT}))
    columns = ["step", *dict.fromkeys(f"diagnostics/{name}" for row in rows for name in row if name != "step")]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({name if name == "step" else f"diagnostics/{name}": value for name, value in row.items()})


def row(step: int, **stages: tuple[float | None, ...]) -> dict[str, float]:
    """Angle, norm ratio, step, mean abs(h) and saturated share of stages s1, s2, ...; None is not logged."""
    return {"step": step} | {
        quantity.format(stage[1:]): value
        for stage, values in stages.items()
        for quantity, value in zip(QUANTITIES, values, strict=True)
        if value is not None
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``dtp`` with two seeds and three stages, ``relu`` whose activation has no bounds; the last look has no step."""
    top = (0.0, 1.0, 0.9, 0.3, 0.2)
    for seed, more in ((0, 0.0), (1, 2.0)):
        write_run(
            tmp_path / "runs" / f"dtp{seed}", "dtp", seed,
            [
                row(0, s1=(90.0, 5.0, 1.0, 0.1, 0.0), s2=(80.0, 4.0, 1.0, 0.1, 0.0), s3=top),
                row(25, s1=(10.0 + more, 1.1, 0.5, 0.2, 0.0), s2=(None, None, 0.6, 0.2, 0.1), s3=top),
                row(50, s1=(20.0 + more, 1.3, None, 0.4 + more / 10, 0.1), s2=(30.0, 0.9, None, 0.5, 0.25), s3=top),
            ],
        )  # fmt: skip
    write_run(tmp_path / "runs" / "relu", "relu", 0, [row(40, s1=(7.0, 1.0, 0.5, 2.0, None), s2=(0, 1, 1, 1, None))])
    write_run(tmp_path / "runs" / "bare", "bp", 0, [{"step": 1, "effective_rank/features": 3.0}])
    return tmp_path / "runs"


def test_each_stage_is_summed_up_from_a_batch_on(folder: Path) -> None:
    stages = stages_of(cells_of(read_runs([folder])), from_batch=25)
    assert [(one.cell.names["learner"], one.stage) for one in stages] == [
        *(("dtp", i) for i in (1, 2, 3)), ("relu", 1), ("relu", 2),
    ]  # fmt: skip
    first, second, top, relu, _ = stages
    assert (first.angle, first.largest, first.looks, first.batches) == (16.0, 22.0, 4, 50), "10, 12, 20 and 22 degrees"
    assert (first.norm_ratio, first.effective_step) == pytest.approx((1.2, 0.5))
    assert (first.mean_abs, first.saturated) == pytest.approx((0.5, 0.1)), "at the last look: 0.4 and 0.6"
    assert (second.angle, second.largest, second.effective_step) == (30.0, 30.0, 0.6), "it had no gradient at one look"
    assert (top.angle, top.largest, top.norm_ratio) == (None, None, None), "0 by construction"
    assert (top.effective_step, top.mean_abs, top.saturated) == pytest.approx((0.9, 0.3, 0.2))
    assert relu.saturated is None and relu.mean_abs == 2.0
    assert stages_of(cells_of(read_runs([folder])))[0].angle == 16.0, "the look before training never counts"
    late = stages_of(cells_of(read_runs([folder])), from_batch=60)[0]
    assert (late.angle, late.looks) == (None, 0) and late.mean_abs == pytest.approx(0.5), "no look so late"


def test_the_file_names_what_was_run(folder: Path, tmp_path: Path) -> None:
    stages = stages_of(cells_of(read_runs([folder])), from_batch=25)
    save_stages(stages, 25, tmp_path / "new" / "angles.csv")
    rows = list(csv.DictReader((tmp_path / "new" / "angles.csv").open()))
    assert len(rows) == 5
    told = {
        "learner": "dtp", "model": "cnn4", "feedback": "strided", "dataset": "cifar10", "loss": "hinge", "seeds": "0 1",
        "batches": "50", "batch_size": "100", "rate": "0.002", "git_commit": COMMIT, "from_batch": "25", "stage": "1",
        "looks": "4", "angle/median": "16.0", "angle/largest": "22.0", "effective_step/median": "0.5",
        "mean_abs/last": "0.5",
    }  # fmt: skip
    assert {name: rows[0][name] for name in told} == told
    assert rows[2]["angle/median"] == "" and rows[2]["mean_abs/last"] == "0.3"
    with pytest.raises(UserError, match="no run has angles to write"):
        save_stages([], 25, tmp_path / "none.csv")


def test_the_command_writes_table_file_and_figure(folder: Path, tmp_path: Path) -> None:
    file, picture = tmp_path / "angles.csv", tmp_path / "angles.png"
    words = ["rules", str(folder), "--angles", str(file), "--figure", str(picture), "--from-batch", "25"]
    done = processes.run([sys.executable, "-m", "dtp_lightning", *words], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "from batch 25 on" in done.stdout
    assert "| dtp | 1 | 16.0 | 22.0 | 1.20 | 0.50 | 0.50 | 10.0 |" in done.stdout
    assert f"| dtp | 3 | {NONE} | {NONE} | {NONE} | 0.90 | 0.30 | 20.0 |" in done.stdout
    assert len(file.read_text().splitlines()) == 6 and picture.read_bytes()[:4] == b"\x89PNG"
    words = ["rules", str(folder / "bare"), "--angles", str(file)]
    done = processes.run([sys.executable, "-m", "dtp_lightning", *words], cwd=ROOT)
    assert done.returncode == 2 and "train with callbacks=[alignment]" in done.stderr


def test_the_report_shows_it_where_it_was_measured(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "dtp_lightning", "report", str(folder)]
    done = processes.run([*command, "--html", str(page)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "| dtp | 1 | 16.0 | 22.0 | 1.20 | 0.50 |" in done.stdout
    text = page.read_text()
    assert '<table id="alignment">' in text and "Angle and saturation of each stage</h3>" in text
    assert 'class="wide"' in text and list((tmp_path / "page_figures").glob("angle-and-saturation*.png"))
    command[-1] += "/bare"
    done = processes.run([*command, "--html", str(page)], cwd=ROOT)
    assert done.returncode == 0 and "saturated" not in done.stdout and '<table id="alignment">' not in page.read_text()


def test_the_figure_has_a_column_a_stage_and_saturation_beneath(folder: Path) -> None:
    groups = grouped(cells_of(read_runs([folder])))
    drawing = alignment(groups)
    assert drawing is not None
    above, beneath = drawing.figure.axes[:3], drawing.figure.axes[3:]
    assert len(beneath) == 3
    drawn = {line.get_label(): line for line in above[0].lines}
    assert list(drawn["dtp"].get_ydata()) == [90.0, 11.0, 21.0], "mean over seeds"
    assert not [line for line in above[2].lines if line.get_label() == "dtp"], "the top stage's angle is left out"
    assert "top stage" in above[2].texts[0].get_text()
    lowest = {line.get_label(): list(line.get_ydata()) for line in beneath[2].lines}
    assert lowest["dtp"] == pytest.approx([0.3, 0.3, 0.3])
    assert [text.get_text() for text in drawing.figure.legends[0].texts] == ["dtp", "relu"], "not bp, which has none"
    bare = [cell for cell in cells_of(read_runs([folder])) if cell.names["learner"] == "bp"]
    assert alignment(grouped(bare)) is None and alignment_table(stages_of(bare)).rows == []


def test_lines_say_the_model_and_many_part_by_it(tmp_path: Path) -> None:
    rows = [row(step, s1=(10.0, 1, 1, 0.1, 0), s2=(0, 1, 1, 0.1, 0)) for step in (0, 5)]
    for model in ("cnn4", "cnn4_average"):
        for k in range(5):
            write_run(tmp_path / f"{model}{k}", f"rule{k}", 0, rows, model)
    every = cells_of(read_runs([tmp_path]))
    few = [cell for cell in every if cell.names["learner"] in ("rule0", "rule1")]
    (lines,) = grouped(few).values()
    assert [line.label for line in lines][:2] == ["rule0, cnn4", "rule1, cnn4"]
    many = grouped(every)
    assert list(many) == ["cnn4", "cnn4_average"] and [len(lines) for lines in many.values()] == [5, 5]
    assert [line.number for line in many["cnn4"]] == [line.number for line in many["cnn4_average"]], "one look a rule"
    drawing = alignment(many)
    assert drawing is not None and len(drawing.figure.axes) == 8
    assert [text.get_text() for text in drawing.figure.legends[0].texts] == [f"rule{k}" for k in range(5)]
