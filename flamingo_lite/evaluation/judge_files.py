"""The files of a visual chat bench, as LLaVA-Bench has them: questions, contexts, and answers of a reference and a model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import fields
from flamingo_lite.data.convert.sources import json_lines, parse_json
from flamingo_lite.data.images import suffix
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.results import write_atomically

QUESTIONS, CONTEXT, REFERENCE, IMAGES = "questions.jsonl", "context.jsonl", "reference.jsonl", "images"


@dataclass(frozen=True)
class Case:
    """A question, what its image shows in words, and the two answers that are to be compared."""

    question_id: str
    image: str
    category: str
    question: str
    context: str
    reference: str
    answer: str


def read_cases(questions: Path, context: Path, reference: Path, answers: Path) -> list[Case]:
    """A case for each question, in order.

    The lines of the files: `{"question_id", "image", "category", "text"}`; `{"image", "caption" or "captions",
    "boxes"? or "instances"?}`; and `{"question_id", "text"}` twice. Other fields are left alone. An answer may be empty: the
    judge sees that. Errors: `FlamingoError` for a line of another form, an id that comes twice, or an image or a
    question that has no line of its own.
    """
    contexts = _by(context, "image", _context)
    references, models = (_by(path, "question_id", _text) for path in (reference, answers))
    cases = []
    for where, record in _records(questions):
        _need(record, where, {"question_id": (int, str), "image": str, "category": str, "text": str})
        name, image = str(record["question_id"]), record["image"]
        for path, found, wanted in (
            (context, contexts, image),
            (reference, references, name),
            (answers, models, name),
        ):
            if wanted not in found:
                raise FlamingoError(f"{path}: has no line for {wanted!r}, which {where} asks about")
        cases.append(
            Case(
                name,
                image,
                record["category"],
                record["text"],
                contexts[image],
                references[name],
                models[name],
            )
        )
    if not cases:
        raise FlamingoError(f"{questions}: holds no questions; nothing can be judged")
    if len({case.question_id for case in cases}) < len(cases):
        raise FlamingoError(f"{questions}: has a question_id twice; expected every id once")
    return cases


def write_bench(documents: Iterable[tuple[str, Document]], directory: Path) -> int:
    """The files of a bench from conversations that `data instruct` has made, each about one image: every question with
    its answer as the reference, and the captions and boxes as context. Returns the number of questions.

    Errors: `FlamingoError` naming a document that has no captions, or not one image.
    """
    lines: dict[str, list[dict[str, Any]]] = {QUESTIONS: [], CONTEXT: [], REFERENCE: []}
    shown: set[str] = set()
    for key, document in documents:
        meta = document.meta
        if len(document.images) != 1 or "captions" not in meta or "kind" not in meta:
            raise FlamingoError(f"{key}: is no conversation about one image that data instruct has made")
        image = document.images[0]
        name = f"{image.id[:16]}.{suffix(image)}"
        if name not in shown:
            shown.add(name)
            (directory / IMAGES).mkdir(parents=True, exist_ok=True)
            write_atomically(directory / IMAGES / name, image.data)
            lines[CONTEXT].append({"image": name, "captions": meta["captions"], "boxes": meta["boxes"]})
        texts = document.texts
        for number, (asked, said) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
            about = {"question_id": f"{key}-{number}", "image": name, "category": meta["kind"]}
            lines[QUESTIONS].append({**about, "text": asked.text})
            lines[REFERENCE].append({"question_id": about["question_id"], "text": said.text})
    if not shown:
        raise FlamingoError("the shards hold no documents; nothing can be asked")
    for name, records in lines.items():
        write_atomically(directory / name, "".join(json.dumps(r) + "\n" for r in records).encode())
    return len(lines[QUESTIONS])


def prompts(questions: Path, images: Path) -> list[tuple[str, Document]]:
    """The id of each question, and the document to put to a model: the image, then the question as a user's turn."""
    found = []
    for where, record in _records(questions):
        _need(record, where, {"question_id": (int, str), "image": str, "text": str})
        path = images / record["image"]
        if not path.resolve().is_relative_to(images.resolve()) or not path.is_file():
            raise FlamingoError(f"{where}: image {record['image']!r} is not in {images}")
        asked = Text(record["text"], loss=False, role="user")
        found.append((str(record["question_id"]), Document([Image(path), asked], name=where)))
    return found


def write_answers(asked: Sequence[tuple[str, Document]], said: Sequence[str], path: Path) -> None:
    """A model's answers to the questions of `prompts`, as `read_cases` reads them."""
    records = ({"question_id": name, "text": text} for (name, _), text in zip(asked, said, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def _by(path: Path, key: str, read: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, record in _records(path):
        _need(record, where, {key: (int, str)})
        name = str(record[key])
        if name in found:
            raise FlamingoError(f"{where}: {key} {name!r} comes twice; expected it once")
        found[name] = read(record, where)
    return found


def _text(record: dict[str, Any], where: str) -> str:
    _need(record, where, {"text": str})
    return record["text"].strip()


def _context(record: dict[str, Any], where: str) -> str:
    """Captions and boxes as a teacher is shown them (`data/instruct/described.py`)."""
    captions = record.get("captions", record.get("caption"))
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(each, str) for each in captions):
        raise FlamingoError(f"{where}: expected caption (a text) or captions (a list of texts)")
    lines = ["Captions:", *(f"- {caption.strip()}" for caption in captions)]
    boxes = [(box, "label", "box") for box in record.get("boxes", ())]
    boxes += [(box, "category", "bbox") for box in record.get("instances", ())]
    if boxes:
        lines += ["", "Boxes:"]
    for box, label, corners in boxes:
        _need(box, where, {label: str, corners: list})
        if not all(type(corner) in (int, float) for corner in box[corners]):
            raise FlamingoError(f"{where}: {corners} is {box[corners]}; expected four numbers")
        lines.append(f"{box[label]}: [{', '.join(f'{corner:.3f}' for corner in box[corners])}]")
    return "\n".join(lines)


def _records(path: Path) -> Iterable[tuple[str, Any]]:
    """Errors: `FlamingoError` naming a file that is not there, or a line that is no JSON."""
    if not path.is_file():
        raise FlamingoError(f"{path}: no such file; expected lines of JSON")
    for number, line in json_lines(path):
        where = f"{path}: line {number + 1}"
        try:
            yield where, parse_json(line, where)
        except SampleError as error:
            raise FlamingoError(str(error)) from error


def _need(record: Any, where: str, required: dict[str, Any]) -> None:
    try:
        fields(record, where, required, open=True)
    except SampleError as error:
        raise FlamingoError(str(error)) from error
