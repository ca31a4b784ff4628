"""What trackers show of one run, and the views made of it: W&B, TensorBoard, the dashboard, the board."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from conftest import ROOT
from fake_wandb import FakeWandb, served

from dtp_lightning.errors import UserError
from dtp_lightning.loggers.trackers import STEP
from dtp_lightning.report.board import collect
from dtp_lightning.report.dashboard import tracked, workspace
from dtp_lightning.report.text import table
from dtp_lightning.report.wandb_panels import SECTIONS, panels_of
from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.summary import figures_in, scalars_of

BOTH = (
    "logger=wandb",
    "logger.wandb.mode=offline",
    "logger.wandb.group=together",
    "+logger.tensorboard._target_=dtp_lightning.loggers.trackers.tensorboard_logger",
)
EVERYTHING = (
    "callbacks=[online_knn,online_distances,alignment,pictures]",
    "callbacks.pictures.every_n_epochs=1",
    "callbacks.pictures.images=50",
    "callbacks.alignment.every_n_steps=2",
    "callbacks.alignment.images=20",
    "evaluation=[few_labels,knn,distances]",
    "evaluation.few_labels.per_class=[1]",
    "model.channels=[4,4,4,4]",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=2",
)
needs_workspaces = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="pip install 'dtp-lightning[dashboard]' to run this"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside wandb-workspaces
NO_SCALARS = ("_", "plots/", "tables/", "confusion/", "histograms/", STEP, "epoch")
TABLES = {f"tables/{name}" for name in ("embedding_map", "misclassified", "neighbours", "per_class")}
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learners, all diagnostics, both trackers at once: what differs between these is theirs, not the run's."""
    folder = tmp_path_factory.mktemp("trackers")
    command = [sys.executable, str(ROOT / "train.py"), "-m", "learner=dtp,bp", *BOTH, *EVERYTHING]
    named = "hydra.sweep.subdir=${learner._target_}"
    done = processes.run([*command, "hydra.sweep.dir=sweep", named], cwd=folder, timeout=400)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture(scope="module")
def run(sweep: Path) -> Path:
    (folder,) = sweep.glob("*TargetPropagation")
    return folder


@pytest.fixture(scope="module")
def wandb_rows(run: Path) -> list[dict[str, Any]]:
    """What was logged to W&B at each step, as its own reader finds it in the offline run."""
    (offline,) = (run / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    return [record["history"]["item"] for record in map(json.loads, done.stdout.splitlines()) if "history" in record]


@pytest.fixture(scope="module")
def in_wandb(wandb_rows: list[dict[str, Any]]) -> tuple[Points, dict[str, int]]:
    """Scalar -> (batches, value), and figure -> batches."""
    scalars: Points = {}
    figures = {}
    for row in wandb_rows:
        for name, value in row.items():
            if name.endswith("._type") and value == "images/separated":
                figures[name.removesuffix("._type")] = row[STEP]
            elif isinstance(value, float | int) and not name.startswith(NO_SCALARS):
                scalars.setdefault(name, []).append((row[STEP], value))
    return scalars, figures


def test_every_figure_is_in_wandb_with_its_step(run: Path, in_wandb: tuple[Points, dict[str, int]]) -> None:
    _, figures = in_wandb
    assert set(figures) == {f"plots/{path.stem}" for path in (run / "plots").glob("*.png")}
    assert {"plots/views", "plots/confusion_knn", "plots/distances", "plots/diagnostics"} <= set(figures)
    assert set(figures.values()) == {8}, "the batches of the run"


def test_tensorboard_shows_the_same(run: Path, in_wandb: tuple[Points, dict[str, int]]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    scalars, figures = in_wandb
    names = set(events.Tags()["scalars"]) - {"epoch"}
    assert names == set(scalars)
    for name in names:
        assert [(e.step, e.value) for e in events.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in scalars[name]
        ], name
    assert {name: events.Images(name)[-1].step for name in events.Tags()["images"]} == figures


def shown_in(config: dict[str, Any]) -> list[str]:
    """Names of what a panel shows: quantities, figures, or a table."""
    if "panel2Config" in config:
        return [config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]]
    return config.get("metrics") or config["mediaKeys"]


def test_histograms_are_in_both(run: Path, wandb_rows: list[dict[str, Any]]) -> None:
    """Of each stage at each drawing, and of distances at the end: as many values as there are."""
    steps: dict[str, list[int]] = {}
    counts = {}
    for row in wandb_rows:
        for name in (key.removesuffix("._type") for key, value in row.items() if value == "histogram"):
            steps.setdefault(name, []).append(row[STEP])
            counts[name] = sum(row[f"{name}.values"])
    stages = {f"histograms/{kind}/stage{i}" for kind in ("weight", "activation") for i in (1, 2, 3, 4)}
    assert {name: found for name, found in steps.items() if name in stages} == {name: [4, 8] for name in stages}
    pairs = {name for name in steps if name.endswith("/positive_pairs")}
    assert pairs == {f"histograms/{which}distances/{kind}/positive_pairs" for which in ("", "random_encoder/")
                     for kind in ("l1_distance", "cosine_similarity")}  # fmt: skip
    assert counts["histograms/weight/stage2"] == 4 * 4 * 9, "convolution of 4 to 4 channels"
    assert counts["histograms/activation/stage4"] == 50 * 4, "a pixel is left of 28"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"histograms": 0}).Reload()
    assert {name: [e.step for e in events.Histograms(name)] for name in events.Tags()["histograms"]} == steps


