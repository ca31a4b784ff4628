"""From configuration to objects: every node names its target (``_target_``), and the target's signature is the schema.

Nothing has to be declared twice: the parameter names and annotations of the class that a YAML file names decide
which keys and types are allowed there, for our classes and for those of libraries alike.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from dtp_lightning.config.values import check_numbers, check_optimizer, check_trainer, refuse_secrets
from dtp_lightning.errors import ConfigError, UserError

SCALARS: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],  # what NumPy's generator takes
    "batch_size": PositiveInt,
    "loading": Literal["auto", "memory", "stream"],
    "workers": Annotated[int, Field(ge=0, le=256)],  # each is a process with a copy of what it reads
    "mode": Literal["train", "views"],
    "resume": bool | str,
}
SINGLES = ("learner", "loss", "model", "dataset", "augment", "trainer")
COLLECTIONS = ("evaluation", "callbacks", "logger")
EVALUATE_SCALARS: dict[str, Any] = {"checkpoint": str, "accelerator": str}
OWN: dict[str, dict[str, Any]] = {  # keys of ours in a node whose target is a library's
    "trainer": {"on_nonfinite": Literal["stop", "warn"], "save_every_n_steps": PositiveInt | None},
}
OFFERED = {  # what the pipeline hands to a target that has a parameter of this name
    "learner": ("model", "loss"),
    "model": ("images", "classes"),
    "augment": ("images",),
    "callbacks": ("data", "augment", "folder"),
    "evaluation": ("augment",),
    "logger": ("folder", "names", "config"),
}
SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def nearest(word: str, known: Iterable[str], section: str = "") -> str:
    """``; did you mean 'section.x'?`` for the known name nearest to ``word``, or the list of all when none is near."""
    choices = sorted(name for name in known if name not in SPECIAL)
    if close := difflib.get_close_matches(word, choices, n=1, cutoff=0.6):
        return f"; did you mean '{section}{close[0]}'?"
    return f"; there is: {', '.join(section + name for name in choices)}" if choices else ""


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, those of sections included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")


def checked(
    config: DictConfig,
    scalars: Mapping[str, Any] = SCALARS,
    singles: Sequence[str] = SINGLES,
    collections: Sequence[str] = COLLECTIONS,
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """The configuration as plain nested values, after every key and value was held against its target.

    Every group is there: an empty collection stands for one that was left out, None for an optional node.

    Args:
        config: as composed.
        scalars: top-level keys that are values, with their types.
        singles: groups that hold one node.
        collections: groups that hold named nodes.
        optional: those of ``singles`` that may be left out.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or a combination that cannot run;
            the message names the key as the command line spells it, and the nearest right one.
    """
    try:
        given: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    refuse_secrets(given)
    values = {**dict.fromkeys([*scalars, *singles]), **{key: {} for key in collections}, **given}
    for key, value in values.items():
        if key in scalars:
            _check_value(key, value, scalars[key])
        elif key in collections:
            for name, node in value.items():
                _check_node(f"{key}.{name}", node, OFFERED.get(key, ()))
        elif key in singles:
            if value is not None or key not in optional:
                _check_node(key, value, OFFERED.get(key, ()))
        else:
            raise ConfigError(f"unknown key '{key}'{nearest(key, [*scalars, *collections, *singles])}")
    check_numbers(given)
    if "trainer" in singles:
        check_trainer(values["trainer"], values["loss"])
    return values


def build(node: Mapping[str, Any], /, **offered: Any) -> Any:
    """Call a node's ``_target_`` with the node's values and those of ``offered`` that its signature asks for.

    Raises:
        ConfigError: the target refused its values.
    """
    accepted = inspect.signature(target_of(node["_target_"])).parameters
    # named nodes (the data sets of a transfer) are built here: Hydra would take data sets for configuration
    collections = {key: {name: build(n) for name, n in value.items()} for key, value in node.items() if _nodes(value)}
    given = {key: value for key, value in node.items() if key not in collections}
    try:
        partial = hydra.utils.instantiate({**given, "_partial_": True}, _convert_="all")
    except InstantiationException as error:  # Hydra's wrapping of what an inner node said
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(f"{node['_target_']}: {error.__cause__}") from error
        raise
    factory = functools.partial(partial, **collections)
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
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_: '{path}' cannot be imported ({error})") from error
    if not callable(found):
        raise ConfigError(f"{key}._target_: '{path}' is not a class or function")
    return found


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration and what its nodes leave to the defaults of our own classes, as far as YAML can say that.

    So that a file which an older version wrote, without parameters that came since, can be compared with a new one.
    """
    filled = {key: with_defaults(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    target = str(config.get("_target_", ""))
    if target.startswith("dtp_lightning."):
        with contextlib.suppress(ConfigError, ValueError):  # gone since
            for name, parameter in inspect.signature(target_of(target)).parameters.items():
                if isinstance(parameter.default, bool | int | float | str | list | None):
                    filled.setdefault(name, parameter.default)
    return filled


def _nodes(value: Any) -> bool:
    """Whether a value is a section of named nodes."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(node, Mapping) and "_target_" in node for node in value.values())


def _no_target(path: str, node: Any) -> str:
    group, _, name = path.partition(".")
    if isinstance(node, Mapping) and name:  # what a preset says about something that the command line left out
        return f"{path} has values but was not chosen: add it to {group}=[...], or take it out by ~{path}"
    return f"{path} must be a group's name or a section with a _target_, not {node!r}"


def _check_node(path: str, node: Any, offered: Iterable[str]) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(_no_target(path, node))
    target = target_of(node["_target_"], path)
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = {**_hints(target), **OWN.get(path, {})}
    for key, value in node.items():
        if key in SPECIAL:
            continue
        if key not in parameters and key not in OWN.get(path, {}) and not takes_any:
            free = [name for name in (*parameters, *OWN.get(path, {})) if name not in offered]
            raise ConfigError(f"unknown key '{path}.{key}'{nearest(key, free, f'{path}.')}")
        if isinstance(value, Mapping) and "_target_" in value:
            _check_node(f"{path}.{key}", value, ())
        elif _nodes(value):
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


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a callable; without those that only type checkers can resolve."""
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _check_value(path: str, value: Any, annotation: Any) -> None:
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # an annotation that pydantic cannot read: the library that wrote it will judge the value
        return
    try:
        # a list on the command line may fill a tuple, but a word may not pass for a number
        adapter.validate_python(value, strict=not isinstance(value, list | dict))
    except ValidationError as error:
        raise ConfigError(f"{path}={_shown(value)}: {_reason(error, value)}") from None


def _shown(value: Any) -> str:
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
