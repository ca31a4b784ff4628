"""Run folders -> the report page and what lies beside it."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import processes
import pytest
from conftest import ROOT

from dtp_lightning.report.cells import cells_of, differences_within, differing, labels_of, random_cells
from dtp_lightning.report.page import write_page
from dtp_lightning.report.page_figures import total_macs
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.report.tables import extremes_table, pairs
from dtp_lightning.report.text import table
from dtp_lightning.runs.reader import read_runs, save_runs
from dtp_lightning.runs.status import failures
from dtp_lightning.runs.summary import write_summary

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "input", "img", "br", "link", "hr"}
ACCURACY = {("bp", 0): 0.90, ("bp", 1): 0.93, ("bp", 2): 0.95, ("dtp", 0): 0.91, ("dtp", 1): 0.92, ("dtp", 2): 0.97}


def write_run(folder: Path, learner: str, seed: int, accuracy: float, *overrides: str, config: str = "") -> None:
    """A finished run of two epochs, 5 batches of 10 images each, as the pipeline leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in (f"learner={learner}", *overrides)))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nbatch_size: 10\nlearner:\n  _target_: a.{learner}\n"
        f"logger: {{csv: {{save_dir: x{seed}}}}}\n{config}"
    )
    summary = {
        **{"learner": learner, "loss": "hinge", "model": "cnn4", "dataset": "mnist5k", "seed": seed, "epochs": 2},
        **{"knn/test_acc": accuracy, "knn/val_acc": accuracy - 0.1, "random_encoder/knn/test_acc": 0.5 + 0.01 * seed},
        **{"fit/seconds": 10.0 + seed, "cost/macs_per_image": 2e6, "git_commit": "abcdef0123456789"},
    }
    (folder / "plots").mkdir()
    (folder / "plots" / "views.png").write_bytes(b"")
    angles = [f"diagnostics/angle/stage{i}/weight" for i in (1, 2)]
    distances = [f"val/distances/l1/{kind}_mean" for kind in ("positive", "negative")]
    header = ",".join(["epoch", "step", "val/loss", "val/knn_acc", *angles, *distances])
    (folder / "metrics.csv").write_text(f"{header}\n0,4,1,{accuracy - 0.2},40,0,1,3\n1,9,1,{accuracy - 0.1},30,0,1,4\n")
    write_summary(summary, folder / "summary.json")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two rules, three seeds, names as a sweep gives them; one job more that failed."""
    for (learner, seed), accuracy in ACCURACY.items():
        write_run(tmp_path / "runs" / f"learner={learner},seed={seed}", learner, seed, accuracy, f"seed={seed}")
    failed = tmp_path / "runs" / "learner=<drl>,seed=0"
    failed.mkdir()
    (failed / "config.yaml").write_text("seed: 0\n")
    (failed / "error.txt").write_text("loss is not finite at step 3\n")
    return tmp_path / "runs"


def differences_in(folder: Path) -> dict[str, dict[str, list[str]]]:
    return differences_within(cells_of(read_runs([folder])))


def page_of(sweep: Path) -> tuple[Path, str]:
    path = sweep.parent / "out" / "page.html"
    write_page(read_runs([sweep]), path, "A & B", failed=failures(sweep))
    return path, path.read_text()


class Tags(HTMLParser):
    """Fails where an element is closed that was not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given[k] or "" for k in ("href", "src") if k in given]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_is_whole_and_by_itself(sweep: Path) -> None:
    path, text = page_of(sweep)
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert not tags.open
    assert len(tags.ids) == len(set(tags.ids)), "figures must not share names"
    assert "://" not in text and "@import" not in text and "url(//" not in text
    assert all(
        (path.parent / link.replace("%3D", "=").replace("%2C", ",")).exists() for link in tags.links if link[0] != "#"
    )
    assert {link[1:] for link in tags.links if link[0] == "#"} <= set(tags.ids), "markers are found"
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(tags.ids), "clip paths are found"
    assert "<title>A &amp; B</title>" in text
    assert not re.search("#[0-9a-f]{6}", text.split("<svg", 1)[1].lower()), "figures take their colours from the page"


