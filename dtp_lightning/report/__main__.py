"""Runs -> one table: ``dtp report FOLDER... [--save results/NAME.csv]``.

Reads every summary.json below the folders, or a file that --save wrote; runs that differ in nothing but the seed share
a row, which says the mean over n seeds with its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dtp_lightning.errors import DataError
from dtp_lightning.report.alignment import alignment_text, stages_of
from dtp_lightning.report.cells import cells_of
from dtp_lightning.report.text import conclusions, differences, table
from dtp_lightning.runs.reader import read_runs, save_runs
from dtp_lightning.runs.status import failures


def main() -> None:
    """Print the table; save the runs it came from; write the page."""
    parser = argparse.ArgumentParser(prog="dtp report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, folders of them, or CSV files of --save")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which accuracies to show")
    parser.add_argument("--save", type=Path, help="write every run's summary to this CSV file")
    parser.add_argument(
        "--html", type=Path, help="write a page with figures and paired differences; and its files beside it"
    )
    parser.add_argument("--title", help="of the page; default is what the folders are called")
    parser.add_argument("--allow-differences", action="store_true", help="average runs whose configurations differ")
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.folders)
    except DataError as error:
        parser.error(str(error))
    if not runs:
        parser.error(f"no summary.json below {', '.join(map(str, arguments.folders))}")
    if lines := differences(runs):
        print("\n".join(lines), file=sys.stderr)
        if not arguments.allow_differences:
            sys.exit("error: these runs are not of one kind; give other folders, or --allow-differences")
    if arguments.save:
        save_runs(runs, arguments.save)
    print("\n".join([table(runs, arguments.split), "", *conclusions(runs, arguments.split)]))
    if stages := stages_of(cells_of(runs)):
        print(f"\n{alignment_text(stages)}")
    print(f"\ncommit {', '.join(sorted({str(run.get('git_commit', 'unknown')) for run in runs}))}")
    if arguments.html:
        from dtp_lightning.report.page import write_page  # matplotlib takes seconds; a table does not need it

        title = arguments.title or ", ".join(folder.resolve().name for folder in arguments.folders)
        unfinished = {
            f"{folder}/{job}": reason for folder in arguments.folders for job, reason in failures(folder).items()
        }
        write_page(runs, arguments.html, title, arguments.split, unfinished, stages)
        print(f"page {arguments.html}")


if __name__ == "__main__":
    main()
