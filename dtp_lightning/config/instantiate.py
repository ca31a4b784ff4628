"""From configuration to objects: every node names its target (``_target_``) and the target's arguments."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from dtp_lightning.errors import ConfigError, UserError

SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
"""Keys of a node that are Hydra's, not the target's."""


def build(node: Mapping[str, Any], /, **offered: Any) -> Any:
    """Call a node's ``_target_`` with the node's values and those of ``offered`` that its signature asks for.

    Raises:
        ConfigError: the target refused its values.
    """
    accepted = inspect.signature(target_of(node["_target_"])).parameters
    # named nodes (the data sets of a transfer) are built here: Hydra would take data sets for configuration
    named = {
        key: {n: build(inner) for n, inner in value.items()} for key, value in node.items() if is_named_nodes(value)
    }
    given = {key: value for key, value in node.items() if key not in named}
    try:
        partial = hydra.utils.instantiate({**given, "_partial_": True}, _convert_="all")
    except InstantiationException as error:  # Hydra's wrapping of what an inner node said
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(f"{node['_target_']}: {error.__cause__}") from error
        raise
    except TypeError as error:  # of the values of _partial_, _convert_, _recursive_
        if not str(error).startswith("Instantiation: "):
            raise
        raise ConfigError(f"{node['_target_']}: {str(error).splitlines()[0]}") from error
    factory = functools.partial(partial, **named)
    if node.get("_partial_"):
        return factory
    try:
        return factory(**{name: value for name, value in offered.items() if name in accepted})
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{node['_target_']}: {error}") from error


def target_of(path: str, key: str = "") -> Callable[..., Any]:
    """What a ``_target_`` names: a class or a function.

    Args:
        path: dotted.
        key: of the node, for the message.

    Raises:
        ConfigError: there is no such thing, or it cannot be called.
    """
    module, _, name = str(path).rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_: '{path}' cannot be imported ({error})") from error
    if not callable(target):
        raise ConfigError(f"{key}._target_: '{path}' is not a class or function")
    return target


def is_named_nodes(value: Any) -> bool:
    """Whether a value is a section of nodes, each under a name of its own."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(node, Mapping) and "_target_" in node for node in value.values())


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration and what its nodes leave to the defaults of our own classes, as far as YAML can say that.

    So that a file which an older version wrote, without parameters that came since, can be compared with a new one.
    """
    filled = {key: with_defaults(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    target = str(config.get("_target_", ""))
    if target.startswith("dtp_lightning."):
        with contextlib.suppress(ConfigError, ValueError):  # gone since
            for name, parameter in inspect.signature(target_of(target)).parameters.items():
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                if isinstance(default, bool | int | float | str | list | None):
                    filled.setdefault(name, default)
    return filled
