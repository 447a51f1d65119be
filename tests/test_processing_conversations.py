"""Conversations through the processor: saved with it, and the same for chat messages as for documents."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from flamingo_lite.data.encoding import changed_template, use_changes, use_image_changes
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from tests.conftest import byte_tokenizer

PICTURES = [Image(PIL.Image.new("RGB", (8, 8), color)) for color in ("red", "blue")]
DOCUMENT = Document(
    [
        Text("Be brief.", False, "system"),
        PICTURES[0],
        Text("What?", False, "user"),
        Text("A ball.", True, "assistant"),
        Text("And", False, "user"),
        PICTURES[1],
    ]
)
CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [{"type": "image", "image": PICTURES[0].pil()}, {"type": "text", "text": "What?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A ball."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And"}, {"type": "image", "image": PICTURES[1].pil()}],
    },
]


OWN = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def made(name: str | None = None) -> VisionLanguageProcessor:
    template = Template() if name is None else Template(conversation=CONVERSATIONS[name])
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OWN if name == "tokenizer" else None
    return VisionLanguageProcessor(tokenizer, ImageTransform(size=(8, 8)), template)


@pytest.mark.parametrize("name", ["v0", "v1", "llama2", "alpaca", "otter", "tokenizer"])
def test_a_chat_and_its_document_are_the_same_prompt(name: str) -> None:
    processor = made(name)
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found = processor.apply_chat_template(CHAT, add_generation_prompt=True, **options)
    expected = processor([DOCUMENT])
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(found["media_index"], expected["media_index"])


def test_a_saved_processor_writes_conversations_as_before(tmp_path: Path) -> None:
    before = made("v1")
    before.save_pretrained(tmp_path)
    after = VisionLanguageProcessor.from_pretrained(tmp_path)
    assert after.template == before.template
    assert after.chat_template == before.chat_template
    assert after.encode(DOCUMENT) == before.encode(DOCUMENT)


def test_a_change_of_the_template_changes_chats_too() -> None:
    processor = made()
    use_changes(processor, {"conversation": "v1"}, "stage.template")
    assert processor.template == made("v1").template
    assert processor.chat_template == made("v1").chat_template


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conversations": "v1"}, "stage.template: 'conversations'; did you mean 'conversation'"),
        ({"conversation": "v2"}, "stage.template: .*'v2'"),
        (
            {"conversation": "llama3"},
            "stage.template: conversation template llama3: the tokenizer has no token",
        ),
        ({"conversation": "tokenizer"}, "stage.template: .*the tokenizer has no chat_template"),
        ({"conversation": {"name": "v1", "sistem": ""}}, "did you mean 'system'"),
        ({"image_tokens": 3}, "stage.template: 'image_tokens'"),
    ],
)
def test_a_change_that_cannot_be_is_one_line_that_names_the_setting(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(FlamingoError, match=expected):
        changed_template(made(), changes, "stage.template")


def test_a_connector_reads_the_questions_and_no_answer() -> None:
    processor = made("v1")
    processor.connector_tokenizer = byte_tokenizer()
    document = Document([*DOCUMENT, Text("?", role="user"), Text("A box.", role="assistant")])
    words = processor.tokenizer.decode(list(processor.encode(document, True).connector_text))
    assert words == "Be brief.What?And?"


def test_a_stage_changes_how_images_are_prepared_and_it_is_saved(tmp_path: Path) -> None:
    processor = made()
    use_image_changes(processor, {"resize_mode": "pad"}, "stage.image_transform")
    assert processor.image_transform == ImageTransform(size=(8, 8), resize_mode="pad")
    processor.save_pretrained(tmp_path)
    assert VisionLanguageProcessor.from_pretrained(tmp_path).image_transform == processor.image_transform


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resize_mod": "pad"}, "stage.image_transform: 'resize_mod'; did you mean 'resize_mode'"),
        ({"size": [16, 16]}, "stage.image_transform: 'size'"),
        ({"resize_mode": "crop"}, "stage.image_transform: image transform: resize_mode 'crop'"),
    ],
)
def test_images_cannot_be_prepared_in_ways_that_there_are_not(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(FlamingoError, match=expected):
        use_image_changes(made(), changes, "stage.image_transform")
