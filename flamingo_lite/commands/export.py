"""Writes a model as another project's checkpoint, which that project's own class loads.

checkpoint= names the model's directory (ours, or any format that can be read), format= the format, output= the
directory to write. What the format cannot express is an error that names the field in the way."""

import argparse

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

SUMMARY = "write a model in another project's format"
KEYS = ("checkpoint", "format", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usage = "checkpoint=DIRECTORY format=NAME output=DIRECTORY"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=usage)


def run(arguments: argparse.Namespace) -> None:
    chosen = settings(arguments.overrides)
    from flamingo_lite.checkpoints.formats import export
    from flamingo_lite.checkpoints.io import load

    model, processor = load(chosen["checkpoint"])
    print(export(model, processor, chosen["output"], format=chosen["format"]))


def settings(words: list[str]) -> dict[str, str]:
    """The three values by their keys. Errors: `FlamingoError` for one that is unknown, empty or not given."""
    chosen: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        check_choice("setting of export", key, KEYS)
        chosen[key] = value
    missing = [key for key in KEYS if not chosen.get(key)]
    if missing:
        raise FlamingoError(
            f"export needs {', '.join(f'{key}=' for key in missing)}; expected checkpoint=DIRECTORY format=NAME "
            "output=DIRECTORY"
        )
    return chosen
