"""summary.json, the contract for every tool that reads runs, and the table that closes a run."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtp_lightning.runtime.files import write_atomically

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "wandb", "lightly")
RANDOM = "random_encoder/"
AXES = ("dataset", "model", "loss", "learner", "epochs")


def git_commit() -> str:
    """Commit of this code, with ``-dirty`` after it where files differ; ``unknown`` outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():  # an installed package; a repository around it is somebody else's
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def versions() -> str:
    """``name=version`` of Python and of the packages that decide numbers, on one line."""
    entries = [f"python={platform.python_version()}"]
    for package in ("dtp-lightning", *PACKAGES):
        try:
            entries.append(f"{package}={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return " ".join(entries)


def provenance() -> dict[str, str]:
    """``git_commit`` and ``versions``: which code made these numbers."""
    return {"git_commit": git_commit(), "versions": versions()}


def weights_of(config: Mapping[str, Any]) -> dict[str, str]:
    """``weights``: which average of them was evaluated, such as ``WeightAverage(decay=0.99)``; nothing for none.

    Args:
        config: of the run, nested.
    """
    node = config.get("average")
    if not node:
        return {}
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if not key.startswith("_"))
    return {"weights": f"{node['_target_'].rpartition('.')[2]}({arguments})"}


def scalars_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What trackers get of a summary at a run's end."""
    return {name: value for name, value in summary.items() if isinstance(value, float)}


def figures_in(folder: Path) -> dict[str, Path]:
    """The figures that a run left: their name in trackers -> PNG."""
    return {f"plots/{path.stem}": path for path in sorted((folder / "plots").glob("*.png"))}


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write atomically: a reader never sees half a file. What is not finite (a diverged run's) becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
    write_atomically(path, json.dumps(finite, indent=2, allow_nan=False) + "\n")


def write_failed(known: Mapping[str, Any], error: BaseException, path: Path) -> None:
    """A summary that says that the run failed, and why; reports count it as failed."""
    write_summary({**known, "status": "failed", "reason": str(error), **provenance()}, path)


def closing_table(summary: Mapping[str, Any], folder: Path) -> str:
    """Random encoder beside the trained one, and what it cost."""
    evaluated = [
        key.removesuffix("/test_acc") for key in summary if key.endswith("/test_acc") and not key.startswith(RANDOM)
    ]
    title = "{learner} x {loss}, {model} on {dataset}, seed {seed}, epochs {epochs}".format(**summary)
    if summary.get("evaluated_on", summary["dataset"]) != summary["dataset"]:
        title += f"; evaluated on {summary['evaluated_on']}"
    lines = [title, ""]
    if evaluated:
        width = max(len("test accuracy, %"), *map(len, evaluated))
        lines.append(f"{'test accuracy, %':<{width}}   random   trained")
        for name in evaluated:
            key = f"{name}/test_acc"
            lines.append(f"{name:<{width}}   {100 * summary[RANDOM + key]:6.2f}   {100 * summary[key]:7.2f}")
        lines.append("")
    if "fit/seconds" in summary:
        lines.append(
            f"fit {summary['fit/seconds']:.1f} s, {summary['fit/images_per_second']:.0f} images/s, "
            f"peak memory {summary['fit/peak_memory_mib']:.0f} MiB"
        )
    if "weights" in summary:
        lines.append(f"evaluated weights {summary['weights']}")
    if summary["epochs"] <= 1:
        lines.append("one epoch shows that everything works; only a rule that learns in one has a result here")
    lines += [f"warning: {warning}" for warning in summary.get("warnings", ())]
    lines.append(f"run folder {folder}")
    rule = "-" * max(map(len, lines))
    return "\n".join([rule, *lines, rule])
