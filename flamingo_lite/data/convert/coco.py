"""COCO captions: the official annotations (captions_train2017.json), the images in a folder.

The layout is cocodataset.org's: `{info, licenses, images: [...], annotations: [{id, image_id, caption}]}`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, fields, files
from flamingo_lite.data.convert.json_records import Section, cut, read_records, section
from flamingo_lite.data.convert.sources import image_in, parse_json
from flamingo_lite.data.convert.values import plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError


@dataclass(frozen=True)
class CocoOptions(Options):
    captions: Literal["each", "first"] = option(
        "each", "a document for each caption, or for each image with its first; its meta then has them all"
    )


def units(inputs: Sequence[Path], options: CocoOptions) -> list[Unit]:
    return [part for unit in files(inputs, ".json") for part in cut(unit, _records(unit.path, options))]


def read(unit: Unit, options: CocoOptions) -> Iterator[Record]:
    if options.captions == "first":
        make = partial(_image_document, options, _captions(_annotations(unit.path)))
    else:
        make = partial(_caption_document, options, _file_names(section(unit.path, list, "images")))
    return read_records(unit, _records(unit.path, options), make)


def pair(image: Image, caption: str, where: str, meta: dict[str, Any]) -> Document:
    """An image, then its caption."""
    return Document([image, Text(plain_text(caption, f"{where}: caption"), ends_chunk=True)], meta)


def _records(path: Path, options: CocoOptions) -> Section:
    return section(path, list, "images") if options.captions == "first" else _annotations(path)


def _annotations(path: Path) -> Section:
    return section(path, list, "annotations")


def _caption_document(
    options: CocoOptions, names: dict[int, str], key: str | None, record: Any, where: str
) -> Document:
    caption_id, image_id, caption = _annotation(record, where)
    if image_id not in names:
        raise SampleError(f"{where}: image_id {image_id} is not among the images", "reference")
    image = image_in(options.images, names[image_id], where)
    return pair(image, caption, where, {"image_id": image_id, "caption_id": caption_id})


def _image_document(
    options: CocoOptions, captions: dict[int, list[str]], key: str | None, record: Any, where: str
) -> Document:
    image_id, name = _image(record, where)
    if image_id not in captions:
        raise SampleError(f"{where}: image {image_id} has no caption", "reference")
    image = image_in(options.images, name, where)
    texts = captions[image_id]
    return pair(image, texts[0], where, {"image_id": image_id, "captions": texts})


def _annotation(record: Any, where: str) -> tuple[int, int, str]:
    fields(record, where, {"id": int, "image_id": int, "caption": str})
    return record["id"], record["image_id"], record["caption"]


def _image(record: Any, where: str) -> tuple[int, str]:
    about = {"license": int, "width": int, "height": int, "date_captured": str}
    fields(record, where, {"id": int, "file_name": str}, {**about, "coco_url": str, "flickr_url": str})
    return record["id"], record["file_name"]


@lru_cache(maxsize=2)
def _file_names(images: Section) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, _, data in images.items():
        where = f"{images.path}: image {number}"
        image_id, name = _image(parse_json(data, where), where)
        if image_id in names:
            raise FlamingoError(f"{where}: the id {image_id} comes twice; expected every id once")
        names[image_id] = name
    return names


@lru_cache(maxsize=2)
def _captions(annotations: Section) -> dict[int, list[str]]:
    """The captions of each image, in the order of their ids."""
    found: dict[int, list[tuple[int, str]]] = {}
    for number, _, data in annotations.items():
        where = f"{annotations.path}: annotation {number}"
        caption_id, image_id, caption = _annotation(parse_json(data, where), where)
        found.setdefault(image_id, []).append((caption_id, caption))
    return {image_id: [caption for _, caption in sorted(texts)] for image_id, texts in found.items()}


FORMAT = Format("COCO captions: the official JSON, images by --images", units, read, CocoOptions)
