"""The ``dtp`` command: verbs, the newest run, where conf/ lies, what a command imports."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from conftest import ROOT
from processes import dtp
from runs import TINY

from dtp_lightning import __version__
from dtp_lightning.cli import entry, evaluate, paths, search, sweeps, train
from dtp_lightning.cli import main as cli
from dtp_lightning.cli.words import options_first, word_of_hydra
from dtp_lightning.runs import summary
from dtp_lightning.runs.checkpoint_io import Progress

CHEAP = (*TINY, "learner=bp", "evaluation=[knn]", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made by ``dtp train``."""
    folder = tmp_path_factory.mktemp("a folder, with = and spaces")
    command = [sys.executable, "-m", "dtp_lightning", "train", *CHEAP]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``dtp`` in this process, for what ends before Hydra begins; returns the exit code."""
    monkeypatch.setenv(entry.FULL_ERROR, "0")  # entry.run sets it; what the test sets is taken back

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dtp", *words])
        try:
            cli.main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    return run


def leave(*files: str) -> None:
    """Files, each newer than the one before."""
    for age, file in enumerate(files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
        os.utime(file, (1e9 + age, 1e9 + age))


def test_what_it_says_of_itself(call: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    assert call("--version") == 0 and capsys.readouterr().out == f"dtp {__version__}\n"
    assert call() == 2
    usage = capsys.readouterr().out
    assert all(f"\n  {verb} " in usage for verb in cli.VERBS)
    assert call("sweep") == 2
    listed = capsys.readouterr().out
    assert all(f"\n  {path.stem} " in listed for path in (ROOT / "sweeps").glob("*.yaml"))


WRONG = [
    ("trian", "trian: no such command; did you mean 'train'?"),
    ("fly", "fly: no such command; there is train, evaluate, "),
    ("learner=dtp", "learner=dtp: a command comes first, such as dtp train learner=dtp"),
    ("sweep bp_vs_dpt", "bp_vs_dpt: no such sweep, and no YAML file; did you mean 'bp_vs_dtp'? There is: alignment, "),
    ("sweep seed=0", "seed=0: name the sweep first, dtp sweep NAME key=value; there is: alignment, "),
    ("sweep smoke --config-dir nowhere", "--config-dir nowhere: no such folder"),
    ("sweep losses loss=hinge,simclr learner=dpt", "learner=dpt: no such choice; did you mean 'dtp'?"),
    (
        "sweep objectives loss.temperature=1",
        "unknown key 'loss.temperature'; it belongs to loss=dcl, simclr: in a sweep over",
    ),
    ("evaluate last", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("evaluate checkpoint=last", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("train resume=last", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("export last", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("report last", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("report", "there is no last run: nothing below outputs/ or multirun/ in "),
    ("search dtpp", "dtpp: no such file, and no such search (there is: bp, dtp, dtp_autoencoder)"),
]


@pytest.mark.parametrize(("line", "expected"), WRONG, ids=[w[0] for w in WRONG])
def test_a_mistake_is_one_line(
    line: str, expected: str, call: Callable[..., int], empty: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call(*line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}") and len(said.splitlines()) == 1, said
    assert not list(empty.iterdir())


def test_ctrl_c_where_no_hydra_is(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "main", stopped)
    assert call("search", "dtp") == 130 and capsys.readouterr().err == "stopped by SIGINT\n"


def test_the_last_run_is_the_newest(empty: Path) -> None:
    leave("outputs/d/1/checkpoints/last.ckpt", "outputs/d/1/summary.json", "outputs/d/2/checkpoints/last.ckpt")
    assert paths.last_run(paths.CHECKPOINT) == Path("outputs/d/2")
    assert paths.last_run(paths.SUMMARY) == Path("outputs/d/1") and paths.newest_folder() == Path("outputs")
    leave("outputs/a/summary.json", "multirun/smoke/multirun.yaml", "multirun/smoke/seed=0/summary.json")
    assert paths.last_run(paths.SUMMARY) == Path("multirun/smoke/seed=0")
    assert paths.newest_folder() == Path("multirun/smoke")


def test_last_is_a_run_only_where_a_run_is_asked_for(empty: Path) -> None:
    leave("outputs/d/1/summary.json")
    words = paths.resolve_last(["last", "--title", "last", "--html", "page.html"], paths.SUMMARY, cli.VALUED)
    assert words == ["outputs/d/1", "--title", "last", "--html", "page.html"]


def test_words_that_name_a_run(empty: Path) -> None:
    leave("outputs/d/learner=bp,seed=0/checkpoints/last.ckpt")
    run = empty / "outputs/d/learner=bp,seed=0"
    assert word_of_hydra("resume=last") == f"resume='{run}'"
    assert word_of_hydra("checkpoint=outputs/d/learner=bp,seed=0") == "checkpoint='outputs/d/learner=bp,seed=0'"
    for word in ("resume=true", "checkpoint=nowhere.ckpt", "checkpoint='outputs'", "seed=last", "last"):
        assert word_of_hydra(word) == word


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("seed=0 -m learner=bp,dtp", "-m seed=0 learner=bp,dtp"),
        ("seed=0 --cfg job learner=bp", "--cfg job seed=0 learner=bp"),
        ("seed=0 --info learner=bp", "--info seed=0 learner=bp"),
        ("seed=0 --info config -cn evaluate", "--info config -cn evaluate seed=0"),
        ("seed=0 --config-dir=mine ~callbacks -cd", "--config-dir=mine -cd seed=0 ~callbacks"),
    ],
)
def test_options_stand_anywhere(typed: str, given: str) -> None:
    assert options_first(typed.split()) == given.split()


def test_a_run_is_evaluated_exported_and_reported_by_last(here: Path) -> None:
    (run,) = here.glob("outputs/*/*")
    by_name = dtp("evaluate", str(run.relative_to(here)), "evaluation=[knn]", cwd=here)
    assert by_name.returncode == 0, by_name.stderr
    by_last = dtp("evaluate", "last", "evaluation=[knn]", "dataset=mnist5k", cwd=here)
    accuracies = [next(s for s in done.stdout.splitlines() if s.startswith("knn")) for done in (by_name, by_last)]
    assert accuracies[0] == accuracies[1] and by_last.returncode == 0
    exported = dtp("export", "last", cwd=here)
    assert exported.returncode == 0 and (run / "encoder.safetensors").exists(), exported.stderr
    for words in (["last"], []):
        table = dtp("report", *words, cwd=here)
        assert "| mnist5k | cnn4 | hinge | bp | 1 |" in table.stdout, table.stderr
    nothing = dtp("evaluate", "checkpoint=outputs", cwd=here)
    assert nothing.returncode == 2 and "outputs: no run folder; a run leaves checkpoints/last.ckpt" in nothing.stderr


def test_resume_last_goes_on_from_the_newest(here: Path) -> None:
    done = dtp("train", *CHEAP, "resume=last", "trainer.max_epochs=2", "hydra.run.dir=more", cwd=here)
    assert done.returncode == 0, done.stderr
    written = (here / "more" / "config.yaml").read_text()
    assert str(next(here.glob("outputs/*/*"))) in " ".join(written.split()), "the run itself, not the word"
    assert '"epochs": 2' in (here / "more" / "summary.json").read_text()


@pytest.mark.faults
@pytest.mark.parametrize("script", [[str(ROOT / "train.py")], ["-m", "dtp_lightning", "train"]], ids=["script", "dtp"])
def test_ctrl_c_says_what_was_typed(script: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a, folder"
    folder.mkdir()
    command = [sys.executable, *script, *TINY, "learner=bp", "trainer.max_epochs=100000"]
    process = processes.Process(command, cwd=folder)
    began = time.monotonic()
    while not list(folder.glob("outputs/*/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    going_on = said.partition("; to go on: python ")[2].strip()
    assert going_on.startswith(" ".join(script)), said
    (run,) = folder.glob("outputs/*/*")
    ended = Progress.read(run / "checkpoints" / "last.ckpt").epochs + 1
    split = subprocess.run(  # by a shell, as a user's would
        f"printf '%s\\n' {going_on} trainer.max_epochs={ended}", shell=True, capture_output=True, text=True, check=True
    )
    again = processes.run([sys.executable, *split.stdout.splitlines()], cwd=folder)
    assert again.returncode == 0 and f'"epochs": {ended}' in (run / "summary.json").read_text(), again.stderr


def test_how_a_sweep_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = entry.CommandLine(["dtp", "sweep", "smoke"], ["seed=0", "resume=x"], ["sweep"], ["--config-dir", "/x"])
    monkeypatch.setattr(entry, "_typed", line)
    assert entry._command("hydra.sweep.dir", "/a b") == "dtp sweep smoke seed=0 resume=true 'hydra.sweep.dir=/a b'"
    assert entry._command("hydra.run.dir", "/a,b").endswith(""" 'hydra.run.dir='"'"'/a,b'"'"''""")


def test_a_sweep_of_ones_own(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML file of the user's, and groups of the user's for one that comes with the program."""
    started: list[entry.CommandLine] = []
    monkeypatch.setattr(train, "start", started.append)
    (empty / "my sweeps").mkdir()
    (empty / "my sweeps" / "mine.yaml").write_text("defaults: [train]\n")
    sweeps.start(entry.CommandLine(["dtp", "sweep"], ["my sweeps/mine.yaml", "seed=0"], ["sweep"]))
    sweeps.start(entry.CommandLine(["dtp", "sweep"], ["smoke", "--config-dir", "my sweeps"], ["sweep"]))
    own, shipped = started
    assert own.hydra == ["--config-dir", str(empty / "my sweeps"), "--config-name", "mine", "--multirun"]
    assert own.words == ["seed=0"]
    assert own.program == ["dtp", "sweep", "my sweeps/mine.yaml"]
    assert shipped.hydra[1] == str(ROOT / "sweeps")
    assert shipped.words == [f"hydra.searchpath=['file://{empty / 'my sweeps'}']"]


