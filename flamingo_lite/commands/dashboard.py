"""Lays out a W&B project: a workspace with a panel for each figure that training logs, and a report that explains them.

  flamingo-lite dashboard --project flamingo_lite --entity my-team

With a W&B login both are saved into the project. Without one, or with --output, they are written as JSON."""

import argparse
from pathlib import Path

SUMMARY = "lay out a W&B project: workspace and report"
DEFAULT_OUTPUT = "dashboard.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", default="flamingo_lite", help="wandb.project of the runs (%(default)s)")
    parser.add_argument("--entity", help="whose project it is (by default the one you are logged in as)")
    parser.add_argument(
        "--output", help=f"write JSON there and save nothing (without a login: {DEFAULT_OUTPUT})"
    )


def run(arguments: argparse.Namespace) -> None:
    from flamingo_lite.errors import FlamingoError
    from flamingo_lite.evaluation.results import write_atomically
    from flamingo_lite.training.dashboard import push, specification

    if rest := getattr(arguments, "overrides", []):
        raise FlamingoError(f"dashboard takes --project, --entity and --output, got also {' '.join(rest)}")
    logged_in = None if arguments.output else login()
    if logged_in is not None:
        entity = arguments.entity or logged_in
        for address in push(entity, arguments.project):
            print(address)
        return
    path = Path(arguments.output or DEFAULT_OUTPUT)
    write_atomically(path, specification(arguments.entity or "", arguments.project).encode())
    again = f"flamingo-lite dashboard --project {arguments.project}"
    again += f" --entity {arguments.entity}" if arguments.entity else ""
    print(f"the dashboard is in {path}; wandb login, then {again} saves it into the project")


def login() -> str | None:
    """The entity that W&B knows this machine as; None without a login, or where W&B is not reached."""
    import wandb

    try:
        return wandb.Api(timeout=20).default_entity
    except Exception:  # no key, a wrong one, no network: errors of three libraries, and for us the same
        return None
