"""Measures speed: side by side with other implementations, or one training step part by part.

  flamingo-lite bench                          all comparisons
  flamingo-lite bench attention decoding       these alone
  flamingo-lite bench --profile model=flamingo_tiny stage.batch_size=8

A comparison gives both sides the same weights and inputs, ends where outputs differ, times them in turns, and writes a page
(Markdown) and its figures (JSON) to --output. The scripts are in benchmarks/ of a source checkout; the other
implementations come with `make setup`. What each measures is said in benchmarks/README.md.

--profile runs training steps of stage.batch_size synthetic documents with the model, policy, precision and optimizer of the
settings, prints where time and memory go, and writes profile.html (with a flame chart) and profile.json."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flamingo_lite
from flamingo_lite.commands.common import add_config_arguments, configs
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from flamingo_lite.training.step_profile import StepProfile

SUMMARY = "measure speed beside other implementations, or part by part"
USAGE = "KEY=VALUE"
COMPARISONS = ("attention", "decoding", "prefix", "documents")
DEFAULT_OUTPUT = "outputs/bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--profile", action="store_true", help="one training step, part by part")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="where pages are written (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default cuda where there is one")
    parser.add_argument("--rounds", type=int, help="of each comparison; more make intervals narrower")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that a comparison runs")


def run(arguments: argparse.Namespace) -> None:
    if arguments.profile:
        if arguments.rounds is not None or arguments.small:
            raise FlamingoError("--rounds and --small belong to comparisons; leave them out with --profile")
        for config in configs(arguments):
            profile(config, arguments)
        return
    chosen = arguments.overrides or list(COMPARISONS)
    for name in chosen:
        if "=" in name:
            raise FlamingoError(
                f"{name}: settings are those of a step that is profiled; add --profile, or leave it out"
            )
        check_choice("comparison", name, COMPARISONS)
    for name in chosen:
        compare(name, arguments)


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Runs the script. Errors: `FlamingoError` outside a checkout, and where it ends without figures."""
    script = Path(flamingo_lite.__path__[0]).parent / "benchmarks" / f"{name}.py"
    if not script.is_file():
        raise FlamingoError(
            f"{script} is not there: comparisons are part of a source checkout; clone the repository and run make setup, "
            "or profile a step with flamingo-lite bench --profile"
        )
    options = ["--output", arguments.output, *(["--small"] if arguments.small else [])]
    for option in ("device", "rounds"):
        if (value := getattr(arguments, option)) is not None:
            options += [f"--{option}", str(value)]
    ended = subprocess.run([sys.executable, str(script), *options], check=False)
    if ended.returncode != 0:
        raise FlamingoError(f"the comparison {name!r} has no figures: its script ended as said above")
    print(f"written to {Path(arguments.output) / f'{name}.md'}")


def profile(config: Any, arguments: argparse.Namespace) -> None:
    import torch
    from rich.console import Console

    from flamingo_lite.evaluation.results import write_atomically
    from flamingo_lite.training.profile_page import notes, page
    from flamingo_lite.training.step_profile import profile_step

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise FlamingoError("--device cuda: torch finds no GPU here; use --device cpu")
    found = profile_step(config, config.stage.batch_size, device)
    console = Console()
    console.print(parts_table(found))
    for line in notes(found):
        console.print(line, style="dim")
    folder = Path(arguments.output)
    title = " ".join(arguments.overrides) or "the default settings"
    written = write_atomically(folder / "profile.html", page(found, title))
    write_atomically(folder / "profile.json", json.dumps(as_json(found, title), indent=1).encode() + b"\n")
    print(f"flame chart: {written}")


def parts_table(found: "StepProfile") -> Any:
    from rich.table import Table

    from flamingo_lite.training.profile_page import HEAD, rows

    table = Table(*HEAD, title="A training step, by part", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    *parts, sums = rows(found)
    for row in parts:
        table.add_row(*row)
    table.add_section()
    table.add_row(*sums, style="bold")
    return table


def as_json(found: "StepProfile", title: str) -> dict[str, Any]:
    """The profile as plain data, with where it was made; seconds and bytes whole."""
    from flamingo_lite.evaluation.environment import environment, git_sha

    plain: dict[str, Any] = dataclasses.asdict(found)
    plain["paths"] = {" / ".join(path): seconds for path, seconds in found.paths.items()}
    return {"settings": title, "git_sha": git_sha(), "environment": environment(), **plain}
