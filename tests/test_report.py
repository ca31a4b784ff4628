"""Run folders -> table."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import processes
from conftest import ROOT

from dtp_lightning.report.angles import angles, mean_angles
from dtp_lightning.report.tables import NONE
from dtp_lightning.report.text import table
from dtp_lightning.runs.reader import read_runs, save_runs, settings_of
from dtp_lightning.runs.summary import closing_table, git_commit, versions, write_summary


def write_run(folder: Path, learner: str, seed: int, acc: float, *overrides: str) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in (f"learner={learner}", *overrides)))
    summary = {
        **{"learner": learner, "loss": "hinge", "model": "cnn4", "dataset": "mnist5k", "seed": seed, "epochs": 2},
        **{"linear/test_acc": acc, "linear/val_acc": acc - 0.1, "random_encoder/linear/test_acc": 0.5 + 0.01 * seed},
        **{"fit/seconds": 10.0, "fit/images_per_second": 5.0, "fit/peak_memory_mib": 99.0, "git_commit": "abc"},
    }
    write_summary(summary, folder / "summary.json")


def test_seeds_share_a_row_and_settings_do_not(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "dtp", 0, 0.90, "seed=0")
    write_run(tmp_path / "1", "dtp", 1, 0.94, "seed=1")
    write_run(tmp_path / "2", "dtp", 0, 0.80, "learner.target_step=2")
    write_run(tmp_path / "3", "bp", 0, 0.95, "logger=none")
    lines = table(read_runs([tmp_path]), "test").splitlines()
    assert len(lines) == 2 + 3 + 1
    assert "| dtp | 2 |  | 2 | 92.0 [66.6, 117.4] | 10.0 [10.0, 10.0] |" in lines[2], "t(0.975, 1) = 12.71"
    assert "| learner.target_step=2 | 1 | 80.0 |" in lines[3]
    assert "| bp | 2 |  | 1 | 95.0 |" in lines[4]
    assert f"| random encoder | 0 | {NONE} | 2 | 50.5 [44.1, 56.9] |" in lines[5], "once for each seed"
    assert "84.0" in table(read_runs([tmp_path / "1"]), "val")


def test_how_a_run_was_started_is_no_setting(tmp_path: Path) -> None:
    words = ("resume=true", "workers=0", "loading=stream", "+trainer.profiler=simple", "trainer.accelerator=cpu")
    write_run(tmp_path / "0", "dtp", 0, 0.9, *words, "learner.target_step=1", "+callbacks.alignment.images=9")
    assert settings_of(tmp_path / "0") == "learner.target_step=1"
    write_run(tmp_path / "1", "dtp", 1, 0.9, "++learner.target_step=1")
    assert settings_of(tmp_path / "1") == "learner.target_step=1", "set or added: the same setting"


def test_settings_carry_no_orders_for_a_terminal(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_bytes(b"- learner.target_step=\x1b[31m1\x10\xff\n- batch_size=2\n")
    assert settings_of(tmp_path) == "batch_size=2 learner.target_step=\ufffd[31m1\ufffd\ufffd"


def test_a_run_and_its_saved_row_count_once(tmp_path: Path) -> None:
    """So rows can be saved as runs come, by one command that names the file twice."""
    runs, rows = tmp_path / "runs", tmp_path / "rows.csv"
    for seed in range(2):
        write_run(runs / str(seed), "dtp", seed, 0.9 + seed / 30, "learner.target_step=2")
        save_runs(read_runs([runs, *([rows] if seed else [])]), rows)
    assert [run["seed"] for run in read_runs([rows])] == [0, 1]
    shutil.rmtree(runs / "1")
    write_run(runs / "1", "dtp", 1, 0.8, "learner.target_step=2")
    assert len(read_runs([rows, runs])) == 3, "trained again, another result"


def test_command_saves_what_it_shows(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", "dtp", 0, 0.9)
    command = [sys.executable, "-m", "dtp_lightning.report", str(tmp_path / "runs")]
    done = processes.run([*command, "--save", str(tmp_path / "out" / "x.csv")], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "90.0" in done.stdout and "commit abc" in done.stdout
    (row,) = csv.DictReader((tmp_path / "out" / "x.csv").open())
    assert row["linear/test_acc"] == "0.9" and row["seed"] == "0"
    saved = read_runs([tmp_path / "out" / "x.csv"])
    assert table(saved, "test") == table(read_runs([tmp_path / "runs"]), "test"), "the file is as good as the folders"
    (tmp_path / "other.csv").write_text("learner,seconds\ndtp,1\n")
    done = processes.run([*command[:-1], str(tmp_path / "other.csv")], cwd=ROOT)
    assert done.returncode == 2 and "other.csv holds no runs: it has no dataset, epochs" in done.stderr
    done = processes.run([*command[:-1], str(tmp_path / "none")], cwd=ROOT)
    assert done.returncode == 2 and "no summary.json below" in done.stderr


def test_saved_runs_keep_the_data_set_they_were_evaluated_on(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "dtp", 0, 0.9, "batch_size=5")
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    write_summary(summary | {"evaluated_on": "letters", "git_commit": "12"}, tmp_path / "0" / "summary.json")
    runs = read_runs([tmp_path])
    assert runs[0]["settings"] == "batch_size=5 on letters"
    save_runs(runs, tmp_path / "x.csv")
    (saved,) = read_runs([tmp_path / "x.csv"])
    assert {**saved, "folder": runs[0]["folder"]} == runs[0], "numbers are numbers, a commit of digits is none"


def test_closing_table_shows_random_beside_trained(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "dtp", 0, 0.9)
    shown = closing_table(json.loads((tmp_path / "0" / "summary.json").read_text()), tmp_path)
    assert "linear              50.00     90.00" in shown
    assert "seed 0, epochs 2" in shown and "learns in one" not in shown
    told = json.loads((tmp_path / "0" / "summary.json").read_text())
    assert "only a rule that learns in one has a result here" in closing_table({**told, "epochs": 1}, tmp_path)


def test_provenance() -> None:
    assert "python=3." in versions() and "torch=" in versions()
    commit = git_commit()
    assert commit == "unknown" or len(commit.removesuffix("-dirty")) == 40


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    write_summary({"loss": float("nan"), "epochs": 3, "x": 0.5}, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": None, "epochs": 3, "x": 0.5}


def write_angles(folder: Path, *rows: str) -> Path:
    columns = [f"diagnostics/angle/stage{i}/weight" for i in (1, 2, 3)]
    metrics = folder / "metrics.csv"
    metrics.write_text("\n".join([",".join(["step", *columns, "diagnostics/dead_units/stage3"]), *rows]) + "\n")
    return metrics


def test_rules_are_put_side_by_side(tmp_path: Path) -> None:
    for learner, angle in (("bp", 0.0), ("dtp", 60.0)):
        for seed in (0, 1):
            write_run(tmp_path / f"{learner}{seed}", learner, seed, 0.9, "callbacks.alignment.every_n_steps=10")
            rows = [f"{step},{angle + step},{angle},0,0.1" for step in (0, 10, 20)]
            write_angles(tmp_path / f"{learner}{seed}", *rows)
    command = [sys.executable, "-m", "dtp_lightning.report.rules", str(tmp_path), "--probes", "linear"]
    figure, cost = tmp_path / "angles.png", tmp_path / "cost.csv"
    cost.write_text("learner,macs_ratio,seconds_ratio\ndtp,1.25,1.74\n")
    done = processes.run([*command, "--figure", str(figure), "--cost", str(cost)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (row, *_) = [line for line in done.stdout.splitlines() if "| dtp |" in line]  # then its stages
    ends = [cell.strip() for cell in row.split("|")][-6:-1]
    assert ends == ["60 [60, 60]", "65 [65, 65]", "70 [70, 70]", "1.25", "1.74"], "mean over stages 1 and 2"
    assert figure.stat().st_size > 0
    (tmp_path / "bare").mkdir()
    write_run(tmp_path / "bare" / "0", "bp", 0, 0.9)
    done = processes.run([*command[:3], str(tmp_path / "bare"), "--figure", str(figure)], cwd=ROOT)
    assert done.returncode == 2 and "no run has angles to draw" in done.stderr


def test_the_top_stage_has_no_part_in_mean_angles(tmp_path: Path) -> None:
    """Layer-wise rules have one stage at a time; a stage that never had a gradient is known by its other columns."""
    metrics = write_angles(tmp_path, "0,80,,,0.1", "1,,60,,0.1", "2,,,0,0.1", "3,40,20,0,0.1")
    assert mean_angles(metrics) == [(0, 80), (1, 60), (3, 30)]
    assert angles(metrics) == {"angle/start": 80, "angle/middle": 60, "angle/end": 30}
    assert angles(write_angles(tmp_path, "0,80,60,,0.1")) == dict.fromkeys(
        ("angle/start", "angle/middle", "angle/end"), 70
    )
    metrics.write_text("step,diagnostics/angle/stage1/weight\n0,0\n")
    assert angles(metrics) == {} and angles(tmp_path / "none.csv") == {}, "one stage, and no file"
