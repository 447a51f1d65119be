"""Trains the join of a vision encoder and a language model on shards, and saves the model whole.

Writes into output=: flamingo/ (the model, for fl.load), metrics.csv, checkpoints/, config.yaml, wandb/.
An interrupted run continues from its last checkpoint when the same command is given again; resume=never starts over.
SIGTERM, and SIGUSR1 from SLURM, save and stop. trainer.devices=N trains on N devices of this machine; torchrun and srun
start it on several: docs/training.md."""

import argparse

from flamingo_lite.commands.common import add_config_arguments, add_multirun_argument, configs

SUMMARY = "train the join on shards"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_multirun_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    chosen = list(configs(arguments))
    if not chosen:
        return
    from flamingo_lite.training.launch import is_supervised
    from flamingo_lite.training.stages import run_stage

    console = Console()
    for config in chosen:
        directory = run_stage(config, console)
        if is_supervised():  # whoever has started this rank says it
            continue
        console.print(f"the model is in [bold]{directory}[/bold]", highlight=False, soft_wrap=True)