def test_conf_of_a_checkout_and_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (paths.conf(), paths.sweeps()) == (ROOT / "conf", ROOT / "sweeps")
    package = tmp_path / "site-packages" / "dtp_lightning"
    (package / "conf").mkdir(parents=True)
    (package.parent / "conf").mkdir()  # of another package
    monkeypatch.setattr(paths, "PACKAGE", package)
    assert paths.conf() == package / "conf"


def test_a_runs_other_processes_are_started_by_the_same_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts them by ``sys.argv``, from which Hydra was not to see the verb."""
    monkeypatch.setattr(entry.allocator, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(
        entry, "_typed", entry.CommandLine(["dtp", "train"], ["seed=1", "trainer.devices=2"], ["train"])
    )
    monkeypatch.setattr(sys, "argv", ["/bin/dtp", "seed=1", "trainer.devices=2"])
    assert entry.job(lambda: list(sys.argv)) == ["/bin/dtp", "train", "seed=1", "trainer.devices=2"]


def test_the_commit_of_a_repository_around_an_installation_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "somebody's"]
    subprocess.run(["git", "-C", str(tmp_path), *commit], check=True)
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "site-packages" / "dtp_lightning" / "runs" / "summary.py"))
    (tmp_path / "site-packages" / "dtp_lightning" / "runs").mkdir(parents=True)
    assert summary.git_commit() == "unknown"


def test_launchers_can_pickle_a_job() -> None:
    for task in (train.task, evaluate.task):
        assert pickle.loads(pickle.dumps(task)) is task


HEAVY = ("wandb", "matplotlib", "sklearn", "pandas")
LOADED = f"import atexit, sys; atexit.register(lambda: print('LOADED', [m for m in {HEAVY} if m in sys.modules]))"


def loaded(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"{LOADED}\n{code}"], cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("LOADED ")[2].strip()


def test_load_encoder_needs_none_of_them(here: Path) -> None:
    (run,) = here.glob("outputs/*/*")
    assert dtp("export", "last", cwd=here).returncode == 0
    code = f"import dtp_lightning; dtp_lightning.load_encoder({str(run / 'encoder.safetensors')!r})"
    assert loaded(code, here) == "[]"


def test_a_training_without_a_tracker_imports_no_wandb(tmp_path: Path) -> None:
    """Nor pandas, nor sklearn, which evaluations load. Matplotlib is: by torchmetrics, Lightning's, and for figures."""
    words = [*TINY, "learner=bp", "trainer.max_epochs=1", "logger=none", "evaluation=[]", "callbacks=[]"]
    code = f"sys.argv = ['dtp', 'train', *{words}]\nfrom dtp_lightning.cli.main import main\nmain()"
    assert loaded(code, tmp_path) == "['matplotlib']"
