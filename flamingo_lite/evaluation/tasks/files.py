"""What tasks from files share: checked records of JSON, images in a folder, and questions put in few words.

What is wrong with a file ends the run with one line that names the record: a task that left out what it cannot read
would be another task.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import fields
from flamingo_lite.data.convert.json_records import section
from flamingo_lite.data.convert.sources import json_lines, parse_json
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.tasks.task import Items, Segments, listed, segments

Fields = Mapping[str, type | tuple[type, ...]]

CONTROLS = tuple(name for name, condition in CONDITIONS.items() if not condition.words)
"""Of tasks whose images nobody has put into words: all but the text twin."""


@dataclass(frozen=True)
class Record:
    """A record of a file: its key in an object (None in a list), its fields, and what messages call it."""

    where: str
    key: str | None
    fields: dict[str, Any]


def records(path: str, required: Fields, kind: type = list, name: str | None = None) -> Iterator[Record]:
    """The records of a JSON file that is a list or an object (`kind`), or holds it under `name`.

    Fields beyond the `required` ones are let pass. Errors: `FlamingoError` naming the file, or the record and what it
    lacks.
    """
    for number, key, data in section(Path(path), kind, name).items():
        where = f"{path}: record {number}" + (f" ({key})" if key else "")
        yield Record(where, key, fields(parse_json(data, where), where, required, open=True))


def line_records(path: str, required: Fields) -> Iterator[Record]:
    """The records of a file with one JSON object a line. Errors: as `records`."""
    for number, line in json_lines(Path(path)):
        where = f"{path}: line {number + 1}"
        yield Record(where, None, fields(parse_json(line, where), where, required, open=True))


def image_at(folder: str, name: Any, where: str) -> Image:
    """The image that a record names. Its bytes are read when they are needed, and not kept.

    Errors: `FlamingoError` naming the record, for an image that is not there and for a name that leaves the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise FlamingoError(f"{where}: {name!r} is no name of an image")
    try:
        return _image(folder, name)
    except FlamingoError as error:
        raise FlamingoError(f"{where}: {error}") from None


# Questions about one image share it: it is looked for, read and hashed once.
@lru_cache(maxsize=1 << 20)
def _image(folder: str, name: str) -> Image:
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise FlamingoError(f"image {name!r} lies outside {folder}; expected a name in the folder")
    if not path.is_file():
        raise FlamingoError(
            f"image {name!r} is not in {folder}; expected every image of the file: unpack them all, or name the folder "
            "that holds them"
        )
    return Image(path, keeps_data=False)


def known_choice(value: Any, known: Sequence[Any], what: str) -> Any:
    """The value. Errors: `FlamingoError` saying `what` it is, where it is none of those that are `known`."""
    if value not in known:
        raise FlamingoError(f"{what} is {value!r}; expected {', '.join(map(str, known))}")
    return value


@dataclass(frozen=True)
class Wording:
    """How a question and its answer are written behind the images: `{question}` and `{answer}` stand for them.

    `capitalizes`: the question's first letter is made a capital, and all others small.
    """

    asked: str
    answered: str = " {answer}"
    capitalizes: bool = False


def worded(wordings: Mapping[str, Wording]) -> Callable[[Example, str, bool], Segments]:
    """A task's `write`: images, what is asked, and the answer, in the words of the style."""

    def write(example: Example, style: str, is_answered: bool) -> Segments:
        wording = wordings[style]
        question = example.question.capitalize() if wording.capitalizes else example.question
        asked = wording.asked.replace("{question}", question)
        answered = wording.answered.replace("{answer}", example.answer)
        return segments(example, asked, answered if is_answered else None)

    return write


def one_split(queries: Sequence[Example], support: Sequence[Example]) -> Items:
    """The given queries as the split `test`, with demonstrations from `support`."""
    return listed({"test": mixed(queries)}, {"test": support})


def load_by(
    examples: Callable[[str, str], list[Example]], queries: str
) -> Callable[[Mapping[str, str]], Items]:
    """A task's `load`, from `examples(file, folder of its images)`: the queries of the file that is called `queries`, and
    the support of the file `support` if it is given, whose images are in `support_images` or where the queries' are."""

    def load(files: Mapping[str, str]) -> Items:
        support, images = files.get("support"), files["images"]
        return one_split(
            examples(files[queries], images),
            examples(support, files.get("support_images", images)) if support else [],
        )

    return load


def mixed(examples: Sequence[Example]) -> list[Example]:
    """In an order that depends on nothing but ids, in which the first n are a sample of all: files are often sorted,
    by class or by kind, and an evaluation may ask for the first n."""
    return sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())


ONE_SPLIT: Mapping[str, str] = {"test": "the questions of the given files"}
