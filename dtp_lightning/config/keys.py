"""What each key of a configuration means to the rest: one table, which everything else asks.

A key that no line names decides what a run learns: it names the run's folder, has a row of its own in reports, and
cannot change on resume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """What holds of the keys that a pattern matches in full.

    Attributes:
        pattern: regular expression over dotted keys.
        in_folder_name: whether a sweep's job is named by it (conf/train.yaml excludes the others).
        splits_cells: whether runs that were given different values stand in different rows of a report.
        may_differ: whether runs in one row may have different values of it, unmentioned.
        free_on_resume: whether a resumed run may be given another value.
        on_card: whether an exported encoder's card tells it.
        of_untrained: whether the accuracy of an encoder that was never trained depends on it.
    """

    pattern: str
    in_folder_name: bool = True
    splits_cells: bool = True
    may_differ: bool = False
    free_on_resume: bool = False
    on_card: bool = False
    of_untrained: bool = False


OPTIONAL_GROUPS = ("schedule", "average")
"""Groups that a run may do without; the configuration of a run of before they were there has no such key."""
WHERE_DATA_LIES = ("dataset.root", "dataset.path", "dataset.download")
"""Of this machine; written out because Hydra's ``exclude_keys`` takes names, not patterns."""

KEYS: tuple[Key, ...] = (
    # where images lie on this machine, those of a transfer's data sets too
    *(
        Key(re.escape(key), in_folder_name=False, splits_cells=False, may_differ=True, free_on_resume=True)
        for key in WHERE_DATA_LIES
    ),
    Key(r"evaluation\..+\.(root|path|download)", splits_cells=False, may_differ=True, free_on_resume=True),
    # how a run is watched and measured: its weights do not depend on it, but what an evaluation finds may
    Key(r"(logger|callbacks)(\..+)?|evaluation", splits_cells=False, may_differ=True, free_on_resume=True),
    Key(r"evaluation\..+", may_differ=True, free_on_resume=True),
    # how the same batches get to the same weights
    Key(r"resume|workers|loading", splits_cells=False, may_differ=True, free_on_resume=True),
    Key(
        r"trainer\.(accelerator|strategy|profiler|log_every_n_steps|on_nonfinite|save_every_n_steps"
        r"|enable_model_summary|num_sanity_val_steps|benchmark)(\..+)?",
        splits_cells=False,
        may_differ=True,
        free_on_resume=True,
        on_card=True,
    ),
    # columns of their own in a report
    Key(r"trainer\.max_epochs", splits_cells=False, may_differ=True, free_on_resume=True, on_card=True),
    Key(r"seed", splits_cells=False, may_differ=True, on_card=True),
    Key(r"checkpoint", may_differ=True),  # an evaluation's: names the run
    Key(r"dataset\.label_seed", may_differ=True, on_card=True),  # it may follow the seed
    Key(r"dataset|model|loss|learner", splits_cells=False, on_card=True),  # the choice; what is inside has its own say
    Key(
        r"dataset\.(labels|label_noise|labelled_fraction)", on_card=True
    ),  # probes are given all labels, and right ones
    Key(r"(model|dataset)\..+", on_card=True, of_untrained=True),
    # what made the weights
    Key(r"(learner|loss|augment|trainer|schedule|average)\..+", on_card=True),
    Key(r"augment|schedule|average|trainer|batch_size", on_card=True),
)

OTHER = Key(r".*")

SINCE: dict[str, Any] = {
    "dataset.labels": "fine",
    "dataset.label_noise": 0.0,
    "dataset.labelled_fraction": 1.0,
    "dataset.label_seed": 0,
}
"""Keys that came later than the first run folders, and what those runs did; parameters of our classes have defaults."""


def key(name: str) -> Key:
    """What holds of a dotted key: of the first line of :data:`KEYS` that matches it, or of :data:`OTHER`."""
    return next((entry for entry in KEYS if re.fullmatch(entry.pattern, name)), OTHER)


def key_of_override(word: str) -> Key:
    """What holds of the key in a word of a command line: ``+dataset@evaluation.transfer.to.a=cifar10``, ``~logger``."""
    name = word.partition("=")[0].lstrip("+~")
    group, _, package = name.partition("@")
    return key(package or group)
