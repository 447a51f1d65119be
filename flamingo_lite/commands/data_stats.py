"""Counts what a set of shards is like and prints it: images per document, length, image sizes, similarity, roles, what
was rejected and why. --output writes the same as a page with figures (stats.html, and a PNG each).

Lengths are in characters, or in tokens with --tokenizer. Images are known by their headers, not decoded."""

import argparse
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import bold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.stats import Stats

SUMMARY = "count and plot what documents are like"
PAGE = "stats.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a directory of shards")
    parser.add_argument("--output", metavar="FOLDER", help=f"write {PAGE} and the figures into this folder")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="measure texts in its tokens: tiny, a directory, or a hub name"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="read N documents, drawn at random, instead of all"
    )


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.data.stats import Stats, chosen, document_at, left_out, open_shards
    from flamingo_lite.training.display import ProgressDisplay

    console = Console()
    shards = open_shards(arguments.directory, arguments.sample)
    unit, measure = measured_by(arguments.tokenizer)
    stats = Stats(unit, total=len(shards), left_out=left_out(shards.manifest.info))
    numbers = chosen(len(shards), arguments.sample)
    with ProgressDisplay("reading documents", len(numbers), console) as display:
        for number in display.counting(numbers):
            stats.take(document_at(shards, number), measure)
    show(stats, console)
    if arguments.output is not None:
        path = write_page(stats, arguments.directory, arguments.output)
        console.print(f"page with figures: {bold(path)}", highlight=False, soft_wrap=True)


def measured_by(tokenizer: str | None) -> "tuple[str, Callable[[str], int]]":
    """The unit of a text's length, and what counts it. Errors: `FlamingoError` for a tokenizer that cannot be loaded."""
    if tokenizer is None:
        return "characters", len
    from flamingo_lite.models.language import LanguageConfig, load_tokenizer

    loaded = load_tokenizer(LanguageConfig(name=tokenizer))
    return "tokens", lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"])


def show(stats: "Stats", console: "Console") -> None:
    """The same figures as the page has, as tables."""
    from rich.table import Table
    from rich.text import Text

    console.print(scope(stats), highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for tile in tiles(stats):
        table.add_row(tile["name"], f"[bold]{tile['value']}[/bold]", f"[dim]{tile['note']}[/dim]")
    console.print(table)
    if stats.roles:
        # Names come from the data: no markup is read in them.
        roles = ", ".join(f"{count:,} {role!a}" for role, count in stats.roles.most_common(8))
        console.print(Text(f"roles: {roles}"), soft_wrap=True)
    if rows := rejects(stats):
        table = Table("not used", "in conversion", "in reading", "what it means", box=None, pad_edge=False)
        for row in rows:
            table.add_row(Text(row["reason"]), f"{row['left_out']:,}", f"{row['rejects']:,}", row["meaning"])
        console.print(table)


def scope(stats: "Stats") -> str:
    """Which documents were counted."""
    read = stats.documents + stats.rejects.total()
    part = (
        f"{read:,} of {stats.total:,} documents, drawn at random"
        if read < stats.total
        else f"{read:,} documents"
    )
    return f"{part}; {stats.rejects.total():,} cannot be read" if stats.rejects else part


def tiles(stats: "Stats") -> list[dict[str, str]]:
    """The headline figures: name, value, note."""
    import numpy as np

    found = [
        {"name": "documents", "value": f"{stats.documents:,}", "note": f"of {stats.total:,} in the shards"}
    ]
    if stats.documents:
        images, lengths = np.asarray(stats.images), np.asarray(stats.lengths)
        none = float((images == 0).mean())
        found += [
            {"name": "images", "value": f"{images.sum():,}",
             "note": f"{images.mean():.2f} a document; {none:.1%} have none"},
            {"name": stats.unit, "value": f"{lengths.sum():,}", "note": f"median {np.median(lengths):,.0f} a document"},
            {"name": "texts", "value": f"{stats.texts:,}",
             "note": f"{stats.trained / max(1, stats.texts):.1%} are trained on"},
        ]  # fmt: skip
    if stats.widths:
        width, height, size = (
            float(np.median(np.asarray(v))) for v in (stats.widths, stats.heights, stats.bytes)
        )
        formats = ", ".join(
            f"{count / len(stats.widths):.0%} {name}" for name, count in stats.formats.most_common()
        )
        found.append(
            {
                "name": "image size",
                "value": f"{width:.0f} x {height:.0f}",
                "note": f"median pixels; {formats}",
            }
        )
        found.append(
            {
                "name": "image bytes",
                "value": f"{size / 1024:,.1f} KiB",
                "note": "median of the encoded images",
            }
        )
    if stats.similarities:
        middle = float(np.median(np.asarray(stats.similarities)))
        found.append(
            {"name": "similarity", "value": f"{middle:.3f}", "note": f"median of {len(stats.similarities):,}"}
        )
    return found


def rejects(stats: "Stats") -> list[dict[str, Any]]:
    """A row per reason: how many the conversion left out, and how many cannot be read now."""
    from flamingo_lite.errors import REASONS

    counts = stats.left_out + stats.rejects
    return [
        {"reason": reason, "meaning": REASONS.get(reason, ""), "left_out": stats.left_out[reason],
         "rejects": stats.rejects[reason]}
        for reason, _ in counts.most_common()
    ]  # fmt: skip


def write_page(stats: "Stats", directory: str, folder: "str | Path") -> "Path":
    """Writes the figures and the page; returns the page's path. Errors: `FlamingoError` if they cannot be written."""
    from pathlib import Path

    from flamingo_lite.data.pages import data_uri, page
    from flamingo_lite.data.stats_figures import figures
    from flamingo_lite.evaluation.results import write_atomically
    from flamingo_lite.figures import png

    addresses = {}
    for name, figure in figures(stats).items():
        data = png(figure, dpi=160)
        write_atomically(Path(folder) / f"{name}.png", data)
        addresses[name] = data_uri(data, "png")
    html = page(
        "stats.html.jinja",
        directory=directory, scope=scope(stats), tiles=tiles(stats), figures=addresses, rejects=rejects(stats),
    )  # fmt: skip
    return write_atomically(Path(folder) / PAGE, html)
