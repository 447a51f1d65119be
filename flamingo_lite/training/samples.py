"""What the model writes for documents of its own training data: a look at it, not a measurement."""

from collections.abc import Iterable

from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.generation.generate import generate
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.tracking import Sample

NEW_TOKENS = 24


def draw_samples(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: Iterable[Document], count: int
) -> list[Sample]:
    """Lets the model write the last trained-on text of the first `count` documents that have one, and fit."""
    longest = context_length(model.language.config)
    cut: list[tuple[Document, str]] = []
    for document in documents:
        if len(cut) == count:
            break
        pair = split_last_answer(document)
        if pair and (longest is None or len(processor.encode(pair[0])) + NEW_TOKENS <= longest):
            cut.append(pair)
    if not cut:
        return []
    texts = generate(model, processor, [prompt for prompt, _ in cut], max_new_tokens=NEW_TOKENS)
    return [
        Sample(written(prompt), list(prompt.images), text, target)
        for (prompt, target), text in zip(cut, texts, strict=True)
    ]


def split_last_answer(document: Document) -> tuple[Document, str] | None:
    """The document up to its last trained-on text, and that text; None where nothing comes before it."""
    places = [i for i, segment in enumerate(document) if isinstance(segment, Text) and segment.loss]
    if not places or places[-1] == 0:
        return None
    last = document[places[-1]]
    assert isinstance(last, Text)
    return Document(document[: places[-1]], document.meta), last.text


def written(document: Document) -> str:
    """The document as a line of text, with a mark for each image."""
    return "".join(IMAGE_TOKEN if isinstance(segment, Image) else segment.text for segment in document)
