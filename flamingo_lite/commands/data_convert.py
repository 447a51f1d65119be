"""Converts data sets in other projects' formats into interleaved WebDataset shards with a manifest.

  flamingo-lite data convert --from mmc4 docs/ --images images/ --to shards/mmc4 min_images=2
  flamingo-lite data convert --from img2dataset laion/*.tar --to shards/laion min_side=64

Each input file becomes shards of its own. A run that was interrupted continues; a run over inputs that are done
skips them; an input that changed is done again. Every image is decoded once, so what is written is whole; what is
left out is counted by reason, and listed in rejects.jsonl. The bytes are the same whatever --workers and --engine."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import bold
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from collections import Counter

    from rich.console import Console

    from flamingo_lite.data.convert.engine import Job
    from flamingo_lite.data.convert.ledger import Ledger

SUMMARY = "write shards from other projects' formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="INPUT or KEY=VALUE",
        help="files or folders to convert; options of the format (min_images=2)",
    )
    parser.add_argument(
        "--from", dest="format", metavar="FORMAT", help="the inputs' format; --formats lists them"
    )
    parser.add_argument("--to", metavar="DIR", help="the directory for the shards")
    parser.add_argument(
        "--images", metavar="DIR", help="the folder that holds the images which the inputs name"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes; 0 = one per core (the default)"
    )
    parser.add_argument(
        "--engine", default="local", metavar="NAME", help="local (the default), or ray: on a cluster"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="convert all anew, and replace shards that are there"
    )
    parser.add_argument("--formats", action="store_true", help="list the formats, and stop")
    parser.add_argument("--options", action="store_true", help="list the options of the format, and stop")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.data.convert.formats import FORMATS

    console = Console()
    if arguments.formats:
        show_formats(console)
        return
    if arguments.format is None:
        raise FlamingoError(f"--from is missing; expected one of {', '.join(sorted(FORMATS))}")
    check_choice("format", arguments.format, FORMATS)
    if arguments.options:
        show_options(arguments.format, console)
        return
    inputs, options = split_words(arguments.overrides)
    if not inputs:
        raise FlamingoError("no input was given; expected files or folders to convert")
    if arguments.to is None:
        raise FlamingoError("--to is missing; expected the directory for the shards")
    if arguments.images is not None:
        options["images"] = arguments.images
    from flamingo_lite.data.convert.choices import make_options
    from flamingo_lite.data.convert.engine import Job

    chosen = make_options(FORMATS[arguments.format].options, options, arguments.format)
    job = Job(arguments.format, chosen, Path(arguments.to), arguments.overwrite)
    convert_shown(job, inputs, arguments.workers, arguments.engine, console)


def split_words(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Inputs and options apart: KEY=VALUE is an option unless there is a file of that name."""
    inputs, options = [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.isidentifier() and not Path(word).exists():
            options[key] = value
        else:
            inputs.append(Path(word))
    return inputs, options


def convert_shown(job: "Job", inputs: Sequence[Path], workers: int, engine: str, console: "Console") -> None:
    """Converts, with a bar that counts inputs and a summary at the end."""
    from flamingo_lite.data.convert.engine import convert
    from flamingo_lite.training.display import ProgressDisplay

    count, converted = convert(job, inputs, workers, engine)
    ledgers: list[Ledger] = []
    documents = skipped = 0
    with ProgressDisplay(f"converting {job.format}", count, console) as display:
        for ledger, was_done in converted:
            ledgers.append(ledger)
            skipped += was_done
            documents += ledger.documents
            display.update(len(ledgers), f"{documents:,} documents")
    show_summary(job, ledgers, console)
    if skipped:
        console.print(
            f"{skipped:,} of {count:,} inputs were done already; --overwrite converts them anew",
            highlight=False,
        )


def show_summary(job: "Job", ledgers: "Sequence[Ledger]", console: "Console") -> None:
    """What was written, and what was not and why."""
    from collections import Counter

    from rich.markup import escape

    documents, images = (sum(getattr(ledger, name) for ledger in ledgers) for name in ("documents", "images"))
    shards = sum(len(ledger.shards) for ledger in ledgers)
    size = sum(shard.bytes for ledger in ledgers for shard in ledger.shards)
    console.print(
        f"{documents:,} documents with {images:,} images in {shards:,} shards ({size / 1e6:,.1f} MB) in "
        f"{bold(job.directory)}", highlight=False, soft_wrap=True,
    )  # fmt: skip
    for title, name, total in (
        ("documents left out", "rejects", documents),
        ("images left out", "images_left_out", images),
    ):
        counts: Counter[str] = sum((getattr(ledger, name) for ledger in ledgers), Counter())
        show_counts(title, counts, total, console)
    if any(ledger.rejects or ledger.images_left_out for ledger in ledgers):
        console.print(
            f"each with its reason in {escape(str(job.directory / 'rejects.jsonl'))}",
            highlight=False,
            soft_wrap=True,
        )


def show_counts(title: str, counts: "Counter[str]", kept: int, console: "Console") -> None:
    """A table of what was left out, by reason; nothing where nothing was."""
    from rich.table import Table

    if not counts:
        return
    table = Table(title_justify="left")
    for label in (title, "number", "share"):
        table.add_column(label, justify="left" if label == title else "right")
    for reason, number in counts.most_common():
        table.add_row(reason, f"{number:,}", f"{number / (kept + counts.total()):.1%}")
    console.print(table)


def show_formats(console: "Console") -> None:
    """The formats, a line each."""
    from rich.table import Table

    from flamingo_lite.data.convert.formats import FORMATS

    table = Table(box=None, show_header=False)
    for name in sorted(FORMATS):
        table.add_row(f"[bold]{name}[/bold]", FORMATS[name].summary)
    console.print(table)


def show_options(name: str, console: "Console") -> None:
    """The options of a format, with their types and defaults."""
    from flamingo_lite.data.convert.formats import FORMATS

    show_table(FORMATS[name].options, f"{name}: {FORMATS[name].summary}", console)


def show_table(options: type[Any], title: str, console: "Console") -> None:
    """The options of a dataclass, a row each."""
    from rich.table import Table

    from flamingo_lite.data.convert.choices import shown

    table = Table(title=title, title_justify="left")
    for label in ("option", "type", "default", "meaning"):
        table.add_column(label, no_wrap=label in ("option", "default"))
    for row in shown(options):
        table.add_row(*row)
    console.print(table)
