"""``--help``: every key with what its YAML file says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dtp_lightning.cli import paths

KEY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?P<comment># *(?P<said>.*))?$")
TARGET = re.compile(r"^ *_target_: (\S+)", re.MULTILINE)
COLUMN = 44
"""Where comments begin, if the line is shorter."""


def annotated(text: str, config_name: str, choices: Mapping[str, object]) -> str:
    """The text of Hydra's help with a comment behind each key that has one.

    Args:
        text: as Hydra prints it, with the configuration as YAML below the line that begins with "Keys".
        config_name: of the configuration.
        choices: option or options of each group (Hydra's ``runtime.choices``).
    """
    before, title, config = text.partition("\nKeys ")
    said = comments_of(config_name, choices)
    lines = config.splitlines()
    parents: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        match = KEY.match(line)
        if match is None:
            continue
        path = _path(match, parents)
        if said.get(path):
            lines[number] = f"{line:<{COLUMN}} # {said[path]}"
    return before + title + "\n".join(lines) + "\n"


def comments_of(config_name: str, choices: Mapping[str, object]) -> dict[str, str]:
    """Dotted key -> comment, from the file of the configuration and those of its groups.

    A group's own name has the first line of the chosen file. A key without a comment in that file has the one of
    another option of the group that names the same class.
    """
    conf = paths.conf()
    said: dict[str, str] = {}
    for group, option in choices.items():
        files = options_of(group)
        chosen = [files[name] for name in re.findall(r"\w+", str(option)) if name in files]
        if "/" in group or not chosen:
            continue
        targets = {TARGET.findall(text)[0] for text in with_defaults(chosen, files) if TARGET.search(text)}
        related = [text for text in files.values() if targets & {*TARGET.findall(text)}]
        for text in [*related, *with_defaults(chosen, files)]:
            said |= {f"{group}.{key}": comment for key, comment in _comments(text)}
        if len(chosen) == 1:
            said[group] = chosen[0].partition("\n")[0].removeprefix("# ")
    return said | dict(_comments((conf / f"{config_name}.yaml").read_text(encoding="utf-8")))


def options_of(group: str) -> dict[str, str]:
    """Name -> text of the YAML files of a group, sorted by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted((paths.conf() / group).glob("*.yaml"))}


def with_defaults(chosen: list[str], files: Mapping[str, str]) -> list[str]:
    """The chosen files' texts, each after those of the same group that its defaults list names."""
    texts: list[str] = []
    for text in chosen:
        defaults = re.findall(r"^  - (\w+)$", text, flags=re.MULTILINE)
        texts += [
            *with_defaults([files[name] for name in defaults if name in files and files[name] != text], files),
            text,
        ]
    return texts


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, comment) of the keys of a YAML file that have one."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = KEY.match(line)
        if match:
            key = _path(match, parents)
            if match["said"]:
                yield key, match["said"]


def _path(match: re.Match[str], parents: list[tuple[int, str]]) -> str:
    """The dotted key of a line. ``parents``, the indents and names of the sections around it, are brought up to it."""
    indent = len(match["indent"])
    while parents and parents[-1][0] >= indent:
        parents.pop()
    parents.append((indent, match["key"]))
    return ".".join(key for _, key in parents)
