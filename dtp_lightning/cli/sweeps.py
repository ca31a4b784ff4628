"""``dtp sweep NAME``: a comparison that comes with the program, or one of your own (``dtp sweep my/sweep.yaml``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from dtp_lightning.cli import entry, paths
from dtp_lightning.cli.words import quoted
from dtp_lightning.errors import ConfigError


def known(folder: Path | None = None) -> dict[str, str]:
    """Name of every sweep -> the first sentence of its file."""
    sentences = {}
    for path in sorted((folder or paths.sweeps()).glob("*.yaml")):
        sentences[path.stem] = re.split(r"(?<=[.?])\s", " ".join(paths.comment_of(path)))[0]
    return sentences


def listed() -> str:
    """What there is, a line each."""
    width = max(map(len, known()))
    return "\n".join(f"  {name:<{width}}  {says}" for name, says in known().items())


HELP = """usage: dtp sweep NAME [key=value ...]

Run a comparison; the same command goes on where it stopped. NAME is one of those below, or a YAML file of your own.

{sweeps}

  dtp sweep bp_vs_dtp seed=0,1
  dtp sweep bp_vs_dtp hydra/launcher=joblib hydra.launcher.n_jobs=2
  dtp sweep bp_vs_dtp --help            its configuration"""


def start(line: entry.CommandLine) -> None:
    """The command.

    Raises:
        ConfigError: there is no such sweep.
    """
    words = list(line.words)
    name = words[0] if words else ""
    if words in ([], ["--help"], ["-h"]):
        print(HELP.format(sweeps=listed()))
        if not words:
            sys.exit(2)
        return
    if "=" in name or name.startswith("-"):
        raise ConfigError(f"{name}: name the sweep first, dtp sweep NAME key=value; there is: {', '.join(known())}")
    own = Path(name).expanduser()
    if own.suffix in (".yaml", ".yml") and own.is_file():
        folder, config_name = own.resolve().parent, own.stem
    elif name in known():
        folder, config_name = paths.sweeps(), name
    else:
        raise ConfigError(_unknown(name))
    program = [*line.program, name]
    hydra = ["--config-dir", str(folder), "--config-name", config_name]
    words = _own_groups(words[1:])
    if not any(word.startswith(("-", "hydra.mode=")) for word in words):
        hydra.append("--multirun")  # the file says so too, but is not reached where another word is wrong
    from dtp_lightning.cli import train

    train.start(replace(line, program=program, words=words, verb=[*line.verb, name], hydra=hydra))


def _own_groups(words: Sequence[str]) -> list[str]:
    """``--config-dir`` of the user's as a search path of Hydra's; the option itself is taken, by the sweep's folder."""
    rest: list[str] = []
    left = iter(words)
    for word in left:
        option, given, folder = word.partition("=")
        if option not in ("--config-dir", "-cd"):
            rest.append(word)
            continue
        folder = folder if given else next(left, "")
        if not Path(folder).expanduser().is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
        rest.append(f"hydra.searchpath=[{quoted(f'file://{Path(folder).expanduser().resolve()}')}]")
    return rest


def _unknown(name: str) -> str:
    near = get_close_matches(name, known(), 1)
    hint = f"did you mean '{near[0]}'? There is" if near else "there is"
    return f"{name}: no such sweep, and no YAML file; {hint}: {', '.join(known())}"
