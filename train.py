"""``python train.py loss=hinge learner=dtp`` is ``dtp train loss=hinge learner=dtp``.

(Tab completion looks for the word @hydra.main in this file; the function lies in dtp_lightning/cli/train.py.)
"""

import sys

from dtp_lightning.cli import train
from dtp_lightning.cli.entry import CommandLine

if __name__ == "__main__":
    train.start(CommandLine(["python", sys.argv[0]], sys.argv[1:]))
