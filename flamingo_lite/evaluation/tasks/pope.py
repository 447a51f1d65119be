"""POPE: is there such a thing in the photograph? Half of what is asked for is not (Li et al. 2023).

The three files (random, popular, adversarial) differ in which absent things are asked for; give one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.yes_no import pope, pope_figures
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    image_at,
    known_choice,
    line_records,
    load_by,
    worded,
)
from flamingo_lite.evaluation.tasks.short_answers import MAX_NEW_TOKENS, STOPS, WORDINGS
from flamingo_lite.evaluation.tasks.task import Answer, Style, Task

ANSWERS = ("yes", "no")


def _examples(path: str, images: str) -> list[Example]:
    found = []
    for record in line_records(path, {"question_id": int, "image": str, "text": str, "label": str}):
        answer = known_choice(record.fields["label"], ANSWERS, f"{record.where}: label")
        image = image_at(images, record.fields["image"], record.where)
        question_id, question = str(record.fields["question_id"]), record.fields["text"]
        found.append(Example(question_id, (image,), question, answer, choices=ANSWERS))
    return found


def said(text: str, example: Example) -> Scored:
    return pope(text.strip(), example.answer)


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """The five figures; an answer that could not be read counts as the yes that POPE's parser takes it for."""
    read = [(answer.scored.extracted or "yes", answer.example.answer) for answer in answers]
    return asdict(pope_figures(read))


POPE = Task(
    name="pope",
    asks="whether something is in a photograph (POPE)",
    splits=ONE_SPLIT,
    styles={
        name: Style(said, "accuracy", max_new_tokens=MAX_NEW_TOKENS, stop=STOPS[name], figures=figures)
        for name in WORDINGS
    },
    write=worded(WORDINGS),
    load=load_by(_examples, "questions"),
    files={
        "questions": "coco_pope_random.json, coco_pope_popular.json or coco_pope_adversarial.json",
        "images": "the folder of COCO's val2014",
        "support": "questions of the same layout, for demonstrations",
        "support_images": "the folder of their images, if it is another one",
    },
    optional=frozenset({"support", "support_images"}),
    controls=CONTROLS,
    instruction="Answer yes or no.",
)
