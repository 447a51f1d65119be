"""A chat: its answers are those of generate, word by word; an image is encoded once; a failed turn leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flamingo_lite as fl
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.generation.chat import Pieces
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.stop import Stop
from tests.conftest import byte_tokenizer

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


def test_each_answer_is_what_generate_writes_after_the_whole_conversation(
    joined: Joined, image_of: Callable[[int], Image]
) -> None:
    model, processor = joined
    chat = fl.Chat(model, processor)
    said = [
        chat.ask("one", [image_of(0), image_of(1)], max_new_tokens=6),
        chat.ask("two", max_new_tokens=6),
        chat.ask("three", [image_of(2)], max_new_tokens=6),
    ]
    asked = [
        [image_of(0), image_of(1), Text(" one", loss=False)],
        [Text(" two", loss=False)],
        [image_of(2), Text(" three", loss=False)],
    ]
    document = Document([])
    for question, answer in zip(asked, said, strict=True):
        document = Document([*document, *question])
        assert fl.generate(model, processor, [document], max_new_tokens=6) == [answer]
        document = Document([*document, Text(answer, ends_chunk=True)])
    assert chat.document == document
    assert any(said)


def test_what_is_streamed_is_the_answer(joined: Joined, image_of: Callable[[int], Image]) -> None:
    pieces: list[str] = []
    answer = fl.Chat(*joined).ask("what?", [image_of(0)], max_new_tokens=12, write=pieces.append)
    assert "".join(pieces) == answer != ""


def test_an_image_is_encoded_once_in_all_turns_and_after_a_reset(
    joined: Joined, image_of: Callable[[int], Image]
) -> None:
    model, processor = joined
    encoded: list[int] = []
    handle = model.vision.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    chat = fl.Chat(model, processor)
    for images in ([image_of(0)], [], [image_of(1), image_of(0)], []):
        chat.ask("what?", images, max_new_tokens=2)
    chat.reset()
    assert len(chat.document) == 0
    chat.ask("what?", [image_of(1)], max_new_tokens=2)
    handle.remove()
    assert sum(encoded) == 2


def test_a_conversation_without_images_is_one_too(joined: Joined) -> None:
    model, processor = joined
    answer = fl.Chat(model, processor).ask("what?", max_new_tokens=4)
    assert [answer] == fl.generate(model, processor, [Document(["what?"])], max_new_tokens=4)


@pytest.mark.parametrize(
    ("question", "images", "error"),
    [
        ("an <image> mark", [], SampleError),
        ("what?", [Image(b"no image", name="cat.png")], SampleError),
        ("x" * 300, [], FlamingoError),
    ],
)
def test_a_turn_that_fails_leaves_the_conversation_as_it_was(
    joined: Joined, question: str, images: list[Image], error: type[Exception]
) -> None:
    chat = fl.Chat(*joined)
    chat.ask("what?", max_new_tokens=2)
    before = chat.document
    with pytest.raises(error):
        chat.ask(question, images)
    assert chat.document == before


def test_an_answer_ends_where_the_context_does(joined: Joined) -> None:
    model, processor = joined
    answer = fl.Chat(model, processor).ask("x" * 252, max_new_tokens=50)
    # 252 bytes and the begin token leave three of the 256 positions.
    assert [answer] == fl.generate(model, processor, [Document(["x" * 252])], max_new_tokens=3)


def test_a_conversation_that_leaves_no_room_says_so(joined: Joined) -> None:
    with pytest.raises(FlamingoError, match="300 tokens .* context is 256: it leaves no room"):
        fl.Chat(*joined).ask("x" * 299)


def test_sampling_is_had_by_the_options_of_generate(joined: Joined) -> None:
    torch.manual_seed(0)
    answers = {
        fl.Chat(*joined).ask("what?", max_new_tokens=8, do_sample=True, temperature=5.0) for _ in range(4)
    }
    assert len(answers) > 1


TURNS = [
    name for name, template in CONVERSATIONS.items() if not template.tokens and not template.is_tokenizers
]


@pytest.fixture(params=TURNS)
def tuned(request: pytest.FixtureRequest, joined: Joined) -> Joined:
    """The model under a template of conversations that needs no tokens of its own."""
    model, processor = joined
    template = replace(processor.template, conversation=request.param)
    return model, VisionLanguageProcessor(processor.tokenizer, processor.image_transform, template)


def test_a_tuned_model_is_asked_in_turns(tuned: Joined, image_of: Callable[[int], Image]) -> None:
    model, processor = tuned
    chat, pieces = fl.Chat(model, processor), list[str]()
    first = chat.ask("one", [image_of(0)], max_new_tokens=6)
    question = [image_of(0), Text("one", loss=False, role="user")]
    assert fl.generate(model, processor, [Document(question)], max_new_tokens=6) == [first]
    if not first.strip():
        assert chat.document == Document([])
        return
    said = [*question, Text(first, role="assistant", ends_chunk=True)]
    assert chat.document == Document(said)
    second = chat.ask("two", [image_of(1)], max_new_tokens=6, write=pieces.append)
    asked = Document([*said, image_of(1), Text("two", loss=False, role="user")])
    assert fl.generate(model, processor, [asked], max_new_tokens=6) == [second] == ["".join(pieces)]


def test_the_system_speaks_first_and_again_after_a_reset(joined: Joined) -> None:
    model, processor = joined
    template = replace(processor.template, conversation="v1")
    chat = fl.Chat(model, VisionLanguageProcessor(processor.tokenizer, None, template), system="Be brief.")
    opening = Document([Text("Be brief.", loss=False, role="system")])
    assert chat.document == opening
    chat.ask("one", max_new_tokens=4)
    assert chat.document[:1] == opening
    chat.reset()
    assert chat.document == opening


def test_a_system_message_without_turns_is_refused(joined: Joined) -> None:
    with pytest.raises(FlamingoError, match="not tuned on conversations"):
        fl.Chat(*joined, system="Be brief.")


def streamed(text: str, size: int, ending: Stop) -> str:
    """What is shown of a text that comes in pieces of this size."""
    shown: list[str] = []
    pieces = Pieces(byte_tokenizer(), shown.append, ending)
    chunks = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    for number, chunk in enumerate(chunks, start=1):
        pieces.on_finalized_text(chunk, stream_end=number == len(chunks))
    return "".join(shown)


ENDINGS = [
    Stop(words="###"),
    Stop(token="</s>", words=" "),
    Stop(words="###", gap=" "),
    Stop(gap=" "),
    Stop(),
]


@settings(deadline=None)
@given(st.text(alphabet="ab# \n", max_size=12), st.integers(1, 4), st.sampled_from(ENDINGS))
def test_what_is_shown_is_the_answer_however_the_text_is_cut(text: str, size: int, ending: Stop) -> None:
    assert streamed(text, size, ending) == ending.answer(text)
