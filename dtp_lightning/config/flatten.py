"""Nested configuration <-> dotted keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def flatten(config: Any, path: str = "", *, lists: bool = False) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a configuration that is not a section; an empty section is a value.

    Pairs, not a dictionary: ``{"a.b": 1, "a": {"b": 2}}`` has two values of the same dotted key.

    Args:
        config: nested mappings.
        path: key of ``config`` itself.
        lists: entries of lists are entries of their own, as ``key[0]``; otherwise a list is a value.
    """
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key), lists=lists)
    elif lists and isinstance(config, list | tuple) and config:
        for index, value in enumerate(config):
            yield from flatten(value, f"{path}[{index}]", lists=lists)
    else:
        yield path, config


def last_word(key: str) -> str:
    """The parameter that a dotted key ends in: ``lr`` of ``learner.forward_optimizer.lr``, ``to`` of ``a.to[0]``."""
    return key.rpartition(".")[2].partition("[")[0]


def keys_and_sections(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of all keys, and of the sections that they stand in."""
    for key, value in config.items():
        yield path + str(key)
        if isinstance(value, Mapping):
            yield from keys_and_sections(value, f"{path}{key}.")


def select(config: Mapping[str, Any], wanted: Callable[[str], bool], path: str = "") -> dict[str, Any]:
    """The same nested configuration with those values alone whose dotted key is ``wanted``."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            if inner := select(value, wanted, f"{path}{key}."):
                nested[key] = inner
        elif wanted(f"{path}{key}"):
            nested[key] = value
    return nested
