"""VQA v2 and OK-VQA: a file of questions, one of annotations, COCO's images (Goyal et al. 2017; Marino et al. 2019).

OK-VQA's authors also stem answers before they compare them, which is not done here: both are judged as VQA v2 is.
"""

from collections.abc import Mapping
from pathlib import Path

from flamingo_lite.data.convert.json_records import value
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.tasks.files import CONTROLS, ONE_SPLIT, image_at, one_split, records, worded
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, given_answers, most_frequent, vqa_styles
from flamingo_lite.evaluation.tasks.task import Items, Task

FILES = {
    "questions": "the JSON of the questions that are asked",
    "annotations": "the JSON of their annotations",
    "images": "the folder of their images",
    "support_questions": "the JSON of the questions that demonstrations come from",
    "support_annotations": "the JSON of their annotations",
    "support_images": "the folder of their images",
}
SUPPORT = tuple(name for name in FILES if name.startswith("support_"))


def load(files: Mapping[str, str]) -> Items:
    """Errors: `FlamingoError` for files that are no questions and annotations of one split."""
    queries = _examples(files["questions"], files["annotations"], files["images"])
    given = [name for name in SUPPORT if name in files]
    if given and len(given) < len(SUPPORT):
        raise FlamingoError(f"of {', '.join(SUPPORT)} only {', '.join(given)} is given; expected all or none")
    return one_split(queries, _examples(*(files[name] for name in SUPPORT)) if given else [])


def _examples(questions: str, annotations: str, images: str) -> list[Example]:
    """Every question with its answers, matched by `question_id`: the two files need not have one order."""
    split, other = (value(Path(path), "data_subtype") for path in (questions, annotations))
    if split != other:
        raise FlamingoError(f"{questions} is of {split}, {annotations} of {other}; expected one split")
    answered = _annotations(annotations)
    found = []
    for record in records(
        questions, {"question_id": int, "image_id": int, "question": str}, name="questions"
    ):
        question_id, image_id = record.fields["question_id"], record.fields["image_id"]
        if question_id not in answered:
            raise FlamingoError(f"{record.where}: question_id {question_id} is not in {annotations}")
        answer, references = answered[question_id]
        image = image_at(images, f"COCO_{split}_{image_id:012d}.jpg", record.where)
        found.append(Example(str(question_id), (image,), record.fields["question"], answer, references))
    return found


def _annotations(path: str) -> dict[int, tuple[str, tuple[str, ...]]]:
    """The answer to show for each question, and those of all annotators."""
    answered: dict[int, tuple[str, tuple[str, ...]]] = {}
    for record in records(path, {"question_id": int, "answers": list}, name="annotations"):
        question_id = record.fields["question_id"]
        if question_id in answered:
            raise FlamingoError(f"{record.where}: question_id {question_id} comes twice; expected it once")
        answers = given_answers(record.fields["answers"], record.where)
        # OK-VQA's annotations name no most frequent answer.
        shown = record.fields.get("multiple_choice_answer", most_frequent(answers))
        answered[question_id] = str(shown), answers
    return answered


def _task(name: str, asks: str, instructed: str) -> Task:
    return Task(
        name=name,
        asks=asks,
        splits=ONE_SPLIT,
        styles=vqa_styles(instructed),
        write=worded(WORDINGS),
        load=load,
        files=FILES,
        optional=frozenset(SUPPORT),
        controls=CONTROLS,
        instruction="Answer the question about the image in a word or two.",
    )


VQA_V2 = _task("vqav2", "an open question about a photograph (VQA v2)", "lmms")
OK_VQA = _task("ok_vqa", "a question that needs knowledge beyond the photograph (OK-VQA)", "lmms_evalai")
