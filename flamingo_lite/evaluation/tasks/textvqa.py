"""TextVQA: questions about text in photographs; a JSON with ten answers to each (Singh et al. 2019)."""

from dataclasses import replace

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.tasks.files import CONTROLS, ONE_SPLIT, image_at, load_by, records, worded
from flamingo_lite.evaluation.tasks.short_answers import WORDINGS, given_answers, most_frequent, vqa_styles
from flamingo_lite.evaluation.tasks.task import Task


def _examples(path: str, images: str) -> list[Example]:
    found = []
    required = {"question_id": int, "image_id": str, "question": str}
    for record in records(path, required, name="data"):
        if "answers" not in record.fields:
            raise FlamingoError(
                f"{record.where}: has no answers; expected train or val, whose answers are public"
            )
        answers = given_answers(record.fields["answers"], record.where)
        image = image_at(images, f"{record.fields['image_id']}.jpg", record.where)
        key, question = str(record.fields["question_id"]), record.fields["question"]
        found.append(Example(key, (image,), question, most_frequent(answers), answers))
    return found


TEXT_VQA = Task(
    name="textvqa",
    asks="a question about the text in a photograph (TextVQA)",
    splits=ONE_SPLIT,
    styles=vqa_styles("lmms_evalai"),
    write=worded({**WORDINGS, "instruction": replace(WORDINGS["instruction"], capitalizes=True)}),
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "TextVQA_0.5.1_val.json",
        "images": "the folder train_images, which holds those of val too",
        "support": "TextVQA_0.5.1_train.json, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Answer the question about the image in a word or two.",
)
