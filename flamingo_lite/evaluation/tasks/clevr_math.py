"""CLEVR-Math: what is added to a drawn scene or taken from it, and how many things are then left (Lindström 2022)."""

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored, extract_number
from flamingo_lite.evaluation.metrics.scored import matched
from flamingo_lite.evaluation.tasks.files import CONTROLS, ONE_SPLIT, image_at, load_by, records, worded
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, styles_of
from flamingo_lite.evaluation.tasks.task import Task


def _examples(path: str, images: str) -> list[Example]:
    """A question has no id of its own: its place in the file of its split is that."""
    required = {"image_filename": str, "split": str, "question": str, "answer": int}
    found = []
    for number, record in enumerate(records(path, required, name="questions")):
        split = record.fields["split"]
        image = image_at(images, f"{split}/{record.fields['image_filename']}", record.where)
        answer = str(record.fields["answer"])
        facts = {"template": record.fields.get("template_filename")}
        found.append(Example(f"{split}/{number}", (image,), record.fields["question"], answer, facts=facts))
    return found


def number(text: str, example: Example) -> Scored:
    return matched(extract_number(text), example.answer)


CLEVR_MATH = Task(
    name="clevr_math",
    asks="how many things are left of a scene after some came or went (CLEVR-Math)",
    splits=ONE_SPLIT,
    styles=styles_of(dict.fromkeys(WORDINGS, number), "exact_match"),
    write=worded(WORDINGS),
    load=load_by(_examples, "questions"),
    files={
        "questions": "clevr-math-test.json",
        "images": "the folder that holds its images as SPLIT/NAME, such as CLEVR_v1.0/images",
        "support": "clevr-math-train.json, for demonstrations",
        "support_images": "the folder of their images, if it is another one",
    },
    optional=frozenset({"support", "support_images"}),
    controls=CONTROLS,
    instruction="Count what is left in the scene, and answer with a number.",
)
