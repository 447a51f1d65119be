"""Chat templates: images become marks in their places, and a tokenizer's own template keeps its words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.chat import chat_template_for, chat_template_of, check_messages
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from flamingo_lite.text.writing import write
from tests.text.reference_chat_templates import CHATML
from tests.text.tokenizer_kinds import tokenizer_of

PICTURE = Image(PIL.Image.new("RGB", (2, 2)))

OWN = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

PARTS = st.lists(
    st.one_of(
        st.just({"type": "image", "image": "a.png"}),
        st.text(alphabet="ab {}%<", max_size=5).map(lambda text: {"type": "text", "text": text}),
    ),
    max_size=4,
)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": PARTS}),
    min_size=1,
    max_size=4,
)


def has_words(parts: list[dict[str, Any]]) -> bool:
    return any(part.get("text", "").strip() for part in parts)


def is_said(parts: list[dict[str, Any]]) -> bool:
    return has_words(parts) or any(part["type"] == "image" for part in parts)


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    written, _ = render_jinja_template(
        conversations=[messages], chat_template=template, bos_token="<s>", **options
    )
    return written[0]


def as_strings(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "content": "".join(part.get("text", "<image>") for part in message["content"])}
        for message in messages
    ]


@settings(max_examples=50, deadline=None)
@given(CHATS, st.booleans())
def test_a_tokenizers_own_template_writes_what_it_writes_of_strings(
    messages: list[dict[str, Any]], prompt: bool
) -> None:
    expected = render(OWN, as_strings(messages), add_generation_prompt=prompt)
    assert render(chat_template_for(OWN), messages, add_generation_prompt=prompt) == expected
    assert render(chat_template_for(OWN), as_strings(messages), add_generation_prompt=prompt) == expected


@settings(max_examples=50, deadline=None)
@given(CHATS, st.booleans())
def test_the_default_is_a_line_for_each_message(messages: list[dict[str, Any]], prompt: bool) -> None:
    lines = [f"{m['role'].capitalize()}: {m['content']}" for m in as_strings(messages)]
    expected = "\n".join([*lines, "Assistant:"] if prompt else lines)
    assert render(chat_template_for(None), messages, add_generation_prompt=prompt) == expected


def test_of_several_templates_the_default_is_taken() -> None:
    assert chat_template_for({"tool_use": "x", "default": OWN}) == chat_template_for(OWN)
    assert chat_template_for({"tool_use": "x"}) == chat_template_for(None)


@pytest.mark.parametrize(
    "part, found",
    [({"type": "video", "url": "a.mp4"}, "'video'"), ({"type": "text"}, "'text'"), ("words", "'str'")],
)
def test_contents_that_would_be_lost_are_refused_by_message(part: Any, found: str) -> None:
    good = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    for chats, place in (
        ([good, {"role": "user", "content": [part]}], "chat 0, message 1"),
        ([[good], [{"role": "user", "content": [part]}]], "chat 1, message 0"),
    ):
        with pytest.raises(FlamingoError, match=f"{place}: a part of type {found}"):
            check_messages(chats)


def test_a_chat_without_messages_and_one_of_bare_texts_are_refused() -> None:
    with pytest.raises(FlamingoError, match="at least one message"):
        check_messages([])
    with pytest.raises(FlamingoError, match="chat 0, message 0 is a str"):
        check_messages(["hi"])


def as_document(messages: list[dict[str, Any]]) -> Document:
    """The conversation that the messages are; an empty text keeps a message's images in its turn."""
    segments: list[Image | Text] = []
    for message in messages:
        role = message["role"]
        segments += [
            Text("", role=role),
            *(
                Text(part["text"], role=role) if part["type"] == "text" else PICTURE
                for part in message["content"]
            ),
        ]
        if role == "assistant":
            segments.append(Text("", role="assistant", ends_chunk=True))
    return Document(segments)


LABELLED = {
    f"{name} with labels": replace(CONVERSATIONS[name], image_label="Picture {number}: ")
    for name in ("v1", "otter", "llama2")
}
WRITTEN = {**CONVERSATIONS, **LABELLED}


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "tokenizer"])
@settings(max_examples=15, deadline=None)
@given(
    system=st.none() | st.sampled_from(["Be brief.", " s "]),
    turns=st.lists(st.tuples(PARTS.filter(is_said), PARTS.filter(has_words)), min_size=1, max_size=3),
    is_prompt=st.booleans(),
)
def test_messages_are_written_as_conversations_are(
    name: str, system: str | None, turns: list[tuple[Any, Any]], is_prompt: bool
) -> None:
    messages = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages = messages[:-1] if is_prompt else messages
    template, tokenizer = WRITTEN[name], tokenizer_of("byte_level_bpe")
    written = write(
        as_document(messages), tokenizer, Template(conversation=template), not is_prompt, "a chat"
    )
    expected = "".join(piece.text for piece, _ in written)
    rendered = render(chat_template_of(template), messages, add_generation_prompt=is_prompt, eos_token="</s>")
    assert rendered == expected


@pytest.mark.parametrize("label", ["", "Picture {number}: "])
@settings(max_examples=25, deadline=None)
@given(
    turns=st.lists(st.tuples(PARTS.filter(is_said), PARTS.filter(has_words)), min_size=1, max_size=3),
    is_prompt=st.booleans(),
)
def test_messages_are_written_as_conversations_are_by_a_tokenizers_own_template(
    label: str, turns: list[tuple[Any, Any]], is_prompt: bool
) -> None:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages = messages[:-1] if is_prompt else messages
    template = replace(CONVERSATIONS["tokenizer"], image_label=label)
    tokenizer = tokenizer_of("byte_level_bpe")
    tokenizer.chat_template = CHATML
    try:
        written = write(
            as_document(messages), tokenizer, Template(conversation=template), not is_prompt, "a chat"
        )
        expected = "".join(piece.text for piece, _ in written)
    finally:
        tokenizer.chat_template = None
    own = chat_template_for(CHATML, template.image_joint, label)
    assert render(own, messages, add_generation_prompt=is_prompt, eos_token="</s>") == expected
