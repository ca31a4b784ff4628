"""The ``dtp`` command: ``dtp train loss=hinge learner=dtp``, ``dtp --help``.

Only light imports here: each verb loads what it needs.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from dtp_lightning import __version__
from dtp_lightning.cli import entry, paths

VALUED = (
    *("--split", "--save", "--html", "--title", "--page", "--entity", "--project", "--name"),
    *("--cost", "--figure", "--angles", "--from-batch"),
)
"""Options of reports whose value is no run."""


def _hydra_verb(verb: str, words: Sequence[str]) -> None:
    line = entry.CommandLine([*program(), verb], words, [verb])
    if verb == "train":
        from dtp_lightning.cli import train

        train.start(line)
    elif verb == "evaluate":
        from dtp_lightning.cli import evaluate

        evaluate.start(line)
    else:
        from dtp_lightning.cli import sweeps

        sweeps.start(line)


def _report(verb: str, words: Sequence[str]) -> None:
    """Commands that read run folders; each parses ``sys.argv``."""
    words = paths.resolve_last(words, paths.SUMMARY, VALUED)
    if verb == "report" and not {"-h", "--help"} & {*words}:
        folders = [word for before, word in zip(["", *words], words, strict=False) if _is_folder(before, word)]
        if not folders:
            folder = paths.newest_folder()
            print(f"the newest: dtp report {folder}", file=sys.stderr)
            words = [str(folder), *words]
    sys.argv[1:] = words
    if verb == "report":
        from dtp_lightning.report.__main__ import main as task
    elif verb == "rules":
        from dtp_lightning.report.rules import main as task
    elif verb == "board":
        from dtp_lightning.report.board import main as task
    else:
        from dtp_lightning.report.dashboard import main as task
    task()


def _is_folder(before: str, word: str) -> bool:
    return not word.startswith("-") and before not in VALUED


def _export(verb: str, words: Sequence[str]) -> None:
    from dtp_lightning.cli import export

    export.main(words)


def _search(verb: str, words: Sequence[str]) -> None:
    from dtp_lightning.cli import search

    search.main(words)


VERBS: dict[str, tuple[Callable[[str, Sequence[str]], None], str]] = {
    "train": (_hydra_verb, "train an encoder and evaluate it: dtp train loss=hinge learner=dtp"),
    "evaluate": (_hydra_verb, "evaluate a run again, here or on other data: dtp evaluate last dataset=cifar10"),
    "sweep": (_hydra_verb, "a comparison, safe to interrupt: dtp sweep bp_vs_dtp"),
    "report": (_report, "table, statistics and page of runs: dtp report multirun/bp_vs_dtp --html report.html"),
    "rules": (_report, "the table of learning rules, with angles and costs: dtp rules multirun/rules"),
    "export": (_export, "an encoder as safetensors with a card: dtp export last"),
    "search": (_search, "hyper-parameters on validation, resumable: dtp search dtp --trials 20"),
    "dashboard": (_report, "uploaded runs as a W&B workspace: dtp dashboard RUNS --entity ME --project NAME"),
    "board": (_report, "the page and W&B's viewer in this terminal, without an account: dtp board RUNS"),
}


def program() -> list[str]:
    """How this program was called, to be typed again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return ["python", "-m", "dtp_lightning"]
    found = shutil.which(called.name)
    return [called.name if found and Path(found).resolve() == called.resolve() else str(called)]


def usage() -> str:
    """What ``dtp`` says of itself."""
    lines = [f"  {verb:<10} {says}" for verb, (_, says) in VERBS.items()]
    return "\n".join(
        [
            "usage: dtp COMMAND ...",
            "",
            "Biologically plausible self-supervised learning: any learning rule, any objective, any task.",
            "",
            *lines,
            "",
            "dtp COMMAND --help tells more; dtp --version. 'last' is the newest run, wherever a run is asked for.",
            'Tab completion: eval "$(dtp -sc install=bash)"',
        ]
    )


def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if words[:1] == ["-sc"]:
        _complete(words)
    elif not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if words else 2)
    elif words[0] in ("-V", "--version"):
        print(f"dtp {__version__}")
    elif words[0] in VERBS:
        task, _ = VERBS[words[0]]
        try:
            entry.tool(lambda: task(words[0], words[1:]))
        except BrokenPipeError:  # dtp train --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is said, nor at the end
            sys.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:  # where no Hydra is, or not yet
            print("stopped by SIGINT", file=sys.stderr)
            sys.exit(130)
    else:
        entry.stop(_unknown(words[0]))


def _unknown(word: str) -> str:
    if "=" in word:
        return f"{word}: a command comes first, such as dtp train {word}"
    near = get_close_matches(word, VERBS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(VERBS)}"
    return f"{word}: no such command; {hint}"


def _complete(words: Sequence[str]) -> None:
    """Answer a shell: verbs and sweeps from here, the rest is what Hydra knows of the configuration."""
    before, *typed = os.environ.get("COMP_LINE", "").split(" ")
    verb, rest = (typed or [""])[0], typed[1:]
    if words[1:2] and words[1].startswith("query="):
        if not rest:
            print("\n".join(known for known in VERBS if known.startswith(verb)))
            return
        if verb == "sweep" and len(rest) == 1:
            from dtp_lightning.cli import sweeps

            print("\n".join(name for name in sweeps.known() if name.startswith(rest[0])))
            return
        if verb not in ("train", "evaluate", "sweep"):
            return
        settings = [word for word in rest[:-1] if "=" in word]  # Hydra stumbles over a run's or a sweep's name
        os.environ["COMP_LINE"] = " ".join([before, *settings, rest[-1]])
    _hydra_verb("evaluate" if verb == "evaluate" else "train", words)
