"""``dtp export RUN``: a run's encoder as safetensors with a card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dtp_lightning.cli import paths


def main(words: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        UserError: there is no such run, or its encoder cannot be exported.
    """
    parser = argparse.ArgumentParser(
        prog="dtp export",
        description="Write a run's encoder as safetensors, with a JSON card; dtp_lightning.load_encoder reads them.",
    )
    parser.add_argument("run", help="run folder, a checkpoint, or 'last' for the newest run")
    parser.add_argument("--to", type=Path, help="the .safetensors file; default: encoder.safetensors in the run folder")
    parser.add_argument("--license", help="of the weights, for the card, such as CC-BY-4.0")
    parser.add_argument("--half", action="store_true", help="weights as float16: half the size")
    arguments = parser.parse_args(words)
    run = paths.last_run(paths.CHECKPOINT) if arguments.run == paths.LAST else Path(arguments.run)

    from dtp_lightning.export.writer import export  # torch takes seconds, which --help need not wait for

    weights = export(run, arguments.to, arguments.license, arguments.half)
    print(f"{weights}\n{weights.with_suffix('.json')}")
