"""What the commands that take settings share."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamingo_lite.config import Config

CONFIG_HELP = "change a setting (stage.steps=50) or choose a preset (experiment=quickstart)"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=CONFIG_HELP)
    parser.add_argument(
        "--cfg", nargs="?", const="job", metavar="job", help="print the settings of the run, and stop"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="start from the config.yaml that a run has saved, not from the presets",
    )


def add_multirun_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="run once for each combination of values (seed=0,1,2), each into a folder of its own",
    )


def bold(path: object) -> str:
    """Markup of rich for a path, whatever brackets stand in it."""
    from rich.markup import escape

    return f"[bold]{escape(str(path))}[/bold]"


@dataclass(frozen=True)
class Run:
    """One run that the arguments ask for. `name`: what sets it apart from the others ("" where it is the only one);
    `output`: the folder that the runs share."""

    name: str
    overrides: list[str]
    config: "Config"
    output: str


def configs(arguments: argparse.Namespace) -> "Iterator[Config]":
    """The configuration of each of the `runs`."""
    return (run.config for run in runs(arguments))


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """What the arguments ask for: one run, or one per combination with -m.

    A run of several goes to <output>/<what sets it apart>, and reads the shards of the common output.
    With --cfg their settings are printed and none is yielded. Errors: `FlamingoError`.
    """
    from flamingo_lite import config as configuration

    if arguments.cfg not in (None, "job"):  # "--cfg key=value": the word after it is an override
        arguments.overrides = [arguments.cfg, *arguments.overrides]
    is_sweep = getattr(arguments, "multirun", False)
    if is_sweep:
        asked = list(configuration.sweep(arguments.overrides))
    else:
        asked = [("", list(arguments.overrides))]
    for name, overrides in asked:
        composed = configuration.compose(overrides, arguments.config)
        output = composed.output
        if name:
            composed.output = f"{output}/{name}"
        # All are checked before the first one runs.
        config = configuration.as_config(composed)
        if arguments.cfg:
            print(configuration.as_yaml(composed), end="")
        else:
            yield Run(name, overrides, config, output)
