"""Writes episodes for in-context instruction tuning: each document behind demonstrations, others of its task.

  flamingo-lite data episodes shards/m3it --to shards/m3it_3shot --shots 3 --by task
  flamingo-lite data episodes shards/scienceqa --to shards/episodes --shots 2 --by topic --loss query

A demonstration shares no image with its query. The same shards and options give the same bytes. A document of whose
task there are too few others is left out, counted, and named in rejects.jsonl."""

import argparse

from flamingo_lite.commands.common import bold

SUMMARY = "write documents behind demonstrations of their task"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="the directory or address of the documents' shards")
    parser.add_argument("--to", required=True, metavar="DIR", help="the directory for the episodes' shards")
    parser.add_argument(
        "--shots", type=int, default=3, metavar="K", help="demonstrations before each document (3)"
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="FIELD",
        help="the entry of meta that names a document's task; without it all documents are of one",
    )
    parser.add_argument(
        "--loss",
        default="all",
        metavar="WHICH",
        help="all answers are trained on (the default), or the query's",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which demonstrations are drawn (0)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=1000, metavar="N", help="episodes of a shard"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there already")


def run(arguments: argparse.Namespace) -> None:
    import json
    from collections import Counter
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.episodes import EpisodeConfig, Left, episodes, recipe
    from flamingo_lite.data.shard_writer import write_whole
    from flamingo_lite.data.shards import Shards, write_shards
    from flamingo_lite.training.display import ProgressDisplay

    config = EpisodeConfig(arguments.shots, arguments.by, arguments.loss, arguments.seed)
    shards, console = Shards(arguments.shards), Console()
    left: list[Left] = []
    with ProgressDisplay("writing episodes", len(shards), console) as display:
        found = display.counting(episodes(shards, config, left))
        manifest = write_shards(
            found, arguments.to, arguments.samples_per_shard, recipe(config, shards), arguments.overwrite
        )
    lines = "".join(json.dumps(reject._asdict()) + "\n" for reject in left)
    write_whole(Path(arguments.to) / "rejects.jsonl", lines)
    written = sum(shard.samples for shard in manifest.shards)
    console.print(
        f"{written:,} episodes of {config.shots} demonstrations in {bold(arguments.to)}",
        highlight=False,
        soft_wrap=True,
    )
    if left:
        counts = Counter(reject.reason for reject in left)
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in counts.most_common())
        console.print(
            f"{len(left):,} documents were left out ({reasons}); each with its reason in "
            f"{arguments.to}/rejects.jsonl",
            highlight=False,
            soft_wrap=True,
        )
