"""Trains the join of a vision encoder and a language model on shards, and saves the model whole.

Writes into output=: flamingo/ (the model, for fl.load), metrics.csv, checkpoints/, config.yaml, wandb/.
An interrupted run continues from its last checkpoint when the same command is given again; resume=never starts over.
SIGTERM, and SIGUSR1 from SLURM, save and stop. trainer.devices=N trains on N devices of this machine; torchrun and srun
start it on several: docs/training.md. With -m, hydra/launcher=joblib runs a sweep on this machine, several at once, and
hydra/launcher=slurm on a cluster: docs/clusters.md."""

import argparse
from typing import TYPE_CHECKING

from flamingo_lite.commands.common import add_config_arguments, add_multirun_argument, bold, runs
from flamingo_lite.errors import FlamingoError

if TYPE_CHECKING:
    from rich.console import Console

    from flamingo_lite.config import Config

SUMMARY = "train the join on shards"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_multirun_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    launcher = take_launcher(arguments)
    chosen = list(runs(arguments))
    if not chosen:
        return
    console = Console()
    if launcher:
        from flamingo_lite.launchers import launch

        launch(train, chosen, launcher, console, arguments.config)
        return
    for one in chosen:
        if line := train(one.config, console):
            console.print(line, highlight=False, soft_wrap=True)


def train(config: "Config", console: "Console") -> str:
    """Trains; returns the line that says where the model is, "" where another process says it."""
    from flamingo_lite.training.launch import is_supervised
    from flamingo_lite.training.ranks import started_ranks
    from flamingo_lite.training.stages import run_stage

    ranks = started_ranks(config.trainer)
    directory = run_stage(config, console)
    is_speaker = not is_supervised() and (ranks is None or ranks.is_first)
    return f"the model is in {bold(directory)}" if is_speaker else ""


def take_launcher(arguments: argparse.Namespace) -> list[str]:
    """Takes the overrides that choose and set hydra's launcher out of the others. Errors: `FlamingoError`."""
    if not any("hydra" in text for text in arguments.overrides):
        return []
    from flamingo_lite.launchers import GROUP, split

    launcher, arguments.overrides = split(arguments.overrides)
    if launcher and not arguments.multirun:
        raise FlamingoError(f"'{launcher[0]}' is for sweeps; add -m, or leave it out")
    if launcher and not any(text.startswith(f"{GROUP}=") for text in launcher):
        raise FlamingoError(
            f"'{launcher[0]}' sets a launcher that is not chosen; add {GROUP}=joblib, or another"
        )
    return launcher
