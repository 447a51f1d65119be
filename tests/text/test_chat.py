"""Chat templates: images become marks in their places, and a tokenizer's own template keeps its words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.chat import chat_template_for, check_messages

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
