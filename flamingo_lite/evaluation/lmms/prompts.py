"""What lmms-eval asks, as our documents: records of our own tasks as they were built, all others by their words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.lmms.samples import SAMPLE, document_of, sample_of
from flamingo_lite.processing import interleave

NUMBERED_MARK = re.compile(r"<image[ _]?\d+>")
"""How some tasks say where an image stands (MMMU's)."""


def is_ours(doc: Mapping[str, Any]) -> bool:
    return SAMPLE in doc


def our_document(doc: Mapping[str, Any], visuals: Sequence[Any]) -> Document:
    """The prompt of a record that `export.write_tasks` wrote."""
    return document_of(sample_of(doc), pictures(visuals))


def marked_document(context: str, visuals: Sequence[Any]) -> Document:
    """A text in which `<image>` marks say where images stand; without marks they come before it.

    Errors: `FlamingoError` for another number of images than of marks, and for a visual that is no picture.
    """
    images = pictures(visuals)
    text = NUMBERED_MARK.sub(IMAGE_TOKEN, context)
    if IMAGE_TOKEN not in text:
        return Document([*images, Text(text, loss=False)] if text else images)
    (document,) = interleave(text, [images])
    return Document(
        [Text(s.text, loss=False) if isinstance(s, Text) else s for s in document], name=document.name
    )


def said_document(messages: Sequence[Mapping[str, Any]]) -> Document:
    """Messages as a conversation. Errors: `FlamingoError` for contents other than texts and images."""
    segments: list[Text | Image] = []
    for message in messages:
        role = message["role"]
        for part in message["content"]:
            if part["type"] == "text":
                segments.append(Text(part["text"], loss=False, role=role, ends_chunk=role == "assistant"))
            else:
                segments += pictures([part.get("url") if part["type"] == "image" else part])
    return Document(segments)


def pictures(visuals: Sequence[Any]) -> list[Image]:
    """Errors: `FlamingoError` for a visual that is none."""
    for visual in visuals:
        if not isinstance(visual, PIL.Image.Image):
            raise FlamingoError(
                f"lmms-eval asks about a {type(visual).__name__}; expected pictures: these models read no video or sound"
            )
    return [Image(visual) for visual in visuals]


def without_roles(document: Document) -> Document:
    """A conversation as an interleaved prompt: answers end their chunks, and are set off by a space."""
    return Document(
        [
            segment
            if isinstance(segment, Image) or segment.role is None
            else Text(
                f" {segment.text}" if segment.role == "assistant" else segment.text,
                loss=segment.role == "assistant",
                ends_chunk=segment.ends_chunk,
            )
            for segment in document
        ]
    )
