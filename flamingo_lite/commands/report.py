"""Writes self-contained pages from a run's files: training.html (its curves and samples, also while it goes on) and, after
an evaluation, report.html, plots/ and tables/ (LaTeX and Markdown).

  flamingo-lite report outputs/a outputs/b --to outputs/ab     several runs: one page on their paired differences

Runs are compared on the prompts that they share, and refused where their prompts differ. The folder of a comparison
(flamingo-lite compare) gets its report anew."""

import argparse
from typing import TYPE_CHECKING

from flamingo_lite.errors import FlamingoError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUMMARY = "write the pages of a run, or of several side by side"
DEFAULT = "outputs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"a run's folder ({DEFAULT}), or several")
    parser.add_argument("--to", metavar="FOLDER", help="where the page on several runs is written")


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from flamingo_lite.evaluation.comparison_folder import SYSTEMS, report_systems

    runs = [Path(run) for run in arguments.runs or [DEFAULT]]
    if len(runs) > 1:
        print(report_runs(runs, arguments.to))
        return
    if arguments.to is not None:
        raise FlamingoError(f"--to is for several runs, and {runs[0]} is one; its pages are written into it")
    print(report_systems(runs[0]) if (runs[0] / SYSTEMS).exists() else report_run(runs[0]))


def report_runs(runs: "Sequence[Path]", to: str | None) -> "Path":
    """Writes the page that compares several runs; its path. Errors: `FlamingoError`."""
    from pathlib import Path

    from flamingo_lite.evaluation.comparison_report import write_comparison
    from flamingo_lite.evaluation.systems import read_runs

    if to is None:
        raise FlamingoError(f"the page on {len(runs)} runs needs a folder; say where with --to FOLDER")
    return write_comparison(read_runs(runs), Path(to))


def report_run(directory: "Path", logs_predictions: bool = True) -> "Path":
    """Writes the pages; plots and predictions also go to the W&B run of the training, where there is one.

    The path of report.html, or of training.html where nothing was evaluated. `logs_predictions`: each with its images,
    which takes minutes where there are tens of thousands.
    """
    from flamingo_lite.evaluation.comparison_report import PLOTS
    from flamingo_lite.evaluation.report import write_report
    from flamingo_lite.evaluation.results import RESULTS, load_results, load_samples
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
        if logs_predictions and tracker.run is not None:
            files = (load_results(directory).get("config") or {}).get("files")
            tracker.log_predictions(load_samples(directory), files, step + 1)
    return path
