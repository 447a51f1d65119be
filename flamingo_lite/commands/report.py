"""Writes self-contained pages from a run's files: training.html (its curves and samples, also while it goes on) and, after
an evaluation, report.html and plots/."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = "write the pages of a run: training.html, report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="outputs/quickstart", help="the run's folder (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    if rest := getattr(arguments, "overrides", []):
        from flamingo_lite.errors import FlamingoError

        raise FlamingoError(f"report takes one folder, got also {' '.join(rest)}")
    print(report_run(Path(arguments.run)))


def report_run(directory: "Path") -> "Path":
    """Writes the pages; the plots also go to the W&B run of the training, where there is one.

    The path of report.html, or of training.html where nothing was evaluated.
    """
    from flamingo_lite.evaluation.report import PLOTS, write_report
    from flamingo_lite.evaluation.results import RESULTS
    from flamingo_lite.training.beginning import METRICS
    from flamingo_lite.training.page import write_page
    from flamingo_lite.training.tracking import continue_run

    page = write_page(directory) if (directory / METRICS).exists() else None
    if page is not None and not (directory / RESULTS).exists():
        return page
    path = write_report(directory)
    tracker, step = continue_run(directory)
    with tracker:
        tracker.log_plots(sorted((directory / PLOTS).glob("*.png")), step)
    return path
