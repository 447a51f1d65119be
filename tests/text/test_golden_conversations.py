"""One conversation under every template: its ids are those on record, and those of the references themselves."""

import json
from pathlib import Path

import pytest

from flamingo_lite.document import Document, Text
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import add_tokens, encode
from tests.conftest import byte_tokenizer
from tests.text.reference_chat_templates import CONVERSATION, REFERENCES, TEXTS
from tests.text.tokenizer_kinds import KINDS, SINGLE, tokenizer_of

GOLDEN = Path(__file__).parent / "golden_conversations.json"
"""{template: [[ids that are not trained on], [ids that are], ...]}, every byte an id (see `byte_tokenizer`)."""

DOCUMENT = Document(
    Text(message["content"], message["role"] == "assistant", message["role"], message["role"] == "assistant")
    for message in CONVERSATION
)


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "tokenizer"])
def test_ids_and_what_is_trained_on_are_those_on_record(name: str) -> None:
    tokenizer = byte_tokenizer()
    add_tokens(tokenizer, ["<image>", *SINGLE])
    encoded = encode(DOCUMENT, tokenizer, Template(conversation=CONVERSATIONS[name]), True)
    stretches: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if (len(stretches) % 2 == 0) != (label != -100):
            stretches.append([])
        stretches[-1].append(token)
    assert stretches == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFERENCES)
def test_ids_are_those_of_the_reference_chat_template(name: str, kind: str) -> None:
    tokenizer, template = tokenizer_of(kind), Template(conversation=CONVERSATIONS[name])
    options = {"chat_template": REFERENCES[name], "return_dict": False}
    expected = tokenizer.apply_chat_template(CONVERSATION, **options)
    assert encode(DOCUMENT, tokenizer, template, True).input_ids == expected
    prompt = tokenizer.apply_chat_template(CONVERSATION[:-1], add_generation_prompt=True, **options)
    assert encode(DOCUMENT[:-1], tokenizer, template).input_ids == prompt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS)
def test_ids_are_those_of_the_text_that_the_reference_writes(name: str, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = encode(DOCUMENT, tokenizer, Template(conversation=CONVERSATIONS[name]), True)
    assert encoded.input_ids == tokenizer(TEXTS[name], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_tokenizers_own_template_gives_its_own_ids(name: str, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = REFERENCES[name]
    expected = encode(DOCUMENT, tokenizer, Template(conversation=CONVERSATIONS[name]), True)
    found = encode(DOCUMENT, tokenizer, Template(conversation=CONVERSATIONS["tokenizer"]), True)
    assert found.input_ids == expected.input_ids
    assert found.labels == expected.labels
