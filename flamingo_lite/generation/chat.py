"""A conversation with a model: questions and images go in, answers come out word by word, as they are written.

Every image goes through the encoder once, whatever the number of turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.generation.generate import continuations
from flamingo_lite.generation.images import MediaStore
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
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
        self._store = MediaStore(model, processor)
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
        ending = stop_of(self.processor.template, self.processor.tokenizer, [asked])
        if write is not None:
            options = {"streamer": Pieces(self.processor.tokenizer, write, ending), **options}
        ((_, found),) = continuations(
            self.model, self.processor, [encoded], room, ending, batch_size=1, store=self._store, share=False, **options
        )  # fmt: skip
        return found.text


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
