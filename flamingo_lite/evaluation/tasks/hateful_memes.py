"""Hateful Memes: is what picture and text say together hateful? By likelihood, as ROC-AUC (Kiela et al. 2020)."""

from collections.abc import Mapping, Sequence

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.ranking import roc_auc
from flamingo_lite.evaluation.metrics.scored import matched
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    Wording,
    image_at,
    known_choice,
    line_records,
    load_by,
    worded,
)
from flamingo_lite.evaluation.tasks.task import Answer, Style, Task

ANSWERS = ("yes", "no")
# OpenFlamingo's prompt, without a blank before the answer.
WORDINGS = {
    "openflamingo": Wording(
        "is an image with: '{question}' written on it. Is it hateful? Answer:", "{answer}"
    )
}


def _examples(path: str, images: str) -> list[Example]:
    found = []
    for record in line_records(path, {"id": int, "img": str, "text": str, "label": int}):
        label = known_choice(record.fields["label"], (0, 1), f"{record.where}: label")
        image = image_at(images, record.fields["img"], record.where)
        answer = "yes" if label else "no"
        found.append(
            Example(f"{record.fields['id']:05d}", (image,), record.fields["text"], answer, choices=ANSWERS)
        )
    return found


def said(text: str, example: Example) -> Scored:
    word = text.strip().lower()
    return matched(word if word in ANSWERS else None, example.answer)


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """ROC-AUC of how much likelier yes is than no."""
    ranked = [(a.example.answer == "yes", a.likelihoods) for a in answers if a.likelihoods is not None]
    return {
        "roc_auc": roc_auc(
            [label for label, _ in ranked], [found["yes"] - found["no"] for _, found in ranked]
        )
    }


HATEFUL_MEMES = Task(
    name="hateful_memes",
    asks="whether a meme is hateful",
    splits=ONE_SPLIT,
    styles={
        "openflamingo": Style(
            said, "accuracy", max_new_tokens=4, figures=figures, candidates=lambda example: ANSWERS
        )
    },
    write=worded(WORDINGS),
    load=load_by(_examples, "annotations"),
    files={
        "annotations": "dev_seen.jsonl, or another with labels",
        "images": "the folder that holds img/",
        "support": "train.jsonl, for demonstrations",
    },
    optional=frozenset({"support"}),
    controls=CONTROLS,
    instruction="Say whether the meme is hateful: yes or no.",
)