def test_neighbours_and_the_map_are_tables(run: Path) -> None:
    (offline,) = (run / "wandb").glob("offline-run-*")
    tables = {}
    for name in ("embedding_map", "neighbours"):
        (path,) = offline.glob(f"files/media/table/tables/{name}_*.table.json")
        tables[name] = json.loads(path.read_text())
    assert tables["embedding_map"]["columns"] == ["class", "x", "y"] and len(tables["embedding_map"]["data"]) == 50
    assert len(tables["neighbours"]["data"]) == 6 and len(tables["neighbours"]["columns"]) == 3 + 8
    for query, name, same, *nearest in tables["neighbours"]["data"]:
        assert query == "Image" and name in "0123456789" and 0 <= same <= len(nearest)


@needs_workspaces
def test_every_panel_names_what_the_runs_logged(sweep: Path, in_wandb: tuple[Points, dict[str, int]]) -> None:
    runs = tracked(read_runs([sweep]))
    spec = workspace(runs, "someone", "some-project", "a name")._to_model().model_dump(by_alias=True)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("someone", "some-project", "a name")
    section = spec["spec"]["section"]
    sections = {s["name"]: s["panels"] for s in section["panelBankConfig"]["sections"]}
    assert list(sections) == ["training", "probes", "pictures", "tables", "alignment", "distances", "cost"]
    shown: dict[str, list[str]] = {}
    for name, panels in sections.items():
        configs = [panel["config"] for panel in panels]
        shown[name] = [key for config in configs for key in shown_in(config)]
        assert all(config["xAxis"] == STEP for config in configs if "xAxis" in config and "yLogScale" in config)
    scalars, figures = in_wandb
    assert {*shown.pop("tables")} == TABLES
    every = [key for keys in shown.values() for key in keys]
    assert set(every) <= set(scalars) | set(figures)
    curves = {key for key in scalars if key.startswith(("train/", "val/", "diagnostics/"))}
    assert curves | set(figures) <= set(every), "nothing that is logged over time is left out"
    assert {"train/loss", "val/loss"} <= set(shown["training"])
    assert {"knn/test_acc", "random_encoder/few_labels/1/test_acc", "val/knn_acc"} <= set(shown["probes"])
    assert "diagnostics/angle/stage1/weight" in shown["alignment"]
    assert "cost/macs_per_image" in shown["cost"]


@needs_workspaces
def test_runs_are_grouped_by_learner(sweep: Path) -> None:
    runs = tracked(read_runs([sweep]))
    section = workspace(runs, "someone", "some-project", "a name")._to_model().spec.section
    (runset,) = section.run_sets
    assert [(key.section, key.name) for key in runset.grouping] == [("config", "names.value.learner")]
    assert runset.filters["filters"][0]["value"] == ["together"], "these runs, and not all of the project's"
    assert len(set(section.custom_run_colors.values())) == 2, "a colour for each learner"
    several = [*runs, {**runs[0], "loss": "simclr"}]
    (runset,) = workspace(several, "someone", "some-project", "a name")._to_model().spec.section.run_sets
    assert [key.name for key in runset.grouping] == ["names.value.learner", "names.value.loss"], "not averaged"


