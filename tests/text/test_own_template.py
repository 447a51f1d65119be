"""A tokenizer's own chat template: where it can be trained with, and where it cannot."""

import re
from collections.abc import Iterator
from dataclasses import replace

import PIL.Image
import pytest
from transformers import PreTrainedTokenizerFast

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.stop import stop_of
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import encode
from flamingo_lite.text.writing import resolved
from tests.text.reference_chat_templates import CHATML, GEMMA, LLAMA_2
from tests.text.tokenizer_kinds import tokenizer_of

OWN = Template(conversation=CONVERSATIONS["tokenizer"])
PICTURE = Image(PIL.Image.new("RGB", (2, 2)))
TURNS = [
    PICTURE,
    Text("a", False, "user"),
    Text("b", True, "assistant"),
    Text("c", False, "user"),
    Text("d", True, "assistant"),
]

REASONING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen3's habit: the thoughts of an answer go once a turn follows it."""
SHOUTING = CHATML.replace("message['content']", "message['content'] | upper")


@pytest.fixture
def speaker() -> Iterator[PreTrainedTokenizerFast]:
    tokenizer = tokenizer_of("byte_level_bpe")
    yield tokenizer
    tokenizer.chat_template = None


def test_images_stand_where_they_stand(speaker: PreTrainedTokenizerFast) -> None:
    speaker.chat_template = CHATML
    encoded = encode(Document(TURNS), speaker, OWN, True)
    assert speaker.decode(encoded.input_ids).startswith("<|im_start|>user\n<image>\na<|im_end|>")
    assert encoded == encode(Document(TURNS), speaker, Template(conversation=CONVERSATIONS["chatml"]), True)


def test_its_images_have_their_labels(speaker: PreTrainedTokenizerFast) -> None:
    speaker.chat_template = CHATML
    own, written = (
        Template(conversation=replace(CONVERSATIONS[name], image_label="Picture {number}: "))
        for name in ("tokenizer", "chatml")
    )
    encoded = encode(Document(TURNS), speaker, own, True)
    assert speaker.decode(encoded.input_ids).startswith("<|im_start|>user\nPicture 1: <image>\na<|im_end|>")
    assert encoded == encode(Document(TURNS), speaker, written, True)


def test_what_a_user_says_is_never_a_token(speaker: PreTrainedTokenizerFast) -> None:
    speaker.chat_template = CHATML
    said = Document([Text('f"{begin} to {end}"', False, "user"), Text("a format string", True, "assistant")])
    encoded = encode(said, speaker, OWN, True)
    assert 'f"{begin} to {end}"' in speaker.decode(encoded.input_ids)
    assert encoded == encode(said, speaker, Template(conversation=CONVERSATIONS["chatml"]), True)


@pytest.mark.parametrize("template", [REASONING, SHOUTING])
def test_a_template_that_cannot_be_trained_with_is_refused_in_one_line(
    speaker: PreTrainedTokenizerFast, template: str
) -> None:
    speaker.chat_template = template
    with pytest.raises(FlamingoError, match="chat template .*; choose another template"):
        resolved(CONVERSATIONS["tokenizer"], speaker)
    with pytest.raises(SampleError, match="page 3: the tokenizer's chat template"):
        encode(Document(TURNS), speaker, OWN, True, name="page 3")


def test_a_tokenizer_without_a_template_is_refused(speaker: PreTrainedTokenizerFast) -> None:
    with pytest.raises(FlamingoError, match="the tokenizer has no chat_template"):
        resolved(CONVERSATIONS["tokenizer"], speaker)


def test_a_conversation_that_the_template_refuses_is_one_bad_sample(speaker: PreTrainedTokenizerFast) -> None:
    speaker.chat_template = (
        "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}" + CHATML
    )
    with pytest.raises(SampleError, match="page 3: .* refuses it: System role not supported") as caught:
        encode(Document([Text("s", False, "system"), *TURNS]), speaker, OWN, True, name="page 3")
    assert caught.value.reason == "turns"


def test_words_that_would_end_a_turn_are_one_bad_sample(speaker: PreTrainedTokenizerFast) -> None:
    speaker.chat_template = CHATML
    with pytest.raises(SampleError, match=re.escape("page 3: turn 1 holds <|im_end|>, a token")) as caught:
        encode(
            Document([*TURNS[:2], Text("<|im_end|>", True, "assistant")]), speaker, OWN, True, name="page 3"
        )
    assert caught.value.reason == "marks"


@pytest.mark.parametrize(
    ("template", "token", "words", "gap"),
    [(CHATML, "<|im_end|>", "", ""), (GEMMA, "<end_of_turn>", "", ""), (LLAMA_2, "</s>", " ", " ")],
)
def test_generation_ends_where_its_answers_end(
    speaker: PreTrainedTokenizerFast, template: str, token: str, words: str, gap: str
) -> None:
    speaker.chat_template = template
    stop = stop_of(OWN, speaker, [Document(TURNS[:2])])
    assert (stop.token, stop.words, stop.gap) == (token, words, gap)
