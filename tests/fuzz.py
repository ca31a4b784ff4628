"""Command lines that nobody wrote: groups, keys, values and orders drawn by hypothesis, run in this process.

A line ends well, with numbers that are finite, or is answered by one line and exit code 2. FAULTS_EXAMPLES sets how
many lines ``make test-faults`` tries.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from conftest import CONF, composed
from hypothesis import strategies as st
from omegaconf import OmegaConf
from wrong_inputs import QUIET, started

from dtp_lightning.config.flatten import flatten
from dtp_lightning.config.instantiate import with_defaults

QUICK = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "model.channels=[4,6]",
    "batch_size=20", "evaluation=[]", "callbacks=[]", "logger=none", "trainer.log_every_n_steps=1",
)  # fmt: skip
GROUPS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("learner", "loss", "model", "augment", "schedule", "average", "trainer")
} | {
    "dataset": ["mnist5k"],  # the others ask the network for their images
    "logger": ["none", "csv"],
    "experiment": ["smoke"],
    "evaluation": ["[]", "[knn]", "[linear]", "[distances]", "[layerwise]", "[transfer]", "[knn,linear]"],
    "callbacks": ["[]", "[alignment]", "[online_knn]", "[online_distances]", "[snapshots]", "[progress]"],
}
SLOW = {  # keys whose large values mean long, or many processes: they are drawn from these
    "trainer.max_epochs": ["1", "2", "0", "-1", "null", "1.5", "x"],
    "trainer.limit_train_batches": ["1", "3", "0", "-1", "null", "x", "1e-9"],
    "trainer.limit_val_batches": ["1", "0", "-1", "x", "0.001"],
    "trainer.devices": ["1", "0", "-2", "x", "[0]", "null"],
    "trainer.accelerator": ["cpu", "auto", "tpu", "x", "null", "1"],
    "trainer.strategy": ["auto", "x", "null"],
    "trainer.num_nodes": ["1", "0", "x"],
    "workers": ["0", "1", "-1", "x", "1000", "null"],
    "loading": ["auto", "memory", "x", "1"],
    "resume": ["false", "x", "null", "1"],
    "dataset.root": ["x", "null", "1"],
    "trainer.profiler": ["null", "x"],
}
WILD = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "1e9",
        "-1e9",
        "1e-30",
        "1e30",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "0.5",
        "100",
        "4096",
    ),
    *(
        "999999999999999999999",
        "0x10",
        "1_000",
        "true",
        "null",
        "''",
        "x",
        "bp",
        "größe",
        "'a b'",
        "[]",
        "[1]",
        "[1,2]",
    ),
    *(
        "[[1],[2]]",
        "[nan]",
        "[1,x]",
        "{}",
        "{a:1}",
        "${seed}",
        "${nope}",
        "'${nope}'",
        "${oc.env:HOME}",
        "???",
        "\\\\",
        "%",
    ),
    *(
        "'=', ",
        "[",
        "}",
        "a=b",
        "choice(1,2)",
        "range(3)",
        "1,2",
        "~",
        "*",
        "torch.nn.Tanh",
        "os.system",
        "'\\n'",
        "\x00",
    ),
)
JUNK = (
    "",
    "=",
    "x",
    "--x",
    "-x",
    "+",
    "~",
    "~x",
    "a=b=c",
    "@=1",
    "learner",
    "seed=",
    "=3",
    "++x=1",
    "+a.b.c=1",
    "\\",
    "x y=1",
)
SECONDS = 60  # after which a line counts as at work


class TookLong(BaseException):
    """The time limit of one line."""


@functools.cache
def values_of(group: str, option: str) -> dict[str, Any]:
    """Dotted key -> value of what choosing an option brings, with the defaults of its classes."""
    config, _ = composed(f"{group}={option}") if group else composed()
    values: Any = OmegaConf.to_container(config, resolve=False)
    found = dict(flatten(with_defaults(values)))
    return {key: value for key, value in found.items() if key.startswith(f"{group}.") or (not group and "." not in key)}


def mild(value: Any) -> list[str]:
    """Values like the one that is there."""
    if isinstance(value, bool):
        return ["true", "false"]
    if isinstance(value, int):
        return [str(number) for number in (value - 1, value + 1, 2 * value, 1, 2, 3, 0)]
    if isinstance(value, float):
        return [repr(number) for number in (value / 2, 2 * value, 10 * value, 1e3 * value, 1e9, 1e-9, 0.0, 1.0, 1e20)]
    return ["null", "0.1", "1", str(value).replace(" ", "")]


@st.composite
def key_words(draw: st.DrawFn, chosen: dict[str, str]) -> str:
    """A key of what was chosen, and a value, both more or less likely."""
    group = draw(st.sampled_from(["", *chosen, "learner", "loss", "model", "trainer"]))
    option = chosen.get(
        group, {"learner": "dtp", "loss": "hinge", "model": "cnn4", "trainer": "default"}.get(group, "")
    )
    known = values_of(group, option) if group and not option.startswith("[") else values_of("", "")
    if not known:
        return draw(st.sampled_from(JUNK))
    key = draw(st.sampled_from(sorted(known)))
    value = draw(
        st.sampled_from(SLOW.get(key) or [*mild(known[key]), *mild(known[key]), *draw(st.sampled_from([(), WILD]))])
    )
    prefix = draw(st.sampled_from(["++", "++", "++", "", "+", "~"]))
    if draw(st.integers(0, 19)) == 0:
        key = key[:-1]
    return f"{prefix}{key}" if prefix == "~" else f"{prefix}{key}={value}"


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Words after those that make a run quick."""
    groups = draw(st.lists(st.sampled_from(sorted(GROUPS)), max_size=4, unique=True))
    chosen = {group: draw(st.sampled_from(GROUPS[group])) for group in groups}
    words = [f"{group}={option}" for group, option in chosen.items()]
    words += draw(st.lists(key_words(chosen), max_size=4))
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from(JUNK)))
    return draw(st.permutations(words))


@contextmanager
def _limited() -> Iterator[None]:
    def ring(*args: object) -> None:
        raise TookLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def complaint(words: list[str], folder: Path) -> str | None:
    """What is wrong with how a line ended; None if nothing is.

    Args:
        words: of :func:`command_lines`.
        folder: for the run.
    """
    groups = {word.partition("=")[0] for word in words}
    quick = [word for word in QUICK if word.partition("=")[0] not in groups]
    try:
        with _limited(), redirect_stderr(io.StringIO()):
            code, told = started(["train.py", *quick, *QUIET, f"hydra.run.dir={folder}", *words])
    except TookLong:
        return None
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        return f"traceback: {type(error).__name__}: {str(error)[:300]} at {frames[-1].filename}:{frames[-1].lineno}"
    said = [line for line in told.splitlines() if line.startswith("error: ")]
    if code == 2:
        return (
            None if len(said) == 1 and "Traceback" not in told and len(said[0]) > 12 else f"not one line: {told[:500]}"
        )
    if code is not None:
        return f"exit code {code}: {told[:500]}"
    return None if any("on_nonfinite" in word for word in words) else not_finite(folder)


def not_finite(folder: Path) -> str | None:
    """A number of a finished run that is none."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    if missing := [name for name, value in summary.items() if value is None]:
        return f"finished, and {missing} not finite; warnings {summary.get('warnings')}"
    metrics = folder / "metrics.csv"
    with metrics.open(newline="") if metrics.exists() else io.StringIO() as file:
        for row in csv.DictReader(file):
            if bad := [name for name, value in row.items() if value and not math.isfinite(float(value))]:
                return f"finished, and {bad} of metrics.csv not finite"
    return None
