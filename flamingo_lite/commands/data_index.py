"""Measures the documents of shards under the model's tokenizer, so that training can pack them into rows at once.

Settings: data.directory or data.sources, model.*, stage.start, stage.max_length, data.workers (processes). Training
measures what is missing by itself; this does it beforehand. The lengths lie in lengths/ beside the shards."""

import argparse
from typing import TYPE_CHECKING

from flamingo_lite.commands.common import add_config_arguments, bold, configs

if TYPE_CHECKING:
    from rich.console import Console

    from flamingo_lite.config import Config

SUMMARY = "measure documents for packing"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured already")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    for config in configs(arguments):
        index(config, Console(), arguments.fresh)


def index(config: "Config", console: "Console", fresh: bool = False) -> None:
    """Measures the documents of every source, and says where their lengths lie and what they come to."""
    import numpy as np

    from flamingo_lite.training.measuring import measure_sources

    for name, shards, lengths in measure_sources(config, console, fresh):
        tokens, images = lengths.take(np.arange(len(shards)))
        usable = tokens > 0
        console.print(
            f"{name}: {len(shards):,} documents, {int(usable.sum()):,} of them usable, {int(tokens.sum()):,} tokens "
            f"(on average {tokens[usable].mean() if usable.any() else 0:.1f}, at most {int(tokens.max())}), "
            f"{int(images.sum()):,} images; lengths in {bold(lengths.folder)}",
            highlight=False,
            soft_wrap=True,
        )