def test_page_says_what_the_runs_say(sweep: Path) -> None:
    _, text = page_of(sweep)
    cells = {cell.names["learner"]: cell.values("knn/test_acc", 100) for cell in cells_of(read_runs([sweep]))}
    sentence = Paired.of(cells["dtp"], cells["bp"]).sentence("dtp", "bp")  # type: ignore[union-attr]
    tags = Tags()
    tags.feed(text)
    shown = " ".join(tags.texts)
    assert sentence in shown and "over 3 shared seeds" in sentence
    assert "6 runs finished" in shown and "1 unfinished" in shown
    assert "learner=<drl>,seed=0" in shown and "loss is not finite at step 3" in shown
    assert "abcdef0123" in shown and "seed=2" in shown
    for row in (("bp", "92.7"), ("dtp", "93.3"), ("random encoder", "51.0")):
        assert re.search(rf"<tr[^>]*>(<td[^>]*>[^<]*</td>)*<td>{row[0]}</td>(?:(?!</tr>).)*>{row[1]} <small>", text), (
            row
        )


def test_worst_median_and_best(sweep: Path) -> None:
    cells = cells_of(read_runs([sweep]))
    table = extremes_table(cells, ["knn"], "test")
    for cell, row in zip(cells, table.rows, strict=True):
        values = sorted(cell.values("knn/test_acc", 100).values())
        assert [entry.text for entry in row[1:]] == ["knn", "3", *(f"{v:.1f}" for v in values)]
    path, text = page_of(sweep)
    assert "Worst, median and best seed" in text
    (row, *_) = csv.DictReader(path.with_suffix(".csv").open())
    assert float(row["knn/test_acc min"]) < float(row["knn/test_acc median"]) < float(row["knn/test_acc max"])


def test_terminal_and_page_say_the_same(sweep: Path) -> None:
    """Mean, 95 % interval and n of every cell and of the random encoder, which counts once for each seed."""
    path, text = page_of(sweep)
    runs = read_runs([sweep])
    expected = [(name, Interval.of([100 * ACCURACY[name, seed] for seed in range(3)])) for name in ("bp", "dtp")]
    expected.append(("random encoder", Interval.of([50.0, 51.0, 52.0])))
    lines = table(runs, "test").splitlines()[2:]
    assert path.with_suffix(".md").read_text().splitlines()[2:] == lines
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    for (name, interval), line, row in zip(expected, lines, rows, strict=True):
        interval_text = f"[{interval.low:.1f}, {interval.high:.1f}]"
        assert f"| {name} |" in line and f"| 3 | {interval.mean:.1f} {interval_text} |" in line
        assert f">{interval.mean:.1f} <small>{interval_text}</small></td>" in text
        stored = [100 * float(row[f"knn/test_acc {ending}"]) for ending in ("mean", "low95", "high95")]
        assert stored == pytest.approx([interval.mean, interval.low, interval.high]) and row["n"] == "3"


def test_untrained_encoders_of_other_models_are_not_averaged(tmp_path: Path) -> None:
    """A setting of the model gives the untrained encoder another accuracy; those of learner and labels do not."""
    words = ("model.channels=[4]", "model.channels=[8]", "learner.x=1", "learner.x=2", "dataset.label_noise=0.4")
    for number, word in enumerate(words):
        write_run(tmp_path / str(number), "bp", 0, 0.9, word)
    names = [cell.names["settings"] for cell in random_cells(read_runs([tmp_path]))]
    assert names == ["model.channels=[4]", "model.channels=[8]", ""]


