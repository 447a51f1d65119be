"""Chat messages as text: a jinja template under which every image of a message is an `<image>` mark in its place.

A tokenizer's own template, made for text, is kept: it is given messages whose contents are strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError

CONTENTS_AS_STRINGS = (
    "{%- set plain = namespace(messages=[], content='') -%}\n"
    "{%- for message in messages -%}\n"
    "{%- if message.content is string or message.content is not iterable -%}\n"
    "{%- set plain.messages = plain.messages + [message] -%}\n"
    "{%- else -%}\n"
    "{%- set plain.content = '' -%}\n"
    "{%- for part in message.content -%}\n"
    "{%- set plain.content = plain.content + ('"
    + IMAGE_TOKEN
    + "' if part.type == 'image' else part.text) -%}\n"
    "{%- endfor -%}\n"
    "{%- set plain.messages = plain.messages + [dict(message, content=plain.content)] -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- set messages = plain.messages -%}\n"
)
"""Written before a template, it turns the parts of each message into one string."""

ROLES_AND_LINES = (
    "{%- for message in messages -%}\n"
    "{{- message.role | capitalize + ': ' + message.content -}}\n"
    "{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}\n"
)
"""The default, for language models without a template: a line for each message, `User: ...`, `Assistant: ...`."""

PARTS = ("text", "image", "image_url")


def chat_template_for(tokenizer_template: str | dict[str, str] | None) -> str:
    """The template of chats with images: the tokenizer's own (of several the default) or `ROLES_AND_LINES`."""
    if isinstance(tokenizer_template, dict):
        tokenizer_template = tokenizer_template.get("default")
    return CONTENTS_AS_STRINGS + (tokenizer_template or ROLES_AND_LINES)


def check_messages(chats: Any) -> None:
    """Raise FlamingoError, naming the message, for contents other than texts and images: they would be lost.

    `chats`: a list of messages, or a list of such lists.
    """
    if not chats:
        raise FlamingoError("a chat needs at least one message, got none")
    for i, messages in enumerate(chats if chats and not isinstance(chats[0], Mapping) else [chats]):
        for j, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise FlamingoError(
                    f"chat {i}, message {j} is a {type(message).__name__}; expected {{'role': ..., 'content': ...}}"
                )
            content = message.get("content")
            for part in [] if content is None or isinstance(content, str) else content:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                if kind not in PARTS or (kind == "text" and not isinstance(part.get("text"), str)):
                    raise FlamingoError(
                        f"chat {i}, message {j}: a part of type {kind!r}; expected {{'type': 'text', 'text': ...}} "
                        "or {'type': 'image', 'image': ...}"
                    )
