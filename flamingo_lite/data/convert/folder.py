"""Plain folders: images with a text file of the same name beside each, or with the name of their folder as the text."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, attempt, stretches
from flamingo_lite.data.convert.sources import image_in
from flamingo_lite.data.convert.values import plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.data.images import IMAGE_SUFFIXES
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, SampleError

MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class FolderOptions(Options):
    text: Literal["file", "folder"] = option(
        "file", "an image's text: the .txt file of its name, or the name of its folder, as its class"
    )


def units(inputs: Sequence[Path], options: FolderOptions) -> list[Unit]:
    found = []
    for path in inputs:
        if not path.is_dir():
            raise FlamingoError(f"{path}: no such folder; expected one with images")
        names = _names(path, options)
        if not any(map(_is_image, names)):
            raise FlamingoError(
                f"{path}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        found += stretches(Unit(path, path.resolve().name), len(names))
    return found


def read(unit: Unit, options: FolderOptions) -> Iterator[Record]:
    for number, name in enumerate(_names(unit.path, options)[unit.start : unit.stop], unit.start):
        yield attempt(unit.key(number), partial(_document, options, unit.path, name, f"{unit.name}/{name}"))


def _document(options: FolderOptions, folder: Path, name: str, where: str) -> Document:
    if not _is_image(name):
        raise SampleError(f"{where}: no image of this name beside it", "missing")
    path = folder / name
    image = image_in(folder, name, where)
    text = path.parent.resolve().name if options.text == "folder" else _text_beside(path, folder, where)
    return Document([image, Text(plain_text(text, where), ends_chunk=True)], {"path": name})


def _text_beside(image: Path, folder: Path, where: str) -> str:
    path = image.with_suffix(".txt")
    try:
        if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
            raise SampleError(
                f"{where}: no {path.name} of at most {MAX_TEXT_BYTES:,} bytes beside it", "missing"
            )
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SampleError(f"{where}: {path.name} leads out of {folder}", "path")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{where}: {path.name} cannot be read as UTF-8", "text") from error


def _names(folder: Path, options: FolderOptions) -> list[str]:
    """All images below the folder, sorted, and texts that lack theirs; what is hidden is passed over."""
    images, texts = set(), set()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            name = (Path(parent) / file).relative_to(folder).as_posix()
            if _is_image(name) and not file.startswith("."):
                images.add(name)
            elif name.endswith(".txt") and options.text == "file" and not file.startswith("."):
                texts.add(name)
    described = {name.rpartition(".")[0] for name in images}
    return sorted(images | {name for name in texts if name.removesuffix(".txt") not in described})


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


FORMAT = Format("a folder of images, texts beside them or as names of folders", units, read, FolderOptions)
