"""A model behind an OpenAI-compatible endpoint as a callable that an evaluation puts its prompts to.

It is asked through `teacher.Asker`: several at once, again where it failed, once where it was asked before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_lite.document import Document, Image, Text, image_format
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.teacher import Answer, Asker, Message, Picture, Request, Sampling
from flamingo_lite.text.turns import turns_of

MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@dataclass
class EndpointAnswers:
    """`generate` of one model. `image_tokens`: what is set aside of a budget for each image before it is sent."""

    asker: Asker
    temperature: float | None
    image_tokens: int

    def generate(self, documents: Sequence[Document], max_new_tokens: int) -> list[str | GenerationFailure]:
        """See `answers.Generate`; documents have roles. Errors: `FlamingoError` when the budget ends, or when the endpoint
        answers nothing; what was answered is kept, and is not asked again."""
        sampling = Sampling(max_new_tokens, self.temperature)
        found: dict[int, str | GenerationFailure] = {}
        requests: list[Request[int]] = []
        for i, document in enumerate(documents):
            try:
                requests.append(Request(i, self._messages(document), sampling))
            except SampleError as error:
                found[i] = GenerationFailure(str(error))
        for i, outcome in self.asker.ask(requests):
            found[i] = outcome.text if isinstance(outcome, Answer) else GenerationFailure(outcome.message)
        if len(found) < len(documents):
            raise FlamingoError(
                f"the budget of {self.asker.budget.limit:,} tokens leaves no room for the next question to "
                f"{self.asker.teacher.name}; raise it and run the same command again: what was answered is kept"
            )
        return [found[i] for i in range(len(documents))]

    def _messages(self, document: Document) -> list[Message]:
        return [
            Message(
                turn.role, "", tuple(self._part(segment) for segment in turn.segments if _is_said(segment))
            )
            for turn in turns_of(document, "prompt")
        ]

    def _part(self, segment: Text | Image) -> str | Picture:
        if not isinstance(segment, Image):
            return segment.text
        data = segment.data
        kind = MIME.get(image_format(data) or "")
        if kind is None:
            raise SampleError(f"{segment.name}: no JPEG, PNG or WebP", "image")
        return Picture(data, kind, segment.id, self.image_tokens)


def _is_said(segment: Text | Image) -> bool:
    return isinstance(segment, Image) or bool(segment.text)
