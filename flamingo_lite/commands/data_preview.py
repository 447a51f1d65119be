"""Writes one self-contained HTML page that shows documents as a reader would see them: images inline and shrunk, turns
where texts have roles, marks on text that is not trained on and at the end of chunks.

Everything on it is escaped; the page loads nothing and runs no script."""

import argparse

from flamingo_lite.commands.common import bold

SUMMARY = "write a page that shows documents as a reader would see them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a directory of shards")
    parser.add_argument("-n", "--documents", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="draw them by this seed (default: the first ones)"
    )
    parser.add_argument(
        "--output", default="preview.html", metavar="FILE", help="the page (default: preview.html)"
    )


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from flamingo_lite.data.pages import page
    from flamingo_lite.data.preview import shown
    from flamingo_lite.data.stats import chosen, document_at, open_shards
    from flamingo_lite.evaluation.results import write_atomically

    shards = open_shards(arguments.directory, arguments.documents)
    if arguments.seed is None:
        numbers = list(range(min(arguments.documents, len(shards))))
    else:
        numbers = chosen(len(shards), arguments.documents, arguments.seed)
    home = f"{shards.store.location}/"
    documents = [
        shown(document, (getattr(document, "name", None) or shards.name(number)).removeprefix(home))
        for number in numbers
        for document in [document_at(shards, number)]
    ]
    html = page(
        "preview.html.jinja",
        directory=arguments.directory, documents=documents, total=len(shards), seed=arguments.seed,
    )  # fmt: skip
    path = write_atomically(Path(arguments.output), html)
    Console().print(f"{len(documents):,} documents in {bold(path)}", highlight=False, soft_wrap=True)
