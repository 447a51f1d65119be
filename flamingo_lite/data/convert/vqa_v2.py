"""VQA v2: the questions and the annotations of one split, two JSON files, and COCO's images in a folder.

The layout is visualqa.org's. Answers are matched to questions by `question_id`, for the two files need not have one
order. What is answered is `multiple_choice_answer`, the most frequent of the ten; all ten are kept in the meta.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, fields, files
from flamingo_lite.data.convert.json_records import Section, cut, names, read_records, section, value
from flamingo_lite.data.convert.sources import image_in, parse_json
from flamingo_lite.data.convert.values import plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, SampleError


@dataclass(frozen=True)
class VqaOptions(Options):
    prompt: str = option(
        "Question: {question} Short answer:", "how a question is put; the answer follows after a blank"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{question}" not in self.prompt:
            raise FlamingoError(f"prompt is {self.prompt!r}; expected a text that holds {{question}}")


def units(inputs: Sequence[Path], options: VqaOptions) -> list[Unit]:
    """Errors: `FlamingoError` unless the inputs are questions and annotations of the same split."""
    found: dict[str, Unit] = {}
    for unit in files(inputs, ".json"):
        kind = next((name for name in names(unit.path) if name in ("questions", "annotations")), None)
        if kind is None or kind in found:
            why = "holds neither questions nor annotations" if kind is None else f"is a second file of {kind}"
            raise FlamingoError(f"{unit.path}: {why}; expected one file of questions and one of annotations")
        found[kind] = unit
    if missing := {"questions", "annotations"} - found.keys():
        raise FlamingoError(
            f"vqa_v2 needs two files, questions and annotations; there is none of {missing.pop()}"
        )
    questions, annotations = found["questions"].path, found["annotations"].path
    subtypes = value(questions, "data_subtype"), value(annotations, "data_subtype")
    if subtypes[0] != subtypes[1]:
        raise FlamingoError(
            f"{questions} is of {subtypes[0]}, {annotations} of {subtypes[1]}; expected one split"
        )
    unit = Unit(questions, found["questions"].name, beside=(annotations,))
    return cut(unit, section(questions, list, "questions"))


def read(unit: Unit, options: VqaOptions) -> Iterator[Record]:
    annotations = section(unit.beside[0], list, "annotations")
    make = partial(_document, options, value(unit.path, "data_subtype"), annotations)
    return read_records(unit, section(unit.path, list, "questions"), make)


def _document(
    options: VqaOptions, subtype: str, annotations: Section, key: str | None, record: Any, where: str
) -> Document:
    """The image, the question, which is not trained on, and the answer, which is."""
    fields(record, where, {"image_id": int, "question": str, "question_id": int})
    number = _numbers(annotations).get(record["question_id"])
    if number is None:
        raise SampleError(f"{where}: question_id {record['question_id']} has no annotation", "reference")
    annotation = _annotation(annotations, number, annotations.read(number))
    if annotation["image_id"] != record["image_id"]:
        raise SampleError(
            f"{where}: image_id {record['image_id']}, but {annotation['image_id']} in the annotation",
            "reference",
        )
    image = image_in(options.images, f"COCO_{subtype}_{record['image_id']:012d}.jpg", where)
    question = options.prompt.replace("{question}", plain_text(record["question"], f"{where}: question"))
    answer = plain_text(annotation["multiple_choice_answer"], f"{where}: multiple_choice_answer", "answer")
    meta = {
        **{name: record[name] for name in ("question_id", "image_id", "question")},
        **{name: annotation[name] for name in ("question_type", "answer_type")},
        "answers": [given["answer"] for given in annotation["answers"]],
    }
    return Document([image, Text(question, loss=False), Text(f" {answer}", ends_chunk=True)], meta)


def _annotation(annotations: Section, number: int, data: bytes) -> dict[str, Any]:
    where = f"{annotations.path.name}: annotation {number}"
    about = {"question_type": str, "answer_type": str, "multiple_choice_answer": str}
    required = {"question_id": int, "image_id": int, "answers": list, **about}
    annotation = fields(parse_json(data, where), where, required)
    for place, answer in enumerate(annotation["answers"]):
        fields(
            answer, f"{where}: answer {place}", {"answer": str}, {"answer_confidence": str, "answer_id": int}
        )
    return annotation


@lru_cache(maxsize=2)
def _numbers(annotations: Section) -> dict[int, int]:
    """The annotation of each question, by their ids."""
    numbers: dict[int, int] = {}
    for number, _, data in annotations.items():
        where = f"{annotations.path}: annotation {number}"
        question_id = fields(parse_json(data, where), where, {"question_id": int}, open=True)["question_id"]
        if question_id in numbers:
            raise FlamingoError(
                f"{where}: question_id {question_id} comes twice; expected every question once"
            )
        numbers[question_id] = number
    return numbers


FORMAT = Format("VQA v2: questions and annotations, images by --images", units, read, VqaOptions)