def test_files_beside_the_page(sweep: Path) -> None:
    path, _ = page_of(sweep)
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert [row["learner"] for row in rows] == ["bp", "dtp", "random encoder"]
    assert float(rows[0]["knn/test_acc mean"]) == pytest.approx(0.926667, abs=1e-6)
    assert float(rows[0]["knn/test_acc low95"]) < 0.9 and rows[0]["knn/test_acc n"] == "3"
    assert "| 92.7 [" in path.with_suffix(".md").read_text()
    names = {"learning-curves", "angle-to-backprop", "distances-of-pairs"}
    names |= {"accuracy-against-training-time", "accuracy-against-multiply-accumulates"}
    names.add("angle-and-saturation-of-each-stage")
    found = {file.name for file in (path.parent / "page_figures").iterdir()}
    assert found == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert total_macs(sweep / "learner=bp,seed=0", 2e6) == 2e6 * 2 * 10 * 10, "views, steps, images"


def test_page_of_saved_runs(sweep: Path, tmp_path: Path) -> None:
    """It has the folders' numbers, and links to the file."""
    save_runs(read_runs([sweep]), tmp_path / "saved.csv")
    page_of(sweep)
    write_page(read_runs([tmp_path / "saved.csv"]), tmp_path / "saved.html", "saved")
    assert (tmp_path / "saved.md").read_text() == (tmp_path / "out" / "page.md").read_text()
    tags = Tags()
    tags.feed((tmp_path / "saved.html").read_text())
    assert "saved.csv" in tags.links


def test_page_of_bare_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "bp", 0, 0.9)
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "b").mkdir()
    names = {"learner": "dtp", "loss": "l", "model": "m", "dataset": "d", "seed": 0, "epochs": 1}
    write_summary({**names, "knn/test_acc": None, "git_commit": "c"}, tmp_path / "b" / "summary.json")
    write_page(read_runs([tmp_path]), tmp_path / "page.html", "bare")
    assert "Differences between" not in (tmp_path / "page.html").read_text()


def test_characters_that_the_font_lacks(tmp_path: Path) -> None:
    """They are boxes in a PNG, and no warning (which tests take for an error)."""
    for step in ("\u0708", "2"):
        write_run(tmp_path / step, "dtp", 0, 0.9, f"learner.target_step={step}")
    write_page(read_runs([tmp_path]), tmp_path / "page.html", "A")
    assert "target_step=\u0708" in (tmp_path / "page.html").read_text()


def test_an_evaluation_adds_to_its_training(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "bp", 0, 0.9)
    later = tmp_path / "again"
    later.mkdir()
    (later / "config.yaml").write_text(f"checkpoint: {tmp_path}/run/checkpoints/last.ckpt\naccelerator: auto\n")
    names = {"learner": "bp", "loss": "hinge", "model": "cnn4", "dataset": "mnist5k", "seed": 0, "epochs": 2}
    write_summary(
        {**names, "settings": "", "checkpoint": "x", "linear/test_acc": 0.8, "git_commit": "b"}, later / "summary.json"
    )
    (cell,) = cells_of(read_runs([tmp_path]))
    assert cell.folders[0][0] == tmp_path / "run"
    assert cell.values("linear/test_acc") == {0: 0.8} and cell.values("knn/test_acc") == {0: 0.9}
    assert not differences_in(tmp_path)


def test_many_learners_are_compared_with_backprop(tmp_path: Path) -> None:
    for learner in ("a", "b", "bp", "c", "d"):
        write_run(tmp_path / learner, learner, 0, 0.9)
    cells = cells_of(read_runs([tmp_path]))
    assert [(a.names["learner"], b.names["learner"]) for a, b in pairs(cells)] == [(x, "bp") for x in "abcd"]
    assert len(list(pairs(cells[:3]))) == 3
    assert labels_of(cells) == ["a", "b", "bp", "c", "d"]


