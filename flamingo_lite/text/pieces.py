"""Pieces: what a written document is made of, before it is numbers. Words to tokenize, single tokens, marks of images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a written document. `text`: words to tokenize; `token`: one special token, by name;
    `image`: `count` marks of one image. `loss`: it is trained on.

    `in_context`: words are tokenized as a part of the text around them, not as a text of their own. `is_answer`: words
    that the model writes; what they become never depends on the words before. `ends_turn`: a conversation may be cut
    behind it.
    """

    kind: Literal["text", "token", "image"]
    text: str
    loss: bool = False
    count: int = 1
    in_context: bool = False
    is_answer: bool = False
    ends_turn: bool = False


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces without empty ones, and words side by side that are of no answer as one text to tokenize."""
    held: Piece | None = None
    for piece in pieces:
        if piece.kind == "text" and not piece.text:
            continue
        is_question = piece.kind == "text" and not piece.is_answer
        if held is not None and is_question:
            held = replace(held, text=held.text + piece.text)
            continue
        if held is not None:
            yield held
        held = piece if is_question else None
        if not is_question:
            yield piece
    if held is not None:
        yield held
