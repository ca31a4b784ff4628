"""Summaries and configurations as they are read back: whole, or said to be damaged. Disks fail, people edit."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from dtp_lightning.config.flatten import flatten
from dtp_lightning.errors import DataError
from dtp_lightning.runs.summary import AXES

log = logging.getLogger(__name__)
PLAIN = (str, int, float, list, type(None))
UNREADABLE = (yaml.YAMLError, ValueError, OSError, RecursionError, AttributeError)
SECTION = re.compile(r"^(?=\w)", re.MULTILINE)
"""Where a key of the first level begins."""


def read_summary(path: Path) -> dict[str, Any] | None:
    """What a summary.json holds; None where there is none. A damaged one is said, and as good as none."""
    if not path.exists():
        return None
    summary = read_json(path)
    if not _whole(summary):
        log.warning("%s is damaged, and not counted: resume=true in its folder writes it again", path)
        return None
    return summary


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; an empty one if there is none in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(summary: Mapping[str, Any]) -> bool:
    """Whether a summary has what reports read, and of the right kind."""
    if summary.get("status") == "failed":
        return True
    if not isinstance(summary.get("seed"), int) or not isinstance(summary.get("epochs"), int):
        return False
    if not all(isinstance(summary.get(axis), str) for axis in AXES if axis != "epochs"):
        return False
    for name, value in summary.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not isinstance(value, PLAIN) or ("/" in name and value is not None and not number):
            return False
    return isinstance(summary.get("warnings", []), list)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """OmegaConf's YAML (1e-4 is a number, a key stands once) by libyaml's parser if it is there: 12 times as fast."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG]
        if len(keys) > len(set(keys)):
            raise yaml.constructor.ConstructorError("while constructing a mapping", node.start_mark, "a key is twice")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A run's config.yaml, nested, for who only shows it: values are not checked.

    Raises:
        DataError: it is damaged.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise _damaged(path) from error


def read_flat(path: Path) -> dict[str, Any]:
    """A run's config.yaml as dotted key -> value; sections that it shares with a file of before are not parsed again.

    Raises:
        DataError: it is damaged.
    """
    try:
        sections = [_flat(text) for text in SECTION.split(path.read_text(encoding="utf-8"))]
        names = [values[0][0].partition(".")[0] for values in sections if values]
        if len(names) == len(set(names)):
            return dict(itertools.chain.from_iterable(sections))
    except UNREADABLE:
        pass  # not as OmegaConf writes it: as a whole, then
    return dict(flatten(read_yaml(path)))


@functools.lru_cache(maxsize=10_000)
def _flat(text: str) -> tuple[tuple[str, Any], ...]:
    return tuple(flatten(parsed)) if (parsed := _parsed(text)) else ()


def _parsed(text: str) -> dict[str, Any]:
    """A mapping in YAML, whose keys are text.

    Raises:
        ValueError: it is none; and :data:`UNREADABLE`.
    """
    config = yaml.load(text, _Loader)
    config = {} if config is None else config
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ValueError("not a mapping of names")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml, nested.

    Raises:
        DataError: it is damaged.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(read_yaml(path)), resolve=False)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, RecursionError, AttributeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged: write it again, or choose another folder")
