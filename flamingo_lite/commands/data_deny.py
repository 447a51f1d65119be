"""Makes a deny-list from images that must not be trained on, such as those of an evaluation:

  flamingo-lite data deny evaluation/images --to deny.txt
  flamingo-lite data convert --from mmc4 docs/ --images images/ --to shards deny=deny.txt

A line per image: the sha256 of its bytes, and a perceptual hash that survives resizing and compression."""

import argparse
from pathlib import Path

from flamingo_lite.errors import FlamingoError

SUMMARY = "make a list of images to keep out of training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders of images")
    parser.add_argument("--to", required=True, metavar="FILE", help="the list to write")


def run(arguments: argparse.Namespace) -> None:
    from flamingo_lite.data.deny import deny_line
    from flamingo_lite.data.images import IMAGE_SUFFIXES
    from flamingo_lite.data.shard_writer import write_whole, writing_to
    from flamingo_lite.document import Image

    paths: list[Path] = []
    for given in map(Path, arguments.inputs):
        found = [given]
        if given.is_dir():
            found = sorted(p for p in given.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)
        if not found:
            raise FlamingoError(f"{given}: no jpg, jpeg, png or webp image in this folder")
        paths += found
    lines = sorted({deny_line(Image(path).data, str(path)) for path in paths})
    target = Path(arguments.to)
    with writing_to(target.parent):
        write_whole(target, "\n".join(lines) + "\n")
    print(f"{len(lines):,} images in {target}")
