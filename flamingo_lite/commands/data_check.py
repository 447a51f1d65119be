"""Checks a directory of shards: each tar against the manifest (size, sha256, index, counts), and every sample in it,
down to the pixels of every image. Ends with 0 when all is whole, with 2 when anything is not.

--repair writes a copy that holds the usable samples alone, with a manifest of its own; tars of other programs, which
have no manifest, are indexed by it."""

import argparse
from typing import TYPE_CHECKING

from flamingo_lite.commands.common import bold

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.check import Findings, Task
    from flamingo_lite.data.manifest import Manifest

SUMMARY = "verify shards and every sample in them; write a repaired copy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a directory of shards")
    parser.add_argument(
        "--repair", metavar="TO", help="write a copy of the usable samples into this directory"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are in TO already")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes; 0 = one per core (default)"
    )


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.check import Findings, check, strays, tasks
    from flamingo_lite.data.stores import MANIFEST
    from flamingo_lite.errors import FlamingoError
    from flamingo_lite.training.display import ProgressDisplay

    if arguments.workers < 0:
        raise FlamingoError(f"--workers is {arguments.workers}; expected 0 (one per core) or more")
    if (
        arguments.repair is not None
        and Path(arguments.repair).resolve() == Path(arguments.directory).resolve()
    ):
        raise FlamingoError(f"{arguments.repair}: is what is checked; choose another directory for the copy")
    console = Console()
    todo, manifest = tasks(arguments.directory)
    found = Findings()
    unusable: list[set[int]] = []
    with ProgressDisplay("checking shards", len(todo), console) as display:
        for one in display.counting(check(todo, arguments.workers)):
            unusable.append(one.unusable)
            found.add(one)
    if manifest is None:
        found.problems.insert(
            0, f"{arguments.directory}: {MANIFEST} is missing, so nothing says what should be here"
        )
    show(found, console)
    if manifest is not None and (unnamed := strays(manifest)):
        names = f"{unnamed[0]} and {len(unnamed) - 1:,} more" if len(unnamed) > 1 else unnamed[0]
        console.print(
            f"not in {MANIFEST}, so never opened: {names}", style="dim", markup=False, highlight=False
        )
    if arguments.repair is not None:
        write_copy(todo, unusable, manifest, arguments.repair, arguments.overwrite, console)
    elif not found.whole:
        raise FlamingoError(
            f"{arguments.directory}: {verdict(found)}; --repair TO writes a copy of the usable samples"
        )
    else:
        console.print("[green]✓[/green] whole", highlight=False)


def show(found: "Findings", console: "Console") -> None:
    """What was found, as tables: the whole, rejects by reason with the first of each, and what was never read."""
    from rich.table import Table

    from flamingo_lite.errors import REASONS

    console.print(
        f"{found.shards:,} shards, {found.samples:,} samples, {found.images:,} images decoded",
        highlight=False,
    )
    if found.rejects:
        table = Table("reason", "samples", "what it means", box=None, pad_edge=False, header_style="bold")
        table.columns[1].justify = "right"
        for reason, count in found.rejects.most_common():
            table.add_row(reason, f"{count:,}", REASONS.get(reason, ""))
        console.print(table)
    told = [(reason, line) for reason in found.rejects for line in found.examples[reason]]
    for label, line in [*told, *(("shard", problem) for problem in found.problems)]:
        # Names come from the data: no markup is read in them.
        console.print(f"{label}:", line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if found.skipped:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in found.skipped.most_common())
        console.print(
            f"never read: {found.skipped.total():,} members ({kinds})", style="dim", highlight=False
        )


def verdict(found: "Findings") -> str:
    """What is wrong, in a few words."""
    parts = []
    if bad := found.rejects.total():
        parts.append(f"{bad:,} of {found.samples:,} samples cannot be used")
    if trouble := len(found.problems):
        parts.append(
            f"{plural(trouble, 'thing')} {'is' if trouble == 1 else 'are'} wrong with shards as a whole"
        )
    return " and ".join(parts)


def plural(count: int, noun: str) -> str:
    """ "1 shard", "2 shards"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def write_copy(
    todo: "list[Task]", unusable: list[set[int]], manifest: "Manifest | None", to: "str | Path", overwrite: bool,
    console: "Console",
) -> None:  # fmt: skip
    """Writes the usable samples into `to`, in shards as large as before, and says what was left out."""
    from flamingo_lite.data.check import repair
    from flamingo_lite.data.shard_writer import ShardWriter

    size = max((shard.samples for shard in manifest.shards), default=0) if manifest else 0
    info = {**(manifest.info if manifest else {}), "repaired": True}
    with ShardWriter(to, size or 1000, info, overwrite) as writer:
        copied = repair(todo, unusable, writer)
    for lines in copied.examples.values():
        for line in lines:
            console.print("not written:", line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    left_out = sum(map(len, unusable)) + copied.rejects.total()
    console.print(
        f"{plural(copied.samples, 'sample')} with {plural(copied.images, 'image')} in {bold(to)}, "
        f"{left_out:,} left out",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
