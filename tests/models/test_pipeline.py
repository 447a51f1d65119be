"""transformers' image-text-to-text pipeline on a saved directory: what it writes is what generate writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, pipeline

import flamingo_lite as fl
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]
ImageOf = Callable[[int], Image]
NEW = 4


@pytest.fixture
def ask(joined: Joined, tmp_path: Path) -> Any:
    """The pipeline of a saved directory."""
    return pipeline("image-text-to-text", model=str(fl.save(*joined, tmp_path / "model")))


@pytest.fixture
def write(joined: Joined) -> Callable[[Document], str]:
    """What the model writes after a document."""
    model, processor = joined

    def of(document: Document) -> str:
        prompt = processor([document])
        out = model.generate(**prompt, max_new_tokens=NEW, do_sample=False)
        return processor.tokenizer.decode(out[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)

    return of


@pytest.fixture
def chat(image_of: ImageOf) -> list[dict[str, Any]]:
    """Three images, two of them in one turn, and a question without."""

    def image(number: int) -> dict[str, Any]:
        return {"type": "image", "image": image_of(number).pil()}

    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    return [
        {"role": "user", "content": [image(0), text("and"), image(1), text("differ?")]},
        {"role": "assistant", "content": [text("yes")]},
        {"role": "user", "content": [text("and now"), image(2)]},
        {"role": "assistant", "content": [text("no")]},
        {"role": "user", "content": [text("why?")]},
    ]


@pytest.fixture
def written_chat(image_of: ImageOf) -> Document:
    return Document(
        ["User: ", image_of(0), "and", image_of(1), "differ?\nAssistant: yes\nUser: and now", image_of(2),
         "\nAssistant: no\nUser: why?\nAssistant:"]
    )  # fmt: skip


def answers(records: list[Any]) -> list[str]:
    return [record["generated_text"] for record in records]


def test_a_chat_with_images_in_its_turns(
    ask: Any, write: Callable[[Document], str], chat: list[dict[str, Any]], written_chat: Document
) -> None:
    found = ask(text=chat, max_new_tokens=NEW, return_full_text=False)
    assert answers(found) == [write(written_chat)]
    whole = ask(text=chat, max_new_tokens=NEW)[0]["generated_text"]
    assert whole[-1] == {"role": "assistant", "content": write(written_chat)} and len(whole) == 6


def test_an_answer_that_was_begun_is_continued(
    ask: Any, write: Callable[[Document], str], chat: list[dict[str, Any]], image_of: ImageOf
) -> None:
    found = ask(text=chat[:2], max_new_tokens=NEW, return_full_text=False)
    begun = Document(["User: ", image_of(0), "and", image_of(1), "differ?\nAssistant: yes"])
    assert answers(found) == [write(begun)]


def test_a_chat_of_text_alone(ask: Any, write: Callable[[Document], str]) -> None:
    found = ask(text=[{"role": "user", "content": "hello"}], max_new_tokens=NEW, return_full_text=False)
    assert answers(found) == [write(Document(["User: hello\nAssistant:"]))]


def test_text_with_marks_and_images(ask: Any, write: Callable[[Document], str], image_of: ImageOf) -> None:
    images = [image_of(0).pil(), image_of(1).pil()]
    found = ask(images=images, text="<image>a<image>b", max_new_tokens=NEW, return_full_text=False)
    assert answers(found) == [write(Document([image_of(0), "a", image_of(1), "b"]))]
    both = ask(images=[[images[0]], [images[1]]], text=["<image>a", "<image>longer"], max_new_tokens=NEW,
               return_full_text=False)  # fmt: skip
    assert answers(both) == [write(Document([image_of(i), t])) for i, t in ((0, "a"), (1, "longer"))]
    assert answers(ask(text="only text", max_new_tokens=NEW, return_full_text=False)) == [
        write(Document(["only text"]))
    ]


def test_batches_with_images_in_one_row_at_most_are_right(
    ask: Any, write: Callable[[Document], str], chat: list[dict[str, Any]], written_chat: Document
) -> None:
    text = [{"role": "user", "content": "hi"}], [{"role": "user", "content": "rather longer"}]
    written = [Document([f"User: {words}\nAssistant:"]) for words in ("hi", "rather longer")]
    for chats, documents in ((text, written), ([text[0], chat], [written[0], written_chat])):
        found = ask(text=list(chats), max_new_tokens=NEW, return_full_text=False, batch_size=2)
        assert [answers(records)[0] for records in found] == [write(d) for d in documents]


def test_batches_with_images_in_several_rows_are_refused(ask: Any, chat: list[dict[str, Any]]) -> None:
    with pytest.raises(FlamingoError, match="media_index runs from .* but there are 4 images"):
        ask(text=[chat, chat[2:]], max_new_tokens=NEW, batch_size=2)


def test_the_begin_token_of_a_chat_template_stands_alone(
    joined: Joined, chat: list[dict[str, Any]], tmp_path: Path
) -> None:
    joined[1].save_pretrained(tmp_path)
    template = "{{ bos_token }}{% for message in messages %}{{ message.role }}{% endfor %}"
    begun = AutoProcessor.from_pretrained(tmp_path, chat_template=template)
    batch = begun.apply_chat_template(chat[4:], tokenize=True, return_dict=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == joined[1]([Document(["user"])]).input_ids.tolist()


def test_a_chat_template_survives_saving(joined: Joined, chat: list[dict[str, Any]], tmp_path: Path) -> None:
    processor = joined[1]
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == processor.chat_template
    one, other = (
        p.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        for p in (processor, loaded)
    )
    assert set(one) == set(processor.model_input_names)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_video_in_a_chat_is_refused(ask: Any) -> None:
    with pytest.raises(FlamingoError, match="message 0: a part of type 'video'"):
        ask(text=[{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])
