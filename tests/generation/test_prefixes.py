"""Beginnings that prompts share: found where they are, cut where they may be, and gone on from without a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.generation import prefixes
from flamingo_lite.generation.generate import continuations
from flamingo_lite.generation.images import MediaStore
from flamingo_lite.generation.prefixes import (
    continued_from,
    keeps_images_whole,
    shared_beginnings,
    symbols,
)
from flamingo_lite.generation.prompts import prompt_batches
from flamingo_lite.generation.score import log_probabilities
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.stop import Stop
from flamingo_lite.text.tokenizer import Encoded

NEVER = Stop()
MARK = 60
IMAGES = [Image(bytes([i])) for i in range(3)]


@st.composite
def prompts(draw: st.DrawFn) -> list[Encoded]:
    """Prompts of few tokens and images of two marks, long enough to share, over and over."""
    found = []
    pieces = draw(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=20), min_size=1, max_size=3))
    for parts in draw(
        st.lists(st.lists(st.sampled_from(range(len(pieces))), max_size=3), min_size=1, max_size=6)
    ):
        written = [9, *(symbol for part in parts for symbol in pieces[part]), draw(st.integers(0, 4))]
        ids, index, images = [], [], []
        for symbol in written:
            images += [IMAGES[symbol]] if symbol < 3 else []
            ids += [MARK, MARK] if symbol < 3 else [symbol]
            index += [len(images) - 1] * (2 if symbol < 3 else 1)
        found.append(Encoded(ids, ids, index, tuple(images)))
    return found


@settings(deadline=None, max_examples=200)
@given(prompts())
def test_what_is_shared_stands_in_the_trunk_and_leaves_a_token_over(encoded: list[Encoded]) -> None:
    written = symbols(encoded, MARK)
    shared, trunk = shared_beginnings(encoded, MARK)
    for i, (length, t) in enumerate(zip(shared, trunk, strict=True)):
        assert length == 0 or prefixes.LEAST_SHARED <= length < len(encoded[i])
        assert shared[t] >= length and trunk[t] == t
        assert written[i][:length] == written[t][:length]
        assert keeps_images_whole(encoded[i], length, MARK)


@settings(deadline=None, max_examples=100)
@given(prompts())
def test_no_longer_beginning_is_shared_with_anyone(encoded: list[Encoded]) -> None:
    written = symbols(encoded, MARK)
    shared, _ = shared_beginnings(encoded, MARK)
    for i, own in enumerate(written):
        common = [
            next(
                (n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
                min(len(own), len(other)),
            )
            for j, other in enumerate(written)
            if j != i
        ]
        longest = min(max(common, default=0), len(own) - 1)
        assert shared[i] <= longest
        if longest >= prefixes.LEAST_SHARED and own[longest] >= 0:
            assert shared[i] == longest


def test_images_of_another_id_are_not_shared_though_the_marks_are() -> None:
    ids = [MARK, *range(20), MARK, 1]
    index = [0] * 21 + [1] * 2
    one = Encoded(ids, ids, index, (IMAGES[0], IMAGES[1]))
    other = Encoded(ids, ids, index, (IMAGES[2], IMAGES[1]))
    assert shared_beginnings([one, other], MARK)[0] == [0, 0]
    assert shared_beginnings([one, one], MARK)[0] == [22, 22]


def test_a_cache_is_cut_to_the_first_tokens_of_each_row() -> None:
    # Two rows of 3 and 5 tokens, padded on the left; token n of row r is 10 r + n.
    rows = torch.tensor([[0, 0, 0, 1, 2], [10, 11, 12, 13, 14]]).float()
    cache = DynamicCache()
    for layer in range(2):
        cache.update(rows[:, None, :, None] + 100 * layer, rows[:, None, :, None] + 1000, layer)
    cut = continued_from(cache, rows=[1, 0, 1], ends=[5, 3, 5], lengths=[4, 2, 1])
    keys = cut.layers[1].keys[:, 0, :, 0] - 100
    assert keys[0].tolist() == [10, 11, 12, 13]
    assert keys[1, 2:].tolist() == [0, 1]
    assert keys[2, 3:].tolist() == [10]


# ---- with a model

VARIANTS = {
    "immediate": {},
    "all_previous": {"fusion": {"every": 1, "heads": 2, "dim_head": 8, "ff_mult": 2, "sees": "all_previous"}},
    "prefix": {"fusion": {"name": "prefix"}},
    "bidirectional": {"fusion": {"name": "prefix", "bidirectional": True}},
}
Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(
    request: Any,
    model_config: dict[str, Any],
    processor: VisionLanguageProcessor,
    prefix_processor: VisionLanguageProcessor,
    set_gates: Any,
) -> Joined:
    change = VARIANTS[request.param]
    is_prefix = change.get("fusion", {}).get("name") == "prefix"
    config = {**model_config, **change}
    if is_prefix:
        config["connector"] = {**model_config["connector"], "width": 32}
    torch.manual_seed(2)
    model = set_gates(build(config), 0.7).eval()
    return model, prefix_processor if is_prefix else processor


@st.composite
def few_shot(draw: st.DrawFn, image_of: Any) -> list[Document]:
    """Prompts of 0 to 3 of the same demonstrations, under several queries."""
    demonstrations = [
        [
            image_of(draw(st.integers(0, 3))),
            Text(draw(st.sampled_from(["one", "a longer text", "2 = 3"])), ends_chunk=True),
        ]
        for _ in range(3)
    ]
    documents = []
    for _ in range(draw(st.integers(2, 7))):
        shots, query = draw(st.integers(0, 3)), draw(st.integers(0, 5))
        before = [segment for pair in demonstrations[:shots] for segment in pair]
        documents.append(Document([*before, image_of(query), draw(st.sampled_from([" =", " what is it?"]))]))
    return documents


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), batch_size=st.sampled_from([1, 3, 16]), images=st.sampled_from([1, 2, 50]))
def test_caches_change_no_text_and_no_score(
    variant: Joined, image_of: Any, data: st.DataObject, batch_size: int, images: int
) -> None:
    model, processor = variant
    encoded = processor.encode_all(data.draw(few_shot(image_of)))
    store = MediaStore(model, processor)
    store.pool.capacity = images
    answers = [[5], [5, 6], [5, 7, 8], [9, 9]]
    shared = dict(continuations(model, processor, encoded, 3, NEVER, batch_size=batch_size, store=store))
    scored = dict(log_probabilities(model, processor, encoded, answers, batch_size=batch_size, store=store))
    for i, prompt in enumerate(encoded):
        ((_, alone),) = continuations(model, processor, [prompt], 3, NEVER, batch_size=1, share=False)
        ((_, scores),) = log_probabilities(model, processor, [prompt], answers, batch_size=4, share=False)
        torch.testing.assert_close(scored[i], scores, atol=1e-4, rtol=1e-4)
        assert alone.margin is not None and shared[i].margin == pytest.approx(alone.margin, abs=1e-4)
        if alone.margin > 1e-4:
            assert shared[i].text == alone.text


def test_a_shared_beginning_runs_once(variant: Joined, image_of: Any) -> None:
    model, processor = variant
    before = [s for i in range(2) for s in (image_of(i), Text(" a demonstration", ends_chunk=True))]
    encoded = processor.encode_all([Document([*before, image_of(i), " ="]) for i in range(2, 6)])
    tokens = 0

    def count(module: Any, arguments: Any, options: Any) -> None:
        nonlocal tokens
        found = options.get("input_ids")
        tokens += (found if found is not None else options["inputs_embeds"][..., 0]).numel()

    handle = model.language.register_forward_pre_hook(count, with_kwargs=True)
    try:
        seen = [batch.seen for batch in prompt_batches(model, processor, encoded, 16)]
        list(log_probabilities(model, processor, encoded, [[5]], batch_size=16))
    finally:
        handle.remove()
    beginning = seen[0]
    assert seen == [beginning] and beginning >= 32
    # Once for the batches that were only made, once for the scores; then what is left of each row.
    assert tokens == 2 * beginning + sum(len(prompt) - beginning for prompt in encoded)
