"""generate and score after conversations: where answers end, what of a text is the answer, and what candidates are."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import flamingo_lite as fl
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build_processor
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.stop import stop_of
from flamingo_lite.text.template import Template


@pytest.fixture
def speaking(model_config: dict[str, Any]) -> Callable[[str], VisionLanguageProcessor]:
    def make(name: str) -> VisionLanguageProcessor:
        processor = build_processor(model_config)
        processor.use_template(Template(conversation=CONVERSATIONS[name]))
        return processor

    return make


@pytest.fixture
def prompt(image_of: Callable[[int], Image]) -> Document:
    return Document([image_of(0), Text("What is it?", False, "user")])


@pytest.mark.parametrize(
    ("name", "token", "words", "gap", "written", "answer"),
    [
        ("v1", "<|endoftext|>", "", " ", " A cat.", "A cat."),
        ("llama2", "<|endoftext|>", " ", " ", " A cat. ", "A cat."),
        ("otter", "<|endofchunk|>", "", " ", " A cat.", "A cat."),
        ("alpaca", "<|endoftext|>", "", "", "A cat.", "A cat."),
        ("v0", None, "###", " ", " A cat.###Human: More", "A cat."),
        ("plain", None, "\n", "", "A cat.\nMore", "A cat."),
    ],
)
def test_the_answer_is_what_the_template_would_have_written_around(
    speaking: Callable[[str], VisionLanguageProcessor], prompt: Document,
    name: str, token: str | None, words: str, gap: str, written: str, answer: str,
) -> None:  # fmt: skip
    processor = speaking(name)
    stop = stop_of(processor.template, processor.tokenizer, [prompt])
    assert (stop.token, stop.words, stop.gap) == (token, words, gap)
    assert stop.answer(written) == answer


def test_a_text_ends_at_words_that_are_no_token(
    model: VisionLanguageModel, speaking: Callable[[str], VisionLanguageProcessor], prompt: Document
) -> None:
    processor = speaking("plain")
    whole = fl.generate(model, processor, [prompt], max_new_tokens=6, stop=None)[0]
    stop = next(character for character in whole[1:] if character.isascii() and character != whole[0])
    processor.use_template(Template(conversation=replace(CONVERSATIONS["plain"], stop=stop)))
    assert fl.generate(model, processor, [prompt], max_new_tokens=6) == [whole.split(stop, 1)[0]]


def test_documents_without_roles_end_as_ever(
    speaking: Callable[[str], VisionLanguageProcessor], image_of: Callable[[int], Image]
) -> None:
    processor = speaking("v1")
    stop = stop_of(processor.template, processor.tokenizer, [Document([image_of(0), "a"])])
    assert (stop.token, stop.gap) == ("<|endofchunk|>", "")


def test_conversations_and_others_are_not_generated_together(
    model: VisionLanguageModel, speaking: Callable[[str], VisionLanguageProcessor], prompt: Document
) -> None:
    with pytest.raises(FlamingoError, match="some documents have roles"):
        fl.generate(model, speaking("v1"), [prompt, Document(["a"])], max_new_tokens=2)


def test_candidates_are_answers_of_the_assistant(
    model: VisionLanguageModel, speaking: Callable[[str], VisionLanguageProcessor], prompt: Document
) -> None:
    processor = speaking("otter")
    candidates = ["yes", Text("no", ends_chunk=True)]
    [found] = fl.score(model, processor, [prompt], candidates)
    start = len(processor.encode(prompt))
    for value, text, ends in zip(found, ("yes", "no"), (False, True), strict=True):
        whole = Document([*prompt, Text(text, role="assistant", ends_chunk=ends)])
        batch = processor([whole])
        written = processor.tokenizer.decode(batch.input_ids[0, start:].tolist())
        assert written == f" {text}" + ("<|endofchunk|>" if ends else "")
        logp = model(**batch).logits[0, :-1].log_softmax(-1)
        expected = logp.gather(1, batch.input_ids[0, 1:, None])[start - 1 :].sum()
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-5)
