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
from flamingo_lite.text.stop import Stop, stop_of
from flamingo_lite.text.tokenizer import Encoded


class Chat:
    """A conversation that grows by `ask`; `document` is what was said so far.

    Under a template with conversations it has turns, whose `system` message comes first. Without, questions and answers
    stand between the images as in pretraining: a blank before a question unless it opens the document, the end of a
    chunk behind an answer. Errors: `FlamingoError` for a system message without turns.
    """

    def __init__(
        self, model: VisionLanguageModel, processor: VisionLanguageProcessor, system: str | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.has_turns = processor.template.conversation is not None
        if system is not None and not self.has_turns:
            raise FlamingoError(
                "this model was not tuned on conversations, so that nothing would set a system message apart; leave it out"
            )
        self._opening = () if system is None else (Text(system, loss=False, role="system"),)
        self._seen = SeenImages(model, processor)
        self.document = Document(self._opening)

    def ask(
        self,
        question: str,
        images: Sequence[Image] = (),
        max_new_tokens: int = 256,
        write: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """The answer, of at most `max_new_tokens` or what the context leaves; `write` is given it piece by piece.

        `images` stand before the question. Greedy unless `options` of `model.generate` say more. An empty answer ends
        no turn: of a conversation with turns nothing is then kept. Errors: `FlamingoError` for a conversation that does
        not fit the context, `SampleError` for an image or a question that cannot be used; the conversation is then
        what it was before.
        """
        asked = Document([*self.document, *images, self._question(question, images)])
        encoded = self.processor.encode(asked, name="the conversation")
        room = min(max_new_tokens, _room(encoded, context_length(self.model.config)))
        with evaluating(self.model):
            answer = self._continue(asked, encoded, room, write, options)
        if answer.strip() or not self.has_turns:
            role = "assistant" if self.has_turns else None
            self.document = Document([*asked, Text(answer, role=role, ends_chunk=True)])
        return answer

    def reset(self) -> None:
        """Forgets what was said, not how the images look: they need no encoding when they come again."""
        self.document = Document(self._opening)

    def _question(self, question: str, images: Sequence[Image]) -> Text:
        if self.has_turns:
            return Text(question.strip(), loss=False, role="user")
        blank = " " if len(self.document) or images else ""
        return Text(f"{blank}{question.strip()}", loss=False)

    def _continue(
        self,
        asked: Document,
        encoded: Encoded,
        room: int,
        write: Callable[[str], None] | None,
        options: dict[str, Any],
    ) -> str:
        tokenizer = self.processor.tokenizer
        ending = stop_of(self.processor.template, tokenizer, [asked])
        stop_id = None if ending.token is None else tokenizer.get_vocab()[ending.token]
        ends = end_tokens(stop_id, tokenizer.eos_token_id, self.model.generation_config.eos_token_id)
        settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if ending.words and ending.token is None:
            settings |= {"stop_strings": [ending.words], "tokenizer": tokenizer}
        if write is not None:
            settings["streamer"] = Pieces(tokenizer, write, ending)
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
        written = out[0, ids.shape[1] :].tolist()
        written = written[: next((i for i, token in enumerate(written) if token in ends), len(written))]
        return ending.answer(tokenizer.decode(written, skip_special_tokens=True))


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
    """Hands an answer on as soon as whole words of it are there; of what `ending` says is no part of it, nothing."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None], ending: Stop
    ) -> None:
        # transformers' protocol of its host is narrower than what it decodes with.
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyrefly: ignore
        self._write = write
        self._ending = ending
        self._written = ""
        self._shown = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._written += text
        answer = self._ending.answer(self._written)
        if not stream_end:
            answer = without_beginning_of(self._ending.words, answer)
        if new := answer[len(self._shown) :]:
            self._shown = answer
            self._write(new)


def without_beginning_of(words: str, text: str) -> str:
    """`text` without an end with which `words` may begin."""
    for length in range(min(len(words), len(text)), 0, -1):
        if text.endswith(words[:length]):
            return text[:-length]
    return text


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
