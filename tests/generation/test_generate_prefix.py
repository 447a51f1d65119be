"""generate and score under prefix fusion: every way of decoding, the same answers, every image encoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flamingo_lite as fl
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from tests.models.test_model import MANY, SEGMENTS, TOLERANCE, make

ImageOf = Callable[[int], Image]


@pytest.fixture(params=[False, True], ids=["causal", "bidirectional"])
def either(request: pytest.FixtureRequest, prefix_config: dict[str, Any]) -> VisionLanguageModel:
    torch.manual_seed(2)
    return build({**prefix_config, "fusion": {"name": "prefix", "bidirectional": request.param}}).eval()


@pytest.fixture
def documents(image_of: ImageOf) -> list[Document]:
    """Lengths and numbers of images differ; three distinct images, one of them in four documents."""
    one, two, three = (image_of(i) for i in range(3))
    return [
        Document([one, " = 8", two, " ="]),
        Document(["no image"]),
        Document([two, "abc"]),
        Document([three, one, two, " some words ", two]),
    ]


@pytest.fixture
def prompts(prefix_processor: VisionLanguageProcessor, documents: list[Document]) -> dict[str, Any]:
    """A batch padded on the left, its rows with two, no, one and four images."""
    batch = prefix_processor(documents)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "media_index")}


@MANY
@given(segments=SEGMENTS, new=st.integers(1, 4))
def test_cached_decoding_equals_full_recomputation(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    segments: list[int | str],
    new: int,
) -> None:
    batch = prefix_processor([make(segments, image_of), make([2, "abcdef"], image_of)])
    options = {
        "max_new_tokens": new,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached, full = (either.generate(**batch, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, full.sequences)
    for a, b in zip(cached.logits, full.logits, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def test_beams_share_the_images_and_equal_a_search_without_cache(
    either: VisionLanguageModel, prompts: dict[str, Any]
) -> None:
    seen = []
    handle = either.vision.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    beams = either.generate(**prompts, max_new_tokens=4, num_beams=3, do_sample=False)
    handle.remove()
    assert seen == [7]
    slow = either.generate(**prompts, max_new_tokens=4, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, slow)


def test_samples_of_one_seed_are_the_same_with_and_without_a_cache(
    either: VisionLanguageModel, prompts: dict[str, Any]
) -> None:
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(
            either.generate(
                **prompts, max_new_tokens=4, do_sample=True, num_return_sequences=2, use_cache=use_cache
            )
        )
    assert torch.equal(*drawn) and len(drawn[0]) == 8


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_of_decoding_give_the_greedy_text(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    options: dict[str, Any],
) -> None:
    # Both images stand twice, so that prompt lookup finds <image> among its candidates.
    prompt = prefix_processor([make([0, 1, "ab", 0, 1, "ab"], image_of)])
    # An end token that is not written: transformers 5.10 looks prompts up only where there is one.
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 0}
    assert torch.equal(either.generate(**prompt, **greedy, **options), either.generate(**prompt, **greedy))


def test_a_prompt_in_parts_that_hold_their_images_whole_gives_the_same_text(
    either: VisionLanguageModel, prefix_processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    prompt = prefix_processor([make(["abc", 0, "d", 1, "efg"], image_of)])
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    whole = either.generate(**prompt, **greedy)
    assert torch.equal(either.generate(**prompt, **greedy, prefill_chunk_size=8), whole)
    with pytest.raises(FlamingoError, match="row 0 has 2 <image> ids.*cut no image in two"):
        either.generate(**prompt, **greedy, prefill_chunk_size=6)


def test_an_image_mark_is_never_generated(
    either: VisionLanguageModel, prefix_processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    prompt = prefix_processor([make([0, "ab"], image_of)])
    # Tied: the column of <image> wins everywhere once its row points where the hidden states do.
    with torch.no_grad():
        hidden = either(**prompt, output_hidden_states=True).hidden_states[-1][0, -1]
        either.get_input_embeddings().new_rows.copy_(100 * hidden)
    assert either(**prompt).logits[0, -1].argmax() == prefix_processor.image_token_id
    out = either.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert prefix_processor.image_token_id not in out[0, prompt.input_ids.shape[1] :]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_no_text_and_no_order(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    documents: list[Document],
    batch_size: int,
) -> None:
    encoded = []
    handle = either.vision.register_forward_hook(lambda module, inputs, out: encoded.append(len(inputs[0])))
    together = fl.generate(either, prefix_processor, documents, max_new_tokens=5, batch_size=batch_size)
    handle.remove()
    assert sum(encoded) == 3
    assert together == [fl.generate(either, prefix_processor, [d], max_new_tokens=5)[0] for d in documents]
    assert len(set(together)) > 1


@pytest.mark.parametrize(
    "candidates",
    [["yes", "no", Text("y", ends_chunk=True), "a longer one"], ["a", "b"]],
    ids=["long", "one token"],
)
def test_scores_are_the_log_probabilities_of_full_recomputation(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    documents: list[Document],
    candidates: list[str | Text],
) -> None:
    scores = fl.score(either, prefix_processor, documents, candidates, batch_size=6)
    for row, document in zip(scores, documents, strict=True):
        start = len(prefix_processor.encode(document))
        for found, candidate in zip(row, candidates, strict=True):
            batch = prefix_processor([Document([*document, candidate])])
            logp = either(**batch).logits[0, :-1].log_softmax(-1)
            expected = logp.gather(1, batch.input_ids[0, 1:, None])[start - 1 :].sum()
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "training checkpoint"])
def test_what_is_saved_answers_the_same_when_loaded(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    documents: list[Document],
    tmp_path: Path,
    whole: bool,
) -> None:
    fl.save(either, prefix_processor, tmp_path / "model", whole=whole)
    model, processor = fl.load(tmp_path / "model")
    batch = processor(documents)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, either(**prefix_processor(documents)).logits)
    assert processor.template == prefix_processor.template
