"""Our prompts in the words of a processor of transformers: its chat template for turns, marks for images elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.rendering import BETWEEN_EXAMPLES
from flamingo_lite.text.turns import has_roles, turns_of

PROBE = "What is it"


@dataclass(frozen=True)
class WrittenPrompt:
    """A prompt as a processor takes it. `is_chat`: its chat template wrote it, and a turn of the assistant is next."""

    text: str
    images: list[PIL.Image.Image]
    is_chat: bool
    messages: list[dict[str, Any]]


def has_chat_template(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None))


def write(document: Document, processor: Any) -> WrittenPrompt:
    """The prompt. In a row, each answer ends its line: that is where these models learn that it ends.

    Errors: `SampleError` for an image that cannot be read, `FlamingoError` for turns without a chat template, and for a
    processor that does not say what stands for an image.
    """
    images = [image.pil() for image in document.images]
    if has_roles(document):
        messages = _messages(document)
        return WrittenPrompt(_chat(processor, messages, True), images, True, messages)
    mark = image_mark(processor) if images else ""
    parts = [mark if isinstance(segment, Image) else _said(segment) for segment in document]
    return WrittenPrompt("".join(parts), images, False, [])


def answer_text(prompt: WrittenPrompt, candidate: Text, processor: Any) -> str:
    """What a model that means the candidate would write after the prompt, with what ends an answer.

    Errors: `FlamingoError` for a chat template that writes an answer otherwise than its prompt announces.
    """
    if not prompt.is_chat:
        return _said(candidate)
    answer = {"role": "assistant", "content": [{"type": "text", "text": candidate.text}]}
    whole = _chat(processor, [*prompt.messages, answer], False)
    if not whole.startswith(prompt.text):
        raise FlamingoError(
            "the chat template writes an answer otherwise than its prompt announces, so that answers cannot be ranked; "
            "choose a style that generates, or rendering: interleaved for this model"
        )
    return whole[len(prompt.text) :].rstrip()


def image_mark(processor: Any) -> str:
    """What stands for an image in a text: what the chat template writes for one, else the processor's own token.

    Errors: `FlamingoError` for a processor that says neither.
    """
    if has_chat_template(processor):
        words = {"type": "text", "text": PROBE}
        without, with_image = (
            _chat(processor, [{"role": "user", "content": content}], False)
            for content in ([words], [{"type": "image"}, words])
        )
        if mark := _inserted(without, with_image).strip():
            return mark
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token)
    if not isinstance(token, str) or not token:
        raise FlamingoError(
            f"{type(processor).__name__} does not say what stands for an image in a text (image_token); expected a "
            "processor of interleaved images and texts"
        )
    return token


def _said(text: Text) -> str:
    return text.text + (BETWEEN_EXAMPLES if text.ends_chunk else "")


def _messages(document: Document) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image"} if isinstance(segment, Image) else {"type": "text", "text": segment.text}
                for segment in turn.segments
                if isinstance(segment, Image) or segment.text
            ],
        }
        for turn in turns_of(document, "prompt")
    ]


def _chat(processor: Any, messages: Sequence[dict[str, Any]], is_prompt: bool) -> str:
    if not has_chat_template(processor):
        raise FlamingoError(
            f"{type(processor).__name__} has no chat template to show turns by; say rendering: interleaved for this model"
        )
    try:
        return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_prompt)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlamingoError(f"the chat template refuses the prompt ({error})") from error


def _inserted(shorter: str, longer: str) -> str:
    """What `longer` has between what the two begin and end with."""
    start = 0
    while start < len(shorter) and shorter[start] == longer[start]:
        start += 1
    end = 0
    while end < len(shorter) - start and shorter[-1 - end] == longer[-1 - end]:
        end += 1
    return longer[start : len(longer) - end]
