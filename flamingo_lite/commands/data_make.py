"""Draws documents of the synthetic families and writes them as interleaved WebDataset shards with a manifest.

The same settings give the same bytes, whatever the number of worker processes. Settings: data.families
(name: weight), data.text_twins, data.samples, data.samples_per_shard, data.seed, data.workers, data.directory."""

import argparse
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import add_config_arguments, bold, configs

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.make import DataConfig

SUMMARY = "draw synthetic documents and write them as shards"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there already")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    for config in configs(arguments):
        console = Console()
        directory = make_shards(config.data, console, arguments.overwrite)
        console.print(
            f"{config.data.samples:,} documents in {bold(directory)}", highlight=False, soft_wrap=True
        )


def make_shards(config: "DataConfig", console: "Console", overwrite: bool = False) -> "Path":
    """Writes the shards that `config` describes; returns their directory."""
    from pathlib import Path

    from flamingo_lite.data.make import draw_documents
    from flamingo_lite.data.shards import write_shards
    from flamingo_lite.training.display import ProgressDisplay

    with ProgressDisplay("drawing documents", config.samples, console) as display:
        documents = display.counting(draw_documents(config))
        write_shards(documents, config.directory, config.samples_per_shard, recipe(config), overwrite)
    return Path(config.directory)


def recipe(config: "DataConfig") -> dict[str, Any]:
    """What decides the bytes of the shards, to be kept in their manifest."""
    return {
        "families": dict(config.families),
        "text_twins": config.text_twins,
        "samples": config.samples,
        "seed": config.seed,
    }
