"""LLaVA's instruction files: a JSON list of `{id, image?, conversations}`, the images in a folder.

The layout is that of llava_instruct_150k.json and llava_v1_5_mix665k.json. A turn's `<image>` marks become its
images where they stand, which LLaVA's own loader moves to the front; newlines around a mark go with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, fields, files
from flamingo_lite.data.convert.json_records import cut, read_records, section
from flamingo_lite.data.convert.sources import image_in
from flamingo_lite.data.convert.values import list_of, plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import SampleError

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class LlavaOptions(Options):
    ignore: str = option("", "fields beyond LLaVA's own that records may have, separated by commas; not kept")


def units(inputs: Sequence[Path], options: LlavaOptions) -> list[Unit]:
    return [part for unit in files(inputs, ".json") for part in cut(unit, section(unit.path, list))]


def read(unit: Unit, options: LlavaOptions) -> Iterator[Record]:
    return read_records(unit, section(unit.path, list), partial(conversation, options))


def conversation(options: LlavaOptions, key: str | None, record: Any, where: str) -> Document:
    """The turns in order; the assistant's are trained on, and each ends a chunk."""
    ignored = {name.strip(): object for name in options.ignore.split(",") if name.strip()}
    optional = {"image": (str, list), "model": str, **ignored}
    fields(record, where, {"id": (str, int), "conversations": list}, optional)
    if not record["conversations"]:
        raise SampleError(f"{where}: conversations is empty; expected turns", "layout")
    names = record.get("image", [])
    names = list_of(str, names, f"{where}: image") if isinstance(names, list) else [names]
    turns = [_turn(turn, f"{where}: turn {i}") for i, turn in enumerate(record["conversations"])]
    if (marks := sum(value.count(IMAGE_TOKEN) for _, value in turns)) != len(names):
        raise SampleError(
            f"{where}: {marks} {IMAGE_TOKEN} marks for {len(names)} images; expected one mark each", "marks"
        )
    images = (image_in(options.images, name, where) for name in names)
    segments: list[Text | Image] = []
    for number, (role, value) in enumerate(turns):
        segments += _segments(role, value, images, f"{where}: turn {number}")
    meta = {name: record[name] for name in ("id", "model") if name in record}
    return Document(segments, meta)


def _turn(turn: Any, where: str) -> tuple[str, str]:
    fields(turn, where, {"from": str, "value": str})
    if turn["from"] not in ROLES:
        raise SampleError(f"{where}: is from {turn['from']!r}; expected {', '.join(ROLES)}", "role")
    return ROLES[turn["from"]], turn["value"]


def _segments(role: str, value: str, images: Iterator[Image], where: str) -> list[Text | Image]:
    """A turn as texts and images. Its ends lose their blanks, its marks the newlines around them."""
    is_trained = role == "assistant"
    plain_text(value, where, "answer" if is_trained else "text")
    segments: list[Text | Image] = []
    pieces = value.strip().split(IMAGE_TOKEN)
    if is_trained and not pieces[0]:
        segments.append(Text("", True, role))  # whose the image is
    for position, piece in enumerate(pieces):
        if position:
            segments.append(next(images))
            piece = piece.lstrip("\n")
        if position < len(pieces) - 1:
            piece = piece.rstrip("\n")
        if piece:
            segments.append(Text(piece, is_trained, role))
    if is_trained:
        if not isinstance(segments[-1], Text):
            raise SampleError(f"{where}: the assistant's turn ends in an image; expected a text", "marks")
        segments[-1] = Text(segments[-1].text, True, role, ends_chunk=True)
    return segments


FORMAT = Format("LLaVA's conversations: a JSON list, images by --images", units, read, LlavaOptions)
