"""Looks for an evaluation's queries and demonstrations in the shards that a model was trained on:

  flamingo-lite eval contamination data.directory=outputs/shards output=outputs/eval
  flamingo-lite eval checkpoint=... output=outputs/eval eval.exclude=outputs/eval/contamination.json

Images by the sha256 of their bytes and by their perceptual hash, texts by 13 words in a row. Writes contamination.json into
output=, with the id of every example that was met, why, and where. eval.exclude leaves these out; the report shows both.
Shards are those of data.sources, or of data.directory; what is asked is what eval.* says."""

import argparse
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import add_config_arguments, bold, configs
from flamingo_lite.errors import FlamingoError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from flamingo_lite.config import Config

SUMMARY = "find an evaluation's examples in training shards"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from flamingo_lite.data.limits import DENY_DISTANCE

    add_config_arguments(parser)
    parser.add_argument(
        "--distance", type=int, default=DENY_DISTANCE, metavar="BITS",
        help="bits of 64 in which perceptual hashes may differ (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (by default one per core)"
    )


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.evaluation.contamination import write_contamination

    if not 0 <= arguments.distance <= 63:
        raise FlamingoError(f"--distance is {arguments.distance}; expected 0 to 63 bits")
    if arguments.workers < 0:
        raise FlamingoError(f"--workers is {arguments.workers}; expected 0 (one per core) or more")
    console = Console()
    for config in configs(arguments):
        found = contamination(config, arguments.distance, arguments.workers, console)
        show(found, console)
        path = write_contamination(found, Path(config.output))
        excluding = bold(f"eval.exclude={path}")
        console.print(
            f"ids, and where they were met: {bold(path)}; {excluding} leaves them out",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def contamination(config: "Config", distance: int, workers: int, console: "Console") -> dict[str, Any]:
    """What contamination.json says. Errors: `FlamingoError` for shards or files that cannot be read."""
    from flamingo_lite.data.overlap import Met
    from flamingo_lite.data.shards import Shards
    from flamingo_lite.data.stores import open_store
    from flamingo_lite.evaluation.contamination import (
        contamination_of,
        examples_of,
        find_contamination,
    )
    from flamingo_lite.training.display import ProgressDisplay

    data = config.data
    locations = [source.directory for source in data.sources.values()] or [data.directory]
    sets = [Shards(open_store(location, data.cache)) for location in locations]
    named = examples_of(config.eval)
    console.print(
        f"{len(named):,} examples are looked for in {sum(map(len, sets)):,} documents", highlight=False
    )
    met = Met()
    with ProgressDisplay("reading documents", sum(map(len, sets)), console) as display:
        for done, so_far in find_contamination(named, sets, distance, workers):
            met = so_far
            display.update(done)
    return contamination_of(named, met, sets, distance)


def show(found: "Mapping[str, Any]", console: "Console") -> None:
    """The table, and what could not be read."""
    from rich import box
    from rich.table import Table

    from flamingo_lite.evaluation.contamination import contamination_table

    content = contamination_table(found)
    table = Table(title=content.title, box=box.SIMPLE_HEAD)
    for number, name in enumerate(content.header):
        table.add_column(name, justify="left" if number < content.texts else "right")
    for row in content.rows:
        table.add_row(*row)
    console.print(table)
    if found["rejects"]:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in found["rejects"].items())
        console.print(f"documents that cannot be read, and were not looked at: {counts}", highlight=False)
    if missed := found["unreadable"]:
        console.print(
            f"examples with an image that cannot be read, and was not looked for: {len(missed):,}, the first "
            f"{missed[0]['id']} of {missed[0]['task']} ({missed[0]['why']})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
