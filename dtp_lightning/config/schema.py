"""Every key and value of a configuration is checked against what it is for, before anything is built.

Nothing has to be declared twice: the parameter names and annotations of the class that a YAML file names decide
which keys and types are allowed there, for our classes and for those of libraries alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dtp_lightning.config.instantiate import SPECIAL, is_named_nodes, target_of
from dtp_lightning.config.run_config import OUR_KEYS, Node, Nodes, RunConfig
from dtp_lightning.config.values import check_numbers, check_optimizer, check_trainer, refuse_secrets
from dtp_lightning.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

OFFERED = {  # what the pipeline hands to a target that has a parameter of this name
    "learner": ("model", "loss"),
    "model": ("images", "classes"),
    "augment": ("images",),
    "callbacks": ("data", "augment", "folder"),
    "evaluation": ("augment",),
    "logger": ("folder", "names", "config"),
}


def checked(config: DictConfig, schema: type[Config] = RunConfig) -> Config:  # type: ignore[assignment]
    """The configuration as typed values, after every key and value was checked against its target.

    Args:
        config: as composed.
        schema: its fields are the top-level keys.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or a combination that cannot run;
            the message names the key as the command line spells it, and the nearest right one.
    """
    given = _resolved(config)
    refuse_secrets(given)
    fields, hints = schema.model_fields, get_type_hints(schema, include_extras=True)
    for key in given:
        if key not in fields:
            raise ConfigError(f"unknown key '{key}'{nearest(key, fields)}")
    for key, field in fields.items():
        value: Any = given.get(key, None if field.is_required() else field.get_default(call_default_factory=True))
        if hints[key] == Nodes:
            for name, node in value.items():
                _check_node(f"{key}.{name}", node, OFFERED.get(key, ()))
        elif hints[key] == Node or (hints[key] == Node | None and value is not None):
            _check_node(key, value, OFFERED.get(key, ()), OUR_KEYS.get(key, {}) if schema is RunConfig else {})
        elif hints[key] != Node | None:
            _check_value(key, value, hints[key])
    check_numbers(given)
    given.get("learner", {}).pop("feedback_map", None)  # model.feedback has it
    if "trainer" in fields:
        check_trainer(given["trainer"], given["loss"])
    return schema.model_validate(given)


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Plain nested values, interpolations resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def nearest(word: str, known: Iterable[str], section: str = "") -> str:
    """``; did you mean 'section.x'?`` for the known name nearest to ``word``, or the list of all when none is near."""
    choices = sorted(name for name in known if name not in SPECIAL)
    if close := difflib.get_close_matches(word, choices, n=1, cutoff=0.6):
        return f"; did you mean '{section}{close[0]}'?"
    return f"; there is: {', '.join(section + name for name in choices)}" if choices else ""


def _check_node(path: str, node: Any, offered: Iterable[str], ours: Mapping[str, Any] = MappingProxyType({})) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(_no_target(path, node))
    target = target_of(node["_target_"], path)
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = {**_hints(target), **ours}
    for key, value in node.items():
        if key in SPECIAL:
            continue
        if key not in parameters and key not in ours and not takes_any:
            raise ConfigError(_unknown(path, key, [name for name in (*parameters, *ours) if name not in offered]))
        if isinstance(value, Mapping) and "_target_" in value:
            _check_node(f"{path}.{key}", value, ())
        elif is_named_nodes(value):
            for name, inner in value.items():
                _check_node(f"{path}.{key}.{name}", inner, ())
        elif key in hints:
            _check_value(f"{path}.{key}", value, hints[key])
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if name not in node and name not in offered and not node.get("_partial_")
    ]
    if missing:
        raise ConfigError(f"{path}.{missing[0]} is needed by {node['_target_']} and has no value")
    check_optimizer(path, node, target)


def _unknown(path: str, key: str, known: Iterable[str]) -> str:
    if key in OUR_KEYS.get(path, {}):  # what an evaluation is given of them
        return f"{path}.{key} is for training: remove it"
    return f"unknown key '{path}.{key}'{nearest(key, known, f'{path}.')}"


def _no_target(path: str, node: Any) -> str:
    group, _, name = path.partition(".")
    if isinstance(node, Mapping) and name:  # what a preset says about something that the command line left out
        return f"{path} has values but was not chosen: add it to {group}=[...], or take it out by ~{path}"
    return f"{path} must be a group's name or a section with a _target_, not {node!r}"


@functools.cache
def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Annotations of a callable; without those that only type checkers can resolve."""
    is_class = inspect.isclass(target)
    fields = _type_hints(target) if is_class and dataclasses.is_dataclass(target) else {}
    return {**fields, **_type_hints(inspect.unwrap(target.__init__ if is_class else target))}


def _type_hints(annotated: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


@functools.cache  # 0.3 ms each, for some hundred keys
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """What checks values of this type; None if pydantic cannot read it: the library that wrote it will check them."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:
        return None


def _check_value(path: str, value: Any, annotation: Any) -> None:
    try:
        adapter = _adapter(annotation)
    except TypeError:  # some of pydantic's own marks have no hash
        adapter = _adapter.__wrapped__(annotation)
    if adapter is None:
        return
    try:
        # a list on the command line may fill a tuple, but a word may not pass for a number
        adapter.validate_python(value, strict=not isinstance(value, list | dict))
    except ValidationError as error:
        raise ConfigError(f"{path}={_as_typed(value)}: {_reason(error, value)}") from None


def _as_typed(value: Any) -> str:
    """A value as a command line spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _reason(error: ValidationError, value: Any) -> str:
    """One line for a validation error, with the nearest choice where there are choices."""
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "literal_error":
            choices = [c.strip().strip("'") for c in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
            hint = nearest(str(value), choices)
            return f"must be one of {', '.join(choices)}" + (hint if "did you mean" in hint else "")
    for problem in problems:
        if problem["type"] in ("too_short", "missing") and isinstance(value, list):
            return f"{len(value)} entries are too few"
    plain = [p for p in problems if p["type"] != "is_instance_of"]  # "a number" says more than "or a Tensor"
    return " or ".join(dict.fromkeys(p["msg"].removeprefix("Input ").strip() for p in plain or problems))
