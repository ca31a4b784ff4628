"""``python evaluate.py checkpoint=RUN`` is ``dtp evaluate RUN``.

(Tab completion looks for the word @hydra.main in this file; the function lies in dtp_lightning/cli/evaluate.py.)
"""

import sys

from dtp_lightning.cli import evaluate
from dtp_lightning.cli.entry import CommandLine

if __name__ == "__main__":
    evaluate.start(CommandLine(["python", sys.argv[0]], sys.argv[1:]))
