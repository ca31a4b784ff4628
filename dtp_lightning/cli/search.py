"""Hyper-parameter search: ``dtp search dtp --trials 20 [overrides]``.

Optuna proposes, ``dtp train`` runs each trial in a process and folder of its own. The study lies in SQLite beside the
trials: start the same command again to go on, or several times at once to share the work. Only validation figures may
be optimised.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from dtp_lightning.cli import paths
from dtp_lightning.cli.words import quoted
from dtp_lightning.errors import ConfigError, RunError
from dtp_lightning.runs.lock import is_locked
from dtp_lightning.runs.stored import read_summary
from dtp_lightning.runtime.signals import Interrupted, guard

GRACE = 3.0  # seconds for a trial to leave by itself: a terminal's Ctrl-C reaches it as well


def suggest(trial: Any, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A value for every parameter.

    Args:
        trial: Optuna's.
        parameters: name -> ``{choices: [...]}`` or ``{low, high}`` with ``log`` and, for integers, ``integer``.

    Raises:
        ConfigError: a parameter has neither choices nor bounds.
    """
    values = {}
    for name, space in parameters.items():
        if "choices" in space:
            values[name] = trial.suggest_categorical(name, list(space["choices"]))
        elif "low" in space and "high" in space:
            kind = trial.suggest_int if space.get("integer") else trial.suggest_float
            values[name] = kind(name, space["low"], space["high"], log=bool(space.get("log", False)))
        else:
            raise ConfigError(f"parameters.{name} needs choices: [...], or low: and high:")
    return values


def run_trial(words: Sequence[str], folder: Path, metric: str) -> float:
    """One run of ``dtp train`` in its folder; the metric of its summary.

    Raises:
        RuntimeError: the run failed; its last line of error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "dtp_lightning",
        "train",
        *words,
        "resume=true",
        f"hydra.run.dir={quoted(str(folder))}",
    ]
    with (folder / "output.txt").open("a") as output:
        code = _wait(command, output)
    if code:
        lines = (folder / "output.txt").read_text().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {code}")
    value = (read_summary(folder / "summary.json") or {}).get(metric)
    if value is None:
        raise RuntimeError(f"{metric} is not among the run's figures")
    return float(value)


def _wait(command: Sequence[str], output: IO[str]) -> int:
    """The exit code of a trial; on a signal the trial is stopped as well, and saves first."""
    with subprocess.Popen(command, stdout=output, stderr=output) as trial:
        try:
            with guard.interruptible():
                return trial.wait()
        except Interrupted:
            try:
                trial.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                trial.terminate()
            raise


def give_up_the_dead(study: Any, folder: Path) -> None:
    """Trials whose process was killed are proposed again; their folders resume from the last checkpoint."""
    import optuna

    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        where = folder / "trials" / str(trial.user_attrs.get("folder", trial.number))
        if not where.exists() or is_locked(where):
            continue
        with contextlib.suppress(Exception):  # another worker was faster
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"folder": where.name})


def search(spec: Mapping[str, Any], folder: Path, trials: int, overrides: Sequence[str]) -> Any:
    """Run trials until the study has so many that finished; returns Optuna's study.

    Raises:
        ConfigError: the metric is not one of validation.
        RunError: more than half of the trials failed.
    """
    import optuna

    metric = spec["metric"]
    if not metric.endswith("/val_acc"):
        raise ConfigError(f"metric={metric}: choices are made on validation; use a figure that ends in /val_acc")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}", direction="maximize", load_if_exists=True
    )
    give_up_the_dead(study, folder)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING)
    while len(study.get_trials(deepcopy=False, states=finished)) < trials:
        guard.check()
        trial = study.ask()
        name = trial.user_attrs.get("folder", str(trial.number))
        trial.set_user_attr("folder", name)
        chosen = suggest(trial, spec["parameters"])
        words = [*spec.get("fixed", []), *overrides, *(f"{key}={value}" for key, value in chosen.items())]
        try:
            value = run_trial(words, folder / "trials" / name, metric)
        except RuntimeError as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"trial {trial.number} FAILED: {error}", flush=True)
            if len(study.get_trials(states=[optuna.trial.TrialState.FAIL])) > max(5, trials):
                raise RunError(f"too many trials failed; the last one: {error}") from error
            continue
        study.tell(trial, value)
        settings = " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in chosen.items()
        )
        print(f"trial {trial.number}: {metric} = {value:.4f}  {settings}", flush=True)
    return study


def spec_file(name: str) -> Path:
    """A file of the user's, or one of those that come with the program, by its name.

    Raises:
        ConfigError: there is neither.
    """
    own, shipped = Path(name).expanduser(), paths.sweeps() / "search"
    found = next((path for path in (own, shipped / f"{name}.yaml") if path.is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise ConfigError(f"{name}: no such file, and no such search (there is: {there})")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Search, then print the best command.

    Raises:
        UserError: there is no such search, or its file is wrong.
    """
    there = ", ".join(sorted(path.stem for path in (paths.sweeps() / "search").glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="dtp search",
        description="Hyper-parameters by Optuna, chosen on validation. The same command goes on, and shares the work.",
        epilog="Other words, key=value, go to every trial: dtp search dtp --trials 20 dataset=cifar10",
    )
    parser.add_argument("spec", help=f"a YAML file, or the name of one that comes with the program: {there}")
    parser.add_argument("--trials", type=int, default=20, help="finished trials that the study shall have")
    parser.add_argument("--folder", type=Path, help="of the study; default multirun/search/<name of the file>")
    arguments, overrides = parser.parse_known_args(words)
    if wrong := [word for word in overrides if word.startswith("--")]:
        parser.error(f"{wrong[0]}: no such option")
    file = spec_file(arguments.spec)
    spec: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    folder = (arguments.folder or Path("multirun/search") / file.stem).resolve()
    try:
        with guard.collect():
            study = search(spec, folder, arguments.trials, overrides)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing: pip install 'dtp-lightning[search]'") from error
    best = study.best_trial
    chosen = [*spec.get("fixed", []), *overrides, *(f"{key}={value}" for key, value in best.params.items())]
    print(f"\nbest of {len(study.trials)}: {spec['metric']} = {best.value:.4f}\ndtp train {shlex.join(chosen)}")
