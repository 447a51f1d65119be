"""VizWiz: questions that blind people asked about their photographs, many unanswerable (Gurari et al. 2018)."""

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    Wording,
    image_at,
    load_by,
    records,
    worded,
)
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, given_answers, most_frequent, vqa_styles
from flamingo_lite.evaluation.tasks.task import Task

INSTRUCTED = Wording(
    "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase.",
    capitalizes=True,
)


def _examples(path: str, images: str) -> list[Example]:
    """An image has one question, and its name is the question's id."""
    found = []
    for record in records(path, {"image": str, "question": str}):
        if "answers" not in record.fields:
            raise FlamingoError(
                f"{record.where}: has no answers; expected train or val, whose answers are public"
            )
        answers = given_answers(record.fields["answers"], record.where)
        name = record.fields["image"]
        question = record.fields["question"]
        image = image_at(images, name, record.where)
        found.append(Example(name, (image,), question, most_frequent(answers), answers))
    return found


VIZWIZ = Task(
    name="vizwiz",
    asks="a blind person's question about their photograph, or that it cannot be answered (VizWiz)",
    splits=ONE_SPLIT,
    styles=vqa_styles("lmms_evalai"),
    write=worded({**WORDINGS, "instruction": INSTRUCTED}),
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "val.json",
        "images": "the folder of its images",
        "support": "train.json, for demonstrations",
        "support_images": "the folder of the images of train",
    },
    optional=frozenset({"support", "support_images"}),
    controls=CONTROLS,
    instruction="Answer the question about the image in a word or two, or with 'unanswerable'.",
)
