"""What a request to the teacher came to: a document under its key, or a reject that keeps the answer and says why."""

from dataclasses import dataclass

from flamingo_lite.document import Document

REASONS = {
    "unanswered": "the teacher did not answer at any try; the same command asks again",
    "garbled": "what came was no chat completion at any try; the same command asks again",
    "refused": "the teacher will not answer this request",
    "cut": "the answer was not finished at max_tokens",
    "format": "the answer is not in the form that was asked for",
    "source": "the answer speaks of captions or boxes, which are no part of what is seen",
    "marks": "the answer holds a token that stands for something else",
    "similar": "the instruction is too much like another (ROUGE-L)",
    "short": "the instruction has too few words",
    "long": "the instruction has too many words",
    "keyword": "the instruction is about what a text model cannot see, hear or make",
    "start": "the instruction begins with a punctuation mark, or in another alphabet",
    "repeated": "the instance comes twice",
    "contradiction": "the instance has the input of another one and another output",
    "echo": "the output is the input",
    "colon": "the input or the output ends in a colon, so what follows is missing",
    "empty": "the output is empty",
    "extra": "the instruction has more instances than are kept",
}
"""Why there is no document, beside the reasons of an input's own records (`errors.py`)."""
TRANSIENT = ("unanswered", "garbled")
"""Reasons that another run may not have."""


@dataclass(frozen=True)
class Rejected:
    """`answer`: the teacher's, whole or the part that is left out; None where there was none."""

    key: str
    reason: str
    message: str
    answer: str | None = None


Outcome = tuple[str, Document] | Rejected
