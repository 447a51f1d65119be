"""How an evaluation's prompt is shown to the model: as it is, as a conversation of turns, or as one turn of a user.

A prompt has no roles; which of these a model is used to is a property of the model, so the same prompt (by its
`prompt_sha`) is asked of all and shown to each in its own way.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError

Segment = Text | Image

BETWEEN_EXAMPLES = "\n"
"""Stands where an answer ended its chunk, in one turn: within a turn there is no token for that."""


def interleaved(document: Document) -> Document:
    """The prompt as it is: images, questions and answers in a row."""
    return document


def turns(document: Document) -> Document:
    """A turn of the user for each question, one of the assistant for each answer; the query's question is the last.

    An answer is a text that is trained on and ends its chunk. A question of images alone is followed by an empty text,
    which says whose turn it is. Errors: `FlamingoError` for a prompt that has roles already.
    """
    _refuse_roles(document)
    shown: list[Segment] = []
    question: list[Segment] = []
    for segment in document:
        if isinstance(segment, Text) and _is_answer(segment):
            shown += [*_said_by("user", question), Text(segment.text.strip(), role="assistant")]
            question = []
        else:
            question.append(segment)
    return Document([*shown, *(_said_by("user", question) if question else [])], document.meta, document.name)


def one_turn(document: Document) -> Document:
    """Everything in one turn of the user, an example a line; what the assistant says is the query's answer.

    Errors: as `turns`.
    """
    _refuse_roles(document)
    segments = [
        replace(segment, text=segment.text + BETWEEN_EXAMPLES)
        if isinstance(segment, Text) and _is_answer(segment)
        else segment
        for segment in document
    ]
    return Document(_said_by("user", segments), document.meta, document.name)


RENDERINGS: dict[str, Callable[[Document], Document]] = {
    "interleaved": interleaved,
    "turns": turns,
    "one_turn": one_turn,
}


def rendered_answer(rendering: str, answer: Text) -> Text:
    """An answer as it continues a prompt that is shown so."""
    return answer if rendering == "interleaved" else Text(answer.text.strip(), role="assistant")


def _is_answer(text: Text) -> bool:
    return text.loss and text.ends_chunk


def _said_by(role: str, segments: Iterable[Segment]) -> list[Segment]:
    """One turn: neighbouring texts joined, without spaces at its ends, nothing trained on; at least one text."""
    said: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and said and isinstance(said[-1], Text):
            said[-1] = replace(said[-1], text=said[-1].text + segment.text)
        elif isinstance(segment, Text):
            said.append(Text(segment.text, loss=False, role=role))
        else:
            said.append(segment)
    if said and isinstance(said[0], Text):
        said[0] = replace(said[0], text=said[0].text.lstrip())
    if said and isinstance(said[-1], Text):
        said[-1] = replace(said[-1], text=said[-1].text.rstrip())
    if not any(isinstance(segment, Text) for segment in said):
        said.append(Text("", loss=False, role=role))
    return said


def _refuse_roles(document: Document) -> None:
    if said := next((text for text in document.texts if text.role is not None), None):
        raise FlamingoError(
            f"a prompt to be shown as turns has a text of role {said.role!r} already; expected the prompt of a task, "
            "without roles (rendering=interleaved shows it as it is)"
        )
