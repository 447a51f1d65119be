"""One of our models as the two callables that an evaluation puts its prompts to.

Images stay known from one call to the next; what cannot be answered is a failure in its own place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from flamingo_lite.data.features import FeatureCache
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood
from flamingo_lite.generation.generate import Continuation, continuations
from flamingo_lite.generation.images import MEDIA_BYTES, MediaStore
from flamingo_lite.generation.prompts import evaluating, too_long
from flamingo_lite.generation.score import candidate_ids, log_probabilities
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.stop import stop_of
from flamingo_lite.text.tokenizer import Encoded

T = TypeVar("T")
Found = Iterable[tuple[int, T]]

ROUNDING = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""By how much of itself a logit may change with the batch that its row is in: in float32 well above the 7e-7 that was
seen, in the others a few units in the last place."""
TYPICAL_LOGIT = 10.0


@dataclass
class ModelAnswers:
    """`generate` and `rank` of one model, which share the images that it has encoded.

    `options` go to `generate`; with them nothing is computed alone or in common, so that ranks which share a model's
    layers call it equally often.
    """

    model: VisionLanguageModel
    processor: VisionLanguageProcessor
    batch_size: int = 64
    media_bytes: int = MEDIA_BYTES
    features: FeatureCache | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    store: MediaStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MediaStore(self.model, self.processor, self.media_bytes, self.features)

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.model.language.dtype, ROUNDING[torch.bfloat16])

    def generate(
        self, documents: Sequence[Document], max_new_tokens: int
    ) -> list[str | Written | GenerationFailure]:
        """See `answers.Generate`."""
        ending = stop_of(self.processor.template, self.processor.tokenizer, documents)

        def run(prompts: Sequence[Encoded], batch_size: int, store: MediaStore) -> Found[Continuation]:
            return continuations(
                self.model,
                self.processor,
                prompts,
                max_new_tokens,
                ending,
                batch_size=batch_size,
                store=store,
                share=len(documents) > 1 and not self.options,
                **self.options,
            )

        found = self._answered(documents, max_new_tokens, run)
        return [each if isinstance(each, GenerationFailure) else self._written(each) for each in found]

    def rank(
        self, documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> list[Sequence[Likelihood] | GenerationFailure]:
        """See `ranking.Rank`. Documents that have their candidates in common are scored together."""
        groups: dict[tuple[Text, ...], list[int]] = {}
        for i, given in enumerate(candidates):
            groups.setdefault(tuple(given), []).append(i)
        found: dict[int, Sequence[Likelihood] | GenerationFailure] = {}
        for given, places in groups.items():
            ranked = self._ranked([documents[i] for i in places], given, is_alone=len(documents) == 1)
            found |= dict(zip(places, ranked, strict=True))
        return [found[i] for i in range(len(documents))]

    def _ranked(
        self, documents: Sequence[Document], candidates: Sequence[Text], is_alone: bool
    ) -> list[Sequence[Likelihood] | GenerationFailure]:
        ids = candidate_ids(self.processor, documents[0], candidates)

        def run(prompts: Sequence[Encoded], batch_size: int, store: MediaStore) -> Found[Tensor]:
            share = not is_alone and not self.options
            return log_probabilities(
                self.model, self.processor, prompts, ids, batch_size=batch_size, store=store, share=share
            )

        def likelihoods(scores: Tensor) -> list[Likelihood]:
            rounding = self.rounding * TYPICAL_LOGIT
            return [
                Likelihood(score, len(tokens), rounding * len(tokens))
                for score, tokens in zip(scores.tolist(), ids, strict=True)
            ]

        found = self._answered(documents, max(map(len, ids)), run)
        return [each if isinstance(each, GenerationFailure) else likelihoods(each) for each in found]

    def _written(self, continuation: Continuation) -> Written:
        margin = continuation.margin
        return Written(continuation.text, None if margin is None else margin / self.rounding)

    def _answered(
        self,
        documents: Sequence[Document],
        room: int,
        run: Callable[[Sequence[Encoded], int, MediaStore], Found[T]],
    ) -> list[T | GenerationFailure]:
        """What `run` gives of each document, or why there is nothing. A single document has everything computed alone."""
        store = self.store
        if len(documents) == 1 and not self.options:
            store = MediaStore(self.model, self.processor, self.media_bytes, at_once=1)
        found: dict[int, T | GenerationFailure] = {}
        prompts: dict[int, Encoded] = {}
        for i, document in enumerate(documents):
            prompt = self._encoded(document, room)
            if isinstance(prompt, GenerationFailure):
                found[i] = prompt
            else:
                prompts[i] = prompt
        batch_size = self.batch_size
        while open_places := [i for i in prompts if i not in found]:
            tried = open_places if batch_size else open_places[:1]
            try:
                for place, answer in run([prompts[i] for i in tried], max(1, batch_size), store):
                    found[tried[place]] = answer
            except SampleError:
                found |= self._unreadable({i: prompts[i] for i in tried}, store)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.options:
                    raise
                if batch_size == 0:
                    found[tried[0]] = GenerationFailure("out of memory with this prompt alone")
                # At last prompt by prompt, so that one which never fits is found.
                batch_size //= 2
        return [found[i] for i in range(len(documents))]

    def _encoded(self, document: Document, room: int) -> Encoded | GenerationFailure:
        try:
            prompt = self.processor.encode(document)
            _ = prompt.media_keys  # reads the images' bytes
        except SampleError as error:
            return GenerationFailure(str(error))
        problem = too_long(self.model, prompt, room)
        return prompt if problem is None else GenerationFailure(problem)

    def _unreadable(self, prompts: Mapping[int, Encoded], store: MediaStore) -> dict[int, GenerationFailure]:
        failures = {}
        with evaluating(self.model):
            for place, prompt in prompts.items():
                try:
                    store.fetch([prompt])
                except SampleError as error:
                    failures[place] = GenerationFailure(str(error))
        if not failures:
            raise FlamingoError("an image could be read the second time only; the disk may be failing")
        return failures


def is_out_of_memory(error: BaseException) -> bool:
    """Of a device, or of the machine, for which torch has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
