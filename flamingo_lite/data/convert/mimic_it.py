"""MIMIC-IT: instructions `{meta, data: {id: {instruction, answer, image_ids, rel_ins_ids}}}`, images `{id: base64}`.

The layout is that of Otter's LA_instructions.json and LA.json; --images names the latter. Images are found by where
they lie in that file: of either file only the ids are held in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, fields, files
from flamingo_lite.data.convert.json_records import Section, cut, read_records, section
from flamingo_lite.data.convert.sources import parse_json
from flamingo_lite.data.convert.values import image_from_base64, list_of, plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError

REQUIRED = {"instruction": str, "answer": str, "image_ids": list, "rel_ins_ids": list}


@dataclass(frozen=True)
class MimicItOptions(Options):
    images: Path | None = option(None, "the JSON file of images, {id: base64}")
    in_context: bool = option(
        False, "the related instructions first, with their answers: examples, or the conversation so far"
    )


def units(inputs: Sequence[Path], options: MimicItOptions) -> list[Unit]:
    if options.images is None or not options.images.is_file():
        raise FlamingoError(
            "mimic_it needs its JSON file of images, {id: base64}; name it with --images LA.json"
        )
    beside = (options.images,)
    return [
        part
        for unit in files(inputs, ".json")
        for part in cut(replace(unit, beside=beside), section(unit.path, dict, "data"))
    ]


def read(unit: Unit, options: MimicItOptions) -> Iterator[Record]:
    instructions, images = section(unit.path, dict, "data"), section(unit.beside[0], dict)
    task = PurePosixPath(unit.name).name.split(".")[0]
    return read_records(
        unit, instructions, partial(_document, options.in_context, instructions, images, task)
    )


def _document(
    in_context: bool,
    instructions: Section,
    images: Section,
    task: str,
    key: str | None,
    record: Any,
    where: str,
) -> Document:
    """Turn by turn. Images are shown where they change: a question about the same ones continues the conversation."""
    where = f"{where} ({key})"
    turns = [_checked(record, where)]
    related = list_of(str, record["rel_ins_ids"], f"{where}: rel_ins_ids")
    if in_context:
        turns = [*(_related(instructions, other, where) for other in related), *turns]
    segments: list[Text | Image] = []
    shown: list[str] = []
    for turn in turns:
        if turn["image_ids"] != shown:
            shown = turn["image_ids"]
            segments += [_image(images, image_id, where) for image_id in shown]
        question = plain_text(turn["instruction"], f"{where}: instruction")
        answer = plain_text(turn["answer"], f"{where}: answer", "answer")
        segments += [Text(question, False, "user"), Text(answer, True, "assistant", ends_chunk=True)]
    meta = {"id": key, "image_ids": record["image_ids"], "rel_ins_ids": related, "task": task}
    return Document(segments, meta)


def _checked(record: Any, where: str) -> dict[str, Any]:
    fields(record, where, REQUIRED)
    list_of(str, record["image_ids"], f"{where}: image_ids")
    return record


def _related(instructions: Section, key: str, where: str) -> dict[str, Any]:
    if key not in instructions.numbers:
        raise SampleError(f"{where}: the related instruction {key!r} is not in the file", "reference")
    return _checked(
        parse_json(instructions.read(instructions.numbers[key]), f"{where}: {key}"), f"{where}: {key}"
    )


def _image(images: Section, image_id: str, where: str) -> Image:
    if image_id not in images.numbers:
        raise SampleError(f"{where}: image {image_id!r} is not in {images.path}", "missing")
    text = parse_json(images.read(images.numbers[image_id]), f"{where}: image {image_id}")
    if not isinstance(text, str):
        raise SampleError(f"{where}: image {image_id} is a {type(text).__name__}, not base64", "image")
    return image_from_base64(text, f"{where}: image {image_id}")


FORMAT = Format("MIMIC-IT: instructions JSON, images JSON by --images", units, read, MimicItOptions)