def test_differing() -> None:
    configs = {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "3", "z": "4"}, "none": {}}
    assert differing(configs) == {"a": {"y": "2", "z": "(not there)"}, "b": {"y": "3", "z": "4"}, "none": {}}


def test_runs_that_differ_are_refused(tmp_path: Path) -> None:
    shared = (
        "workers: {0}\ntrainer: {{max_epochs: {0}}}\ncallbacks: {{k: {{k: {0}}}}}\ndataset: {{root: r{0}, size: 3}}\n"
    )
    write_run(tmp_path / "runs" / "0", "bp", 0, 0.9, config=shared.format(0) + "loss: {margin: 1}\n")
    write_run(tmp_path / "runs" / "1", "bp", 1, 0.8, config=shared.format(1) + "loss: {margin: 1}\n")
    assert not differences_in(tmp_path)
    write_run(tmp_path / "runs" / "2", "bp", 2, 0.7, config=shared.format(2) + "loss: {margin: 3}\n")
    command = [sys.executable, "-m", "dtp_lightning.report", str(tmp_path / "runs"), "--html", str(tmp_path / "x.html")]
    done = processes.run(command, cwd=ROOT)
    assert done.returncode == 1 and "loss.margin is 1 and 3" in done.stderr and "workers" not in done.stderr
    assert not (tmp_path / "x.html").exists()
    done = processes.run([*command, "--allow-differences"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "averages runs that differ in loss.margin: 1 and 3" in (tmp_path / "x.html").read_text()


def test_a_parameter_that_came_since_is_no_difference(tmp_path: Path) -> None:
    """If the newer run has it at its default."""
    target = "_target_: dtp_lightning.losses.ContrastiveHinge"
    for seed, given in enumerate(("", ", gradient_block: false", ", gradient_block: true")):
        assert not differences_in(tmp_path), "only runs that say what the class would do anyway"
        write_run(tmp_path / str(seed), "bp", seed, 0.9, config=f"loss: {{{target}{given}}}\n")
    (differences,) = differences_in(tmp_path).values()
    assert differences == {"loss.gradient_block": ["False", "True"]}


def browse(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    logged = ["--enable-logging=stderr", "--v=0", "--allow-file-access-from-files"]
    return subprocess.run([*command, *logged, *options, address], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_in_a_browser(sweep: Path) -> None:
    path, _ = page_of(sweep)
    for file in sweep.rglob("views.png"):
        file.unlink()  # the page outlives its pictures

    def order(fragment: str) -> list[str]:
        done = browse(path.as_uri() + fragment, "--dump-dom")
        assert "CONSOLE" not in done.stderr, done.stderr
        table = done.stdout.split('id="cells"')[1].split("</table>")[0]
        if fragment.startswith("#sort"):
            assert re.search(r'aria-sort="(as|des)cending"><button type="button">knn', table)
        rows = re.findall(r"<tr(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
        return [
            next(n for n in ("random encoder", "dtp", "bp") if f"<td>{n}</td>" in r) for r in rows if "hidden" not in r
        ]

    assert order("") == ["bp", "dtp", "random encoder"]
    assert order("#sort=cells:knn:desc") == ["dtp", "bp", "random encoder"]
    assert order("#sort=cells:knn:asc") == ["random encoder", "bp", "dtp"]
    assert order("#filter=DTP%20hinge") == ["dtp"]
    browse(path.as_uri(), f"--screenshot={path.with_suffix('.png')}", "--window-size=1280,2000")
    assert path.with_suffix(".png").stat().st_size > 20_000
    frame = path.with_name("phone.html")
    frame.write_text(
        f'<iframe src="{path.name}" style="width:360px;height:700px" '
        'onload="const d=this.contentDocument.documentElement;'
        'document.body.dataset.over=d.scrollWidth-d.clientWidth"></iframe>'
    )
    assert 'data-over="0"' in browse(frame.as_uri(), "--dump-dom").stdout, "the page scrolls sideways on a phone"
