"""Conversation templates: what is written around the words of each role, and what of it is trained on."""

from itertools import groupby

import PIL.Image
import pytest
from transformers import PreTrainedTokenizerFast

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.conversations import CONVERSATIONS, conversation_from
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import add_tokens, encode

PICTURE = Image(PIL.Image.new("RGB", (2, 2)))
OTHER = Image(PIL.Image.new("RGB", (2, 2), "red"))
V1 = CONVERSATIONS["v1"].system
SINGLE = [*dict.fromkeys(token for template in CONVERSATIONS.values() for token in template.tokens)]


def user(text: str) -> Text:
    return Text(text, False, "user")


def assistant(text: str, loss: bool = True) -> Text:
    return Text(text, loss, "assistant", ends_chunk=True)


def system(text: str) -> Text:
    return Text(text, False, "system")


@pytest.fixture(scope="module")
def speaker(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that has all tokens that templates need."""
    add_tokens(tokenizer, SINGLE)
    return tokenizer


def shown(
    document: Document, tokenizer: PreTrainedTokenizerFast, name: str, complete: bool = True, **options: int
) -> str:
    """What was written, what is trained on in brackets; the begin and end token as <s>."""
    template = Template(conversation=CONVERSATIONS[name])
    encoded = encode(document, tokenizer, template, complete, **options)
    parts = groupby(zip(encoded.input_ids, encoded.labels, strict=True), key=lambda pair: pair[1] != -100)
    texts = ((is_trained, tokenizer.decode([i for i, _ in pairs])) for is_trained, pairs in parts)
    return "".join(f"[{text}]" if is_trained else text for is_trained, text in texts).replace(
        "<|endoftext|>", "<s>"
    )


def test_v1_is_what_llava_1_5_writes(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, user("What?"), assistant("A cat."), user("Sure?"), assistant("Yes.")])
    expected = f"<s>{V1} USER: <image>\nWhat? ASSISTANT:[ A cat.<s>]USER: Sure? ASSISTANT:[ Yes.<s>]"
    assert shown(document, speaker, "v1") == expected


def test_plain_is_an_image_its_caption_and_a_newline(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([system("Be brief."), user("Describe it."), PICTURE, assistant("A cat.")])
    assert shown(document, speaker, "plain") == "<s><image>[A cat.\n]"


def test_a_prompt_ends_with_what_stands_before_an_answer(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, user("What?")])
    assert shown(document, speaker, "v1", complete=False) == f"<s>{V1} USER: <image>\nWhat? ASSISTANT:"


def test_documents_without_roles_are_written_as_ever(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, Text("3 ? 5 =", False), Text(" 8", ends_chunk=True)])
    template = Template(conversation=CONVERSATIONS["v1"])
    assert encode(document, speaker, template, True) == encode(document, speaker, Template(), True)


def test_an_unknown_template_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(FlamingoError, match="chatml"):
        conversation_from("chatlm")
