"""A model that answers an evaluation: what cannot be answered is a failure, and nothing else suffers for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flamingo_lite.data.features import FeatureCache
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.generation.generate import generate
from flamingo_lite.generation.score import score
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

Model = VisionLanguageModel
Processor = VisionLanguageProcessor
Images = Callable[[int], Image]
CANDIDATES = [Text("yes"), Text("no"), Text("yesterday", ends_chunk=True)]


@pytest.fixture
def documents(image_of: Images) -> list[Document]:
    return [Document([image_of(i), f" question {i} ="]) for i in range(4)]


def texts(found: Any) -> list[str | None]:
    return [each.text if isinstance(each, Written) else None for each in found]


def test_it_writes_and_ranks_what_the_public_functions_do(
    model: Model, processor: Processor, documents: list[Document]
) -> None:
    answers = ModelAnswers(model, processor, batch_size=3)
    assert texts(answers.generate(documents, 4)) == generate(model, processor, documents, 4)
    expected = score(model, processor, documents, CANDIDATES)
    found = answers.rank(documents, [CANDIDATES] * 4)
    assert not any(isinstance(row, GenerationFailure) for row in found)
    given = torch.tensor([[each.log_probability for each in row] for row in found])  # pyrefly: ignore
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    assert [each.tokens for each in found[0]] == [3, 2, 10]  # pyrefly: ignore


@pytest.mark.parametrize("bad", ["missing", "damaged", "too long", "mark"])
def test_a_document_that_cannot_be_answered_fails_alone(
    model: Model, processor: Processor, documents: list[Document], tmp_path: Path, bad: str
) -> None:
    document, words = {
        "missing": (Document([Image(tmp_path / "nothing.png"), " ="]), "nothing.png"),
        "damaged": (Document([Image(b"\x89PNG\r\n\x1a\n", name="cut.png"), " ="]), "cut.png"),
        "too long": (Document(["x" * 300]), "use fewer shots"),
        "mark": (Document(["an <image> in words"]), "<image>"),
    }[bad]
    asked = [*documents[:2], document, *documents[2:]]
    answers = ModelAnswers(model, processor, batch_size=2)
    found = answers.generate(asked, 3)
    assert isinstance(found[2], GenerationFailure) and words in found[2].reason
    assert texts([*found[:2], *found[3:]]) == generate(model, processor, documents, 3)
    ranked = answers.rank(asked, [CANDIDATES] * 5)
    assert [isinstance(row, GenerationFailure) for row in ranked] == [False, False, True, False, False]


def test_without_memory_batches_shrink_and_what_never_fits_is_a_failure(
    model: Model, processor: Processor, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(model, processor, documents, 3)
    long = Document(["a much longer text, which this device has no memory for"])
    whole = VisionLanguageModel.generate

    def short_of_memory(self: Model, input_ids: torch.Tensor, **options: Any) -> Any:
        if len(input_ids) > 2 or input_ids.shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, input_ids, **options)

    monkeypatch.setattr(VisionLanguageModel, "generate", short_of_memory)
    found = ModelAnswers(model, processor, batch_size=8).generate([*documents, long], 3)
    assert texts(found) == [*expected, None]
    assert isinstance(found[-1], GenerationFailure) and "out of memory" in found[-1].reason


def test_features_on_the_disk_spare_the_encoder_and_change_nothing(
    model: Model, processor: Processor, documents: list[Document], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, "key", 2**20)
    first = texts(ModelAnswers(model, processor, features=cache).generate(documents, 4))

    def refuse(*arguments: Any) -> None:
        raise AssertionError("the encoder was run again")

    handle = model.vision.register_forward_pre_hook(refuse)
    try:
        again = ModelAnswers(model, processor, features=FeatureCache(tmp_path, "key", 2**20))
        assert texts(again.generate(documents, 4)) == first == texts(again.generate(documents, 4))
    finally:
        handle.remove()


def test_images_stay_known_from_call_to_call_and_alone_everything_is_computed_anew(
    model: Model, processor: Processor, documents: list[Document]
) -> None:
    encoded: list[int] = []
    handle = model.vision.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    try:
        answers = ModelAnswers(model, processor)
        answers.generate(documents, 2)
        answers.rank(documents, [CANDIDATES] * 4)
        assert encoded == [4]
        answers.generate(documents[:1], 2)
        assert encoded == [4, 1]
    finally:
        handle.remove()
