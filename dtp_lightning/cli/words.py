"""The words of a command line, as they are typed and as Hydra wants them."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Sequence
from pathlib import Path

from dtp_lightning.cli import paths

NAME_A_RUN = ("resume", "checkpoint")  # keys whose value may be a run


def word_of_hydra(word: str) -> str:
    """A word that Hydra understands: ``key=~/folder`` becomes a path, ``resume=last`` the newest run's folder, quoted.

    No shell expands the ~ in the middle of a word, and Hydra's grammar has no such character.
    """
    word = re.sub(r"(?<==)~(?=/|$)", lambda _: str(Path.home()), word)
    key, given, value = word.partition("=")
    if key not in NAME_A_RUN or not given or value[:1] in ("'", '"'):
        return word
    if value == paths.LAST:
        value = str(paths.last_run(paths.CHECKPOINT).resolve())
    elif value in ("", "true", "false") or not Path(value).exists():
        return word
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """Text as Hydra's grammar takes any: commas, spaces and = would mean something else."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text=text, quote=Quote.single).with_quotes())


def plain_or_quoted(folder: str) -> str:
    """A path, quoted only where Hydra would read something else in it."""
    return folder if re.fullmatch(r"[\w./ +-]+", folder) else quoted(folder)


def _options_of_hydra() -> dict[str, Action]:
    from hydra._internal.utils import get_args_parser

    return {option: action for action in get_args_parser()._actions for option in action.option_strings}


def options_first(words: Sequence[str]) -> list[str]:
    """``-m`` and other options before key=value: Hydra's parser refuses words after an option that follows words."""
    actions = _options_of_hydra()
    options: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        action = actions.get(word)
        (options if word.startswith("-") else rest).append(word)
        if action is None or action.nargs == 0 or not left:
            continue
        if action.nargs is None or left[0] in (action.choices or ()):
            options.append(left.pop(0))
    return [*options, *rest]


def check(words: Sequence[str]) -> None:
    """What Hydra would answer by its usage, or write into the run folder, before it sees it.

    Raises:
        ConfigError: an option that does not exist, or a secret.
    """
    from dtp_lightning.config.values import is_secret, secret_message
    from dtp_lightning.errors import ConfigError, SecretError

    for word in words:
        key, given, _ = word.lstrip("+").partition("=")
        if given and is_secret(key):
            raise SecretError(secret_message(key))
    known = _options_of_hydra()
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in known:
            raise ConfigError(f"{word}: no such option; settings are written key=value, such as trainer.max_epochs=5")
