"""Writes report.html, one self-contained page, and plots/ from the files of an evaluation and a training."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = "write report.html and plots/ from a run's files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="outputs/quickstart", help="the run's folder (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    if rest := getattr(arguments, "overrides", []):
        from flamingo_lite.errors import FlamingoError

        raise FlamingoError(f"report takes one folder, got also {' '.join(rest)}")
    print(report_run(Path(arguments.run)))


def report_run(directory: "Path") -> "Path":
    """Writes the report; its plots also go to the W&B run of the training, where there is one."""
    from flamingo_lite.evaluation.report import PLOTS, write_report
    from flamingo_lite.training.tracking import continue_run

    path = write_report(directory)
    tracker, step = continue_run(directory)
    with tracker:
        tracker.log_plots(sorted((directory / PLOTS).glob("*.png")), step)
    return path
