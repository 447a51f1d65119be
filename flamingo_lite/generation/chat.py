"""A conversation with a model: questions and images go in, answers come out word by word, as they are written.

Every image goes through the encoder once, whatever the number of turns.
Shape letters: b batch (one row here), t text positions, m images, n media tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.generate import end_tokens
from flamingo_lite.generation.prompts import MediaKey, evaluating
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.tokenizer import Encoded


class Chat:
    """A conversation that grows by `ask`; `document` is what was said so far.

    Questions and answers stand between the images as in pretraining: a blank before a question unless it opens the
    document, the end of a chunk behind an answer.
    """

    def __init__(self, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> None:
        self.model = model
        self.processor = processor
        self.document = Document([])
        self._seen = SeenImages(model, processor)

    def ask(
        self,
        question: str,
        images: Sequence[Image] = (),
        max_new_tokens: int = 256,
        write: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """The answer, of at most `max_new_tokens` or what the context leaves; `write` is given it piece by piece.

        `images` stand before the question. Greedy unless `options` of `model.generate` say more. Errors:
        `FlamingoError` for a conversation that does not fit the context, `SampleError` for an image or a question
        that cannot be used; the conversation is then what it was before.
        """
        asked = self._with_question(question, images)
        encoded = self.processor.encode(asked, name="the conversation")
        room = min(max_new_tokens, _room(encoded, context_length(self.model.config)))
        with evaluating(self.model):
            answer = self._continue(encoded, room, write, options)
        self.document = Document([*asked, Text(answer, ends_chunk=True)])
        return answer

    def reset(self) -> None:
        """Forgets what was said, not how the images look: they need no encoding when they come again."""
        self.document = Document([])

    def _with_question(self, question: str, images: Sequence[Image]) -> Document:
        before = [*self.document, *images]
        blank = " " if before else ""
        return Document([*before, Text(f"{blank}{question.strip()}", loss=False)])

    def _continue(
        self, encoded: Encoded, room: int, write: Callable[[str], None] | None, options: dict[str, Any]
    ) -> str:
        tokenizer = self.processor.tokenizer
        stop = self.processor.template.end_of_chunk
        stop_id = None if stop is None else tokenizer.get_vocab().get(stop)
        ends = end_tokens(stop_id, tokenizer.eos_token_id, self.model.generation_config.eos_token_id)
        settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if stop is not None and stop_id is None:
            settings |= {"stop_strings": [stop], "tokenizer": tokenizer}
        else:
            stop = None
        if write is not None:
            settings["streamer"] = Pieces(tokenizer, write, stop)
        device = self.model.device
        ids = torch.tensor([encoded.input_ids], device=device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            media_index=torch.tensor([encoded.media_index], device=device),
            media=self._seen.media(encoded),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            max_new_tokens=room,
            **{**settings, **options},
        )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return answer if stop is None else answer.split(stop, 1)[0]


class SeenImages:
    """Media tokens of the images that a conversation has shown, each encoded when it first comes."""

    def __init__(self, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> None:
        self._model = model
        self._processor = processor
        self._tokens: dict[MediaKey, Tensor] = {}  # (n d)
        self._keys: list[MediaKey] = []
        self._media: MediaCache | None = None

    def media(self, encoded: Encoded) -> MediaCache:
        """The images of a document in order. While they stay the same, so do their projected keys and values."""
        keys = encoded.media_keys
        if not keys:
            return self._model.no_media()
        if self._media is None or keys != self._keys:
            for key, image in zip(keys, encoded.images, strict=True):
                if key not in self._tokens:
                    self._tokens[key] = self._encode(image, key)
            self._keys = keys
            self._media = MediaCache(media=torch.stack([self._tokens[key] for key in keys]))
        return self._media

    def _encode(self, image: Image, key: MediaKey) -> Tensor:
        device = self._model.device
        pixels = self._processor.image_transform(image)[None].to(device)
        text = self._processor.connector_text([key[1]]).values()
        return self._model.encode_images(pixels, *(t.to(device) for t in text))[0]


class Pieces(TextStreamer):
    """Hands on what is written as soon as whole words of it are there, up to the string `stop` if there is one."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None], stop: str | None = None
    ) -> None:
        # transformers' protocol of its host is narrower than what it decodes with.
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyrefly: ignore
        self._write = write
        self._stop = stop
        self._held = ""
        self._has_stopped = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._held += text
        shown, self._held = self._held, ""
        if self._stop is not None and not self._has_stopped:
            shown, found, _ = shown.partition(self._stop)
            self._has_stopped = bool(found)
            if not found and not stream_end:
                shown, self._held = without_beginning_of(self._stop, shown)
            self._emit(shown)
        elif not self._has_stopped:
            self._emit(shown)

    def _emit(self, text: str) -> None:
        if text:
            self._write(text)


def without_beginning_of(stop: str, text: str) -> tuple[str, str]:
    """`text` in two: what can be shown, and an end of it with which `stop` may begin."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return text[:-length], text[-length:]
    return text, ""


def _room(encoded: Encoded, limit: int | None) -> int:
    """How many new tokens the context of `limit` positions leaves. Errors: `FlamingoError` for none."""
    if limit is None:
        return 2**31
    if (room := limit - len(encoded)) < 1:
        raise FlamingoError(
            f"{encoded.name} has {len(encoded)} tokens and the language model's context is {limit}: it leaves no room "
            "for an answer; begin again (/reset), or ask less"
        )
    return room
