"""What a run is called in W&B, and under which id it goes on when it is resumed. Light: imports no W&B."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtp_lightning.runtime.files import write_atomically

FILE = "wandb_run.json"
"""In the run folder: what :class:`Identity` holds."""
LONGEST = 120
"""Characters of a name or group; W&B cuts off longer ones."""
LONGEST_TAG = 64


@dataclass(frozen=True)
class Identity:
    """A run in W&B.

    Attributes:
        id: the same for all parts of a resumed run.
        name: rule, loss, model and seed, and what the command line set.
        group: the cell: all that the name says but the seed, the data set and the number of epochs.
        project: where it is.
        entity: user or team; None is the user's own.
    """

    id: str
    name: str
    group: str
    project: str
    entity: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """Of the run in a folder; None if it has none, or one that is damaged."""
        try:
            stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
            texts = {key: str(stored[key]) for key in ("id", "name", "group", "project")}
            if not re.fullmatch(r"[\w-]{1,64}", texts["id"]):
                return None
            return cls(**texts, entity=None if stored["entity"] is None else str(stored["entity"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Leave it in the run folder."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")


def identify(
    folder: Path,
    names: Mapping[str, str],
    config: Mapping[str, Any],
    project: str,
    entity: str | None = None,
    group: str | None = None,
) -> Identity:
    """The identity of the run in a folder: the id of before if it is resumed, else a new one.

    Args:
        folder: of the run.
        names: see :func:`dtp_lightning.loggers.trackers.wandb_logger`.
        config: of the run, nested.
        project, entity, group: as given.
    """
    known = Identity.read(folder)
    # an agent of a W&B sweep has chosen the id
    chosen = os.environ.get("WANDB_RUN_ID") or (known.id if known else secrets.token_hex(4))
    return Identity(chosen, name_of(names, config["seed"]), group or cell_of(names, epochs_of(config)), project, entity)


def epochs_of(config: Mapping[str, Any]) -> int | None:
    """``trainer.max_epochs``; None where there is no trainer."""
    epochs: int | None = (config.get("trainer") or {}).get("max_epochs")
    return epochs


def name_of(names: Mapping[str, str], seed: object) -> str:
    """Rule, loss, model, seed, what the command line set, and the data set of an evaluation elsewhere."""
    said = "{learner}-{loss}-{model}".format(**names) + f"-seed{seed}"
    told = [said, names.get("settings", "")]
    if names.get("evaluated_on"):
        told = ["eval", names["evaluated_on"], *told]
    return _short(" ".join(word for word in told if word))


def cell_of(names: Mapping[str, str], epochs: int | None) -> str:
    """The group of a run: the runs that differ in the seed alone.

    Of its characters only those that filters survive: wandb-workspaces takes ``a=1`` inside a value for a comparison.
    """
    cell = "{dataset}-{model}-{loss}-{learner}".format(**names) + (f"-{epochs}ep" if epochs else "")
    text = " ".join(word for word in (cell, names.get("settings", "")) if word)
    return re.sub(r"[^\w.,:+~\[\] -]", ".", _short(text).replace("=", ":"))


def tags_of(names: Mapping[str, str], given: list[str] | None) -> list[str]:
    """The preset's and the sweep's name, and the given tags."""
    presets = names.get("preset", "").split()
    return [tag[:LONGEST_TAG] for tag in dict.fromkeys([*presets, *(given or [])])]


def _short(text: str) -> str:
    """A text as it is, or cut off with a digest in place of the rest, so that two that differ still do."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
