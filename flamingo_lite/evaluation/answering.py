"""One of our models as the two callables that an evaluation puts its prompts to."""

from collections.abc import Sequence
from typing import Any

from flamingo_lite.document import Document, Text
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood, Rank
from flamingo_lite.evaluation.runner import Generate
from flamingo_lite.generation.generate import generate
from flamingo_lite.generation.score import score
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor


def generator(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, batch_size: int = 64, **options: Any
) -> Generate:
    """`options` go to `generate`."""

    def answer(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        return generate(
            model, processor, documents, max_new_tokens=max_new_tokens, batch_size=batch_size, **options
        )

    return answer


def ranker(model: VisionLanguageModel, processor: VisionLanguageProcessor, batch_size: int = 64) -> Rank:
    """Documents that share their candidates are scored together."""

    def rank(
        documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> list[Sequence[Likelihood] | GenerationFailure]:
        groups: dict[tuple[Text, ...], list[int]] = {}
        for i, given in enumerate(candidates):
            groups.setdefault(tuple(given), []).append(i)
        found: dict[int, Sequence[Likelihood]] = {}
        for given, places in groups.items():
            first = documents[places[0]]
            start = len(processor.encode(first))
            tokens = [len(processor.encode(Document([*first, text]))) - start for text in given]
            scores = score(model, processor, [documents[i] for i in places], given, batch_size)
            for place, row in zip(places, scores.tolist(), strict=True):
                found[place] = [Likelihood(*of) for of in zip(row, tokens, strict=True)]
        return [found[i] for i in range(len(documents))]

    return rank
