"""What a wrong word of the command line should have been."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from dtp_lightning.cli import paths


def nearest_key(key: str, config_name: str) -> str:
    """The nearest key of the configuration with the groups that were chosen on this command line."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    from dtp_lightning.config.flatten import keys_and_sections
    from dtp_lightning.config.schema import nearest

    conf = paths.conf()
    groups = [p.name for p in conf.iterdir() if p.is_dir()]
    choices = [word for word in sys.argv[1:] if word.split("=")[0] in groups]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            config = compose(config_name, overrides=choices)
        except Exception:  # another mistake on the same command line
            config = compose(config_name)
    values = OmegaConf.to_container(config)
    keys = dict.fromkeys([*groups, *keys_and_sections(values)])  # type: ignore[arg-type]
    section = ""
    for word in key.split("."):
        if section + word not in keys:
            node = OmegaConf.select(config, section.rstrip(".")) if section else None
            own = [known[len(section) :] for known in keys if known.rpartition(".")[0] == section.rstrip(".")]
            target = node.get("_target_") if isinstance(node, DictConfig) else None
            return (_addable(key, word, target, own) if target else "") or nearest(word, own, section)
        section += f"{word}."
    return ""


def in_other_options(key: str) -> str:
    """The options of the key's group that have it, and how a sweep over them is told; empty where there are none."""
    from dtp_lightning.cli.help import options_of, with_defaults

    group, _, rest = key.partition(".")
    files = options_of(group) if rest and group != "experiment" else {}  # a preset's keys are the configuration's
    having = [name for name, text in files.items() if any(rest in _keys(part) for part in with_defaults([text], files))]
    if not having:
        return ""
    # a sweep is composed once without what it varies: there the group has its default
    sweeping = {"-m", "--multirun"} & {*sys.argv}
    return f"; it belongs to {group}={', '.join(having)}" + (f": in a sweep over them, ++{key}=..." if sweeping else "")


def _keys(text: str) -> set[str]:
    """Dotted names of the keys and sections of a YAML file."""
    from omegaconf import OmegaConf

    from dtp_lightning.config.flatten import keys_and_sections

    config: Any = OmegaConf.to_container(OmegaConf.create(text))
    return {*keys_and_sections(config)}


def _addable(key: str, word: str, target: str, own: Sequence[str]) -> str:
    """What to write where a class takes an argument that its section does not list; empty where it takes none."""
    from dtp_lightning.config.instantiate import SPECIAL, target_of

    takes = [name for name in inspect.signature(target_of(target)).parameters if name not in SPECIAL]
    if word in takes:
        return f"; {target} takes it: write +{key}=..."
    near = get_close_matches(word, [*own, *takes], 1)
    if not near or near[0] in own:
        return ""
    return f"; did you mean '+{key.removesuffix(word)}{near[0]}'? ({target} takes it)"


def no_config(name: str) -> str:
    """The choices of ``--config-name``."""
    known = sorted(path.stem for path in paths.conf().glob("*.yaml"))
    return (
        f"--config-name {name}: no such configuration; there is: {', '.join(known)}, or one in a folder that "
        "--config-dir names. Presets are chosen by experiment=NAME, comparisons by dtp sweep NAME"
    )


def nearest_choice(group: str, wrong: str) -> str:
    """What to choose in a group that has no such option."""
    from dtp_lightning.config.schema import nearest

    known: Sequence[str] = [p.stem for p in (paths.conf() / group).glob("*.yaml")]
    listed = f" (there is: {', '.join(sorted(known))})"
    hint = nearest(wrong, known)
    return f"{group}={wrong}: no such choice{hint}" + ("" if hint.startswith("; there is") else listed)