def test_what_shares_a_panel() -> None:
    assert panels_of(["train/loss", "val/loss", "train/local_loss/stage1", "train/local_loss/stage12"]) == {
        "loss": ["train/loss", "val/loss"],
        "local_loss/*": ["train/local_loss/stage1", "train/local_loss/stage12"],
    }
    assert list(panels_of(["linear/test_acc", "random_encoder/linear/test_acc"])) == ["linear/test_acc"]
    assert sum(bool(re.fullmatch(pattern, "val/distances/l1/auc")) for pattern in SECTIONS.values()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "error: where are the runs in W&B? make dashboard ENTITY=... PROJECT=..."),
        (("--entity", "someone"), "error: where are the runs in W&B? make dashboard ENTITY=... PROJECT=..."),
        (("--entity", "someone", "--project", "p"), "error: no run here was logged to W&B: run with logger=wandb"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "dtp_lightning.report.dashboard", str(tmp_path), *words]
    done = processes.run(command, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (1, said)


@needs_workspaces
def test_nobody_logged_in_is_one_line(sweep: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtp_lightning.report.dashboard", str(sweep), "--entity", "a", "--project", "p"]
    alone = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = processes.run(command, env=alone, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (1, "error: nobody is logged in to W&B: wandb login")


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with served() as fake:
        yield fake


@needs_workspaces
@pytest.mark.parametrize("refuses", ["", "project-view", "runs"])
def test_the_workspace_and_the_report_are_saved(
    refuses: str, server: FakeWandb, sweep: Path, in_wandb: tuple[Points, dict[str, int]], tmp_path: Path
) -> None:
    server.refuses = refuses
    command = [sys.executable, "-m", "dtp_lightning.report.dashboard", str(sweep), "--entity", "a", "--project", "p"]
    account = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
    }
    done = processes.run(command, env=account, timeout=240)
    assert server.saved, done.stderr
    for view in server.saved:
        assert (view["entityName"], view["projectName"], view["displayName"]) == ("a", "p", "sweep")
    sections = json.loads(server.saved[0]["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(SECTIONS)
    told = [f"dashboard {account['WANDB_BASE_URL']}/a/p?nw=abc", f"report    {account['WANDB_BASE_URL']}/a/p/reports/"]
    if refuses:
        told = told[: ["project-view", "runs"].index(refuses)]
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        made = {"project-view": "workspace", "runs": "report"}[refuses]
        assert last.startswith(f"error: W&B did not take the {made}: ") and "permission denied" in last
    else:
        assert done.returncode == 0, done.stderr
        scalars, figures = in_wandb
        check_report(json.loads(server.saved[1]["spec"])["blocks"], sweep, set(scalars) | set(figures))
    lines = done.stdout.splitlines()
    assert len(lines) == len(told) and all(map(str.startswith, lines, told)), lines


def check_report(blocks: list[dict], sweep: Path, logged: set[str]) -> None:
    """The table of `dtp report`, and panels that name what was logged, of these runs alone, grouped by learner."""
    runs = read_runs([sweep])
    texts = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert texts[0] == table(runs, "test") and runs[0]["git_commit"] in texts[1]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == len(SECTIONS)
    for grid in grids:
        (runset,) = grid["runSets"]
        assert (runset["project"]["entityName"], runset["project"]["name"]) == ("a", "p")
        assert runset["filters"]["filters"][0]["value"] == ["together"]
        assert [key["name"] for key in runset["grouping"]] == ["names.value.learner"]
    panels = [grid["panelBankSectionConfig"]["panels"] for grid in grids]
    for inside in panels:
        assert len({json.dumps(panel["layout"]) for panel in inside}) == len(inside), "no panel hides another"
    configs = [panel["config"] for inside in panels for panel in inside]
    shown = {key for config in configs for key in shown_in(config)}
    assert {"train/loss", "knn/test_acc", "plots/confusion_knn"} | TABLES <= shown <= logged | TABLES


def test_without_the_extra_it_is_one_line(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install '\.\[dashboard\]'"):
        workspace(tracked(read_runs([sweep])), "a", "p", "n")


def test_the_board_gathers_the_runs_of_a_sweep(sweep: Path) -> None:
    gathered = collect([sweep])
    assert gathered == sweep / "wandb"
    (gathered / "offline-run-gone").symlink_to("nowhere")
    assert collect([sweep]) == gathered, "again, with a run deleted"
    runs = sorted(path.resolve().parent.parent.name for path in gathered.glob("*run-*"))
    assert runs == sorted(path.name for path in sweep.glob("dtp_lightning*"))
    assert collect([sweep.parent / "nothing"]) is None


def test_the_board_without_a_terminal_says_what_to_call(sweep: Path, tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    page.write_text("")
    command = [sys.executable, "-m", "dtp_lightning.report.board", str(sweep), "--page", str(page)]
    done = processes.run(command, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"page     {page.as_uri()}", f"terminal {sys.executable} -m wandb leet {sweep / 'wandb'}"
    ]  # fmt: skip


def test_what_a_run_hands_to_trackers_at_its_end(run: Path) -> None:
    (summary,) = read_runs([run])
    assert {"knn/test_acc", "fit/seconds"} <= set(scalars_of(summary)) and "seed" not in scalars_of(summary)
    assert all(path.exists() for path in figures_in(run).values())
