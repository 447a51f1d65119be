"""M3IT: JSON lines of `{instruction, inputs, outputs, image_base64_str}`, the images in base64 among them.

The fields are those that the dataset's loader yields; `inputs` is empty where the instruction says all.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, attempt, fields, whole_files
from flamingo_lite.data.convert.sources import json_lines, parse_json
from flamingo_lite.data.convert.values import image_from_base64, list_of, plain_text
from flamingo_lite.document import Document, Text

FIELDS = {"instruction": str, "inputs": str, "outputs": str, "image_base64_str": list}


def read(unit: Unit, options: Options) -> Iterator[Record]:
    for number, line in json_lines(unit.path):
        yield attempt(unit.key(number), partial(document, line, unit.where(number), task_of(unit)))


def task_of(unit: Unit) -> str:
    """The data set that a file is of: its folder within the one that was given, or else its name."""
    name = PurePosixPath(unit.name)
    return name.parent.as_posix() if name.parent.parts else name.name.split(".")[0]


def document(line: bytes, where: str, task: str) -> Document:
    """The images, then instruction and inputs, which are not trained on, and the outputs, which are.

    The inputs are a text of their own, behind a newline: templates that tell them from the instruction can (Alpaca).
    """
    record = fields(parse_json(line, where), where, FIELDS)
    images = list_of(str, record["image_base64_str"], f"{where}: image_base64_str")
    inputs = record["inputs"].strip()
    answer = plain_text(record["outputs"], f"{where}: outputs", "answer")
    return Document(
        [
            *(image_from_base64(text, f"{where}: image {number}") for number, text in enumerate(images)),
            Text(plain_text(record["instruction"], f"{where}: instruction"), False, "user"),
            *([Text(f"\n{inputs}", False, "user")] if inputs else []),
            Text(answer, True, "assistant", ends_chunk=True),
        ],
        {"task": task},
    )


FORMAT = Format("M3IT: JSON lines with images in base64", whole_files(".jsonl", ".jsonl.gz"), read)
