"""GQA: compositional questions over scene graphs; an object of questions by id (Hudson and Manning 2019)."""

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.tasks.files import CONTROLS, ONE_SPLIT, image_at, load_by, records, worded
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, exact_words, styles_of
from flamingo_lite.evaluation.tasks.task import Task


def _examples(path: str, images: str) -> list[Example]:
    found = []
    for record in records(path, {"imageId": str, "question": str, "answer": str}, kind=dict):
        image = image_at(images, f"{record.fields['imageId']}.jpg", record.where)
        found.append(Example(str(record.key), (image,), record.fields["question"], record.fields["answer"]))
    return found


GQA = Task(
    name="gqa",
    asks="a compositional question about a photograph (GQA)",
    splits=ONE_SPLIT,
    styles=styles_of(dict.fromkeys(WORDINGS, exact_words), "exact_match"),
    write=worded(WORDINGS),
    load=load_by(_examples, "questions"),
    files={
        "questions": "testdev_balanced_questions.json",
        "images": "the folder images",
        "support": "train_balanced_questions.json, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Answer the question about the image in a word or two.",
)
