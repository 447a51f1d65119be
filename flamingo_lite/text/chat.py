"""Chat messages as text: a jinja template under which every image of a message is an `<image>` mark in its place.

A tokenizer's own template, made for text, is kept: it is given messages whose contents are strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.conversation import BEGIN, END, NUMBER, ConversationTemplate

CONTENTS_AS_STRINGS = (
    "{%- set plain = namespace(messages=[], content='', before='', number=0) -%}\n"
    "{%- for message in messages -%}\n"
    "{%- if message.content is string or message.content is not iterable -%}\n"
    "{%- set plain.messages = plain.messages + [message] -%}\n"
    "{%- else -%}\n"
    "{%- set plain.content = '' -%}{%- set plain.before = '' -%}\n"
    "{%- for part in message.content -%}\n"
    "{%- if part.type != 'text' -%}\n"
    "{%- set plain.number = plain.number + 1 -%}\n"
    "{%- set image = t.image_label.replace('"
    + NUMBER
    + "', plain.number | string) + '"
    + IMAGE_TOKEN
    + "' -%}\n"
    "{%- set plain.content = plain.content + (t.image_joint if plain.before else '') + image -%}\n"
    "{%- set plain.before = 'image' -%}\n"
    "{%- elif part.text -%}\n"
    "{%- set joint = t.image_joint if plain.before == 'image' else '' -%}\n"
    "{%- set plain.content = plain.content + joint + part.text -%}\n"
    "{%- set plain.before = 'text' -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- set plain.messages = plain.messages + [dict(message, content=plain.content)] -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- set messages = plain.messages -%}\n"
)
"""Written before a template, it turns the parts of each message into one string, images as the fields `t` say."""

ROLES_AND_LINES = (
    "{%- for message in messages -%}\n"
    "{{- message.role | capitalize + ': ' + message.content -}}\n"
    "{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}\n"
)
"""The default, for language models without a template: a line for each message, `User: ...`, `Assistant: ...`."""

PARTS = ("text", "image", "image_url")


BEGIN_AND_END = (
    "{%- set begin = bos_token if bos_token is defined and bos_token else '' -%}\n"
    "{%- set end = eos_token if eos_token is defined and eos_token else '' -%}\n"
)
WRITTEN_AS_DATA = (
    # What a message says: images that open it, its words with marks for all other images, and has it an input?
    "{%- macro say(said, message, is_user) -%}\n"
    "{%- set said.opening = '' -%}{%- set said.words = '' -%}{%- set said.before = '' -%}{%- set said.input = false -%}\n"
    "{%- set content = message.content -%}\n"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content or []) -%}\n"
    "{%- if part.type != 'text' -%}\n"
    "{%- set said.number = said.number + 1 -%}\n"
    "{%- set image = t.image_label.replace('"
    + NUMBER
    + "', said.number | string) + '"
    + IMAGE_TOKEN
    + "' -%}\n"
    "{%- endif -%}\n"
    "{%- if part.type != 'text' and is_user and t.images_first and said.before == '' -%}\n"
    "{%- set said.opening = said.opening + image -%}\n"
    "{%- elif part.type != 'text' -%}\n"
    "{%- set said.words = said.words + (t.image_joint if said.before else '') + image -%}\n"
    "{%- set said.before = 'image' -%}\n"
    "{%- elif part.text and (t.writes_questions or not is_user) -%}\n"
    "{%- set joint = t.image_joint if said.before == 'image' else '' -%}\n"
    "{%- set is_input = is_user and said.before == 'text' and not said.input and t.input_before is not none -%}\n"
    "{%- set text = t.input_before + part.text.strip() if is_input else part.text -%}\n"
    "{%- set said.words = said.words + joint + text -%}\n"
    "{%- set said.before = 'text' -%}{%- set said.input = said.input or is_input -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if t.strips and (message.role != 'system' or not t.system_in_user) -%}\n"
    "{%- set said.words = said.words.strip() -%}\n"
    "{%- endif -%}\n"
    "{%- endmacro -%}\n"
    "{%- set said = namespace(opening='', words='', before='', input=false, number=0) -%}\n"
    "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}\n"
    "{%- if messages[0].role == 'system' -%}\n"
    "{{- say(said, messages[0], false) -}}{%- set system = said.words -%}\n"
    "{%- else -%}\n"
    "{{- say(said, turns[0], true) -}}{%- set said.number = 0 -%}\n"
    "{%- set system = t.system_with_input if said.input and t.system_with_input is not none else t.system -%}\n"
    "{%- endif -%}\n"
    "{%- set system = t.system_before + system + t.system_after if system and t.writes_questions else '' -%}\n"
    "{{- t.start -}}{{- system if not t.system_in_user else '' -}}\n"
    "{%- for message in turns -%}\n"
    "{%- if message.role not in ['user', 'assistant'] -%}\n"
    "{{- raise_exception('a message of the role ' + message.role + '; expected user and assistant') -}}\n"
    "{%- endif -%}\n"
    "{{- say(said, message, message.role == 'user') -}}\n"
    "{%- if message.role == 'user' -%}\n"
    "{{- said.opening + t.user_before -}}\n"
    "{{- (system if t.system_in_user and loop.first else '') + said.words + t.user_after -}}\n"
    "{%- else -%}\n"
    "{{- t.assistant_before + said.words + t.stop + t.assistant_after -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- t.prompt_end -}}{%- endif -%}\n"
)
"""Writes messages as the fields `t` of a `ConversationTemplate` say."""


def chat_template_of(conversation: ConversationTemplate) -> str:
    """The jinja template that writes messages as the conversation template does."""
    written = {**asdict(conversation), "prompt_end": conversation.assistant_before.removesuffix(" ")}
    entries = ", ".join(
        f"{name!r}: {_in_jinja(value)}" for name, value in written.items() if name != "tokens"
    )
    return BEGIN_AND_END + "{%- set t = {" + entries + "} -%}\n" + WRITTEN_AS_DATA


def _in_jinja(value: Any) -> str:
    """A value as an expression, the begin and end tokens in it as what they are to jinja."""
    if not isinstance(value, str):
        return str(value).lower()
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", value)
    names = {BEGIN: "begin", END: "end"}
    return (
        " + ".join(names.get(part) or json.dumps(part, ensure_ascii=False) for part in parts if part) or "''"
    )


def chat_template_for(
    tokenizer_template: str | dict[str, str] | None, image_joint: str = "", image_label: str = ""
) -> str:
    """The template of chats with images: the tokenizer's own (of several the default) or `ROLES_AND_LINES`.

    `image_joint`, `image_label`: as those of a `ConversationTemplate`.
    """
    if isinstance(tokenizer_template, dict):
        tokenizer_template = tokenizer_template.get("default")
    fields = f"'image_joint': {_in_jinja(image_joint)}, 'image_label': {_in_jinja(image_label)}"
    return (
        BEGIN_AND_END
        + "{%- set t = {"
        + fields
        + "} -%}\n"
        + CONTENTS_AS_STRINGS
        + (tokenizer_template or ROLES_AND_LINES)
    )


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
