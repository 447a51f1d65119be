"""Bidirectional prefix fusion against GIT's mask, written out entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from transformers import AutoConfig

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, load_vision, tower_to_dict
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from tests.models.test_model import MANY, SEGMENTS, TOLERANCE, make

ImageOf = Callable[[int], Image]


@pytest.fixture
def bidirectional(prefix_config: dict[str, Any]) -> VisionLanguageModel:
    torch.manual_seed(3)
    return build({**prefix_config, "fusion": {"name": "prefix", "bidirectional": True}}).eval()


def naive_mask(image_of_position: list[int]) -> Tensor:
    """(1 1 t t) additive, entry by entry; a position's number is its image's, -1 for text."""
    t = len(image_of_position)
    mask = torch.full((t, t), float("-inf"))
    for query in range(t):
        for key in range(t):
            same = image_of_position[query] >= 0 and image_of_position[query] == image_of_position[key]
            if key <= query or same:
                mask[query, key] = 0.0
    return mask[None, None]


def git_mask(visual: int, text: int) -> Tensor:
    """[[0 (V x V), -inf (V x T)], [0 (T x V), causal (T x T)]], as GIT writes it."""
    above, below = torch.zeros(visual, visual + text), torch.zeros(text, visual + text)
    above[:, visual:] = float("-inf")
    below[:, visual:] = torch.full((text, text), float("-inf")).triu(1)
    return torch.cat((above, below))[None, None]


@torch.no_grad()
def test_an_image_in_front_of_text_is_read_under_gits_mask(
    bidirectional: VisionLanguageModel, prefix_processor: VisionLanguageProcessor
) -> None:
    model = bidirectional
    tokens = torch.randn(1, 3, 32)
    image = prefix_processor.image_token_id
    ids, words = torch.tensor([[image] * 3 + [7, 8, 9, 10]]), torch.tensor([[7, 8, 9, 10]])
    ours = model(ids, media_index=torch.zeros_like(ids), media=MediaCache(media=tokens)).logits
    embedded = torch.cat((tokens, model.get_input_embeddings()(words)), 1)
    expected = model.language(inputs_embeds=embedded, attention_mask=git_mask(3, 4)).logits
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(naive_mask([0, 0, 0, -1, -1, -1, -1]), git_mask(3, 4))


@MANY
@given(segments=SEGMENTS)
@torch.no_grad()
def test_images_anywhere_see_themselves_whole_and_text_stays_causal(
    bidirectional: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    segments: list[int | str],
) -> None:
    model = bidirectional
    batch = prefix_processor([make(segments, image_of)])
    marks = batch.input_ids == prefix_processor.image_token_id
    numbers = batch.media_index.masked_fill(~marks, -1)[0].tolist()
    embedded = model.get_input_embeddings()(batch.input_ids)
    if len(batch.pixel_values):
        embedded[marks] = model.encode_images(batch.pixel_values).flatten(0, 1)
    expected = model.language(inputs_embeds=embedded, attention_mask=naive_mask(numbers)).logits
    torch.testing.assert_close(model(**batch).logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def of_family(family: str, vision_directory: Any, sizes: dict[str, Any]) -> VisionLanguageModel:
    """A random language model of two layers under bidirectional prefix fusion, `<image>` behind its 60 words."""
    torch.manual_seed(0)
    common = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower, vision = load_vision(VisionConfig(str(vision_directory)))
    outer = VisionLanguageConfig(
        text_config=AutoConfig.for_model(family, **common, **sizes),
        vision_tower=tower_to_dict(tower),
        connector={"name": "linear"},
        fusion={"name": "prefix", "bidirectional": True},
        image_token_id=60,
        first_new_token=60,
        new_tokens=1,
    )
    return VisionLanguageModel(outer, vision=vision).eval()


def sliding_model(vision_directory: Any) -> VisionLanguageModel:
    sizes = {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "sliding_window": 3}
    types = ["sliding_attention", "full_attention"]
    return of_family("gemma3_text", vision_directory, {**sizes, "layer_types": types})


@torch.no_grad()
def test_a_window_slides_over_text_and_leaves_an_image_whole(vision_directory: Any) -> None:
    model = sliding_model(vision_directory)
    tokens = torch.randn(1, 4, 16)
    ids = torch.tensor([[5, 6, 60, 60, 60, 60, 7, 8, 9, 10]])
    numbers = [-1, -1, 0, 0, 0, 0, -1, -1, -1, -1]
    index = torch.tensor([[-1, -1, 0, 0, 0, 0, 0, 0, 0, 0]])
    ours = model(ids, media_index=index, media=MediaCache(media=tokens)).logits
    whole, window = naive_mask(numbers), naive_mask(numbers)
    for query in range(10):
        for key in range(10):
            if query - key >= 3 and not (numbers[query] == numbers[key] == 0):
                window[..., query, key] = float("-inf")
    embedded = model.get_input_embeddings()(ids)
    embedded[:, 2:6] = tokens
    masks = {"full_attention": whole, "sliding_attention": window}
    expected = model.language(inputs_embeds=embedded, attention_mask=masks).logits
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_decoding_under_a_window_equals_recomputation_and_takes_no_other_cache(
    vision_directory: Any,
) -> None:
    model = sliding_model(vision_directory)
    prompt = {
        "input_ids": torch.tensor([[5, 6, 60, 60, 60, 60, 7, 60, 60, 60, 60, 8]]),
        "media_index": torch.tensor([[-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]),
        "attention_mask": torch.ones(1, 12, dtype=torch.int64),
        "pixel_values": torch.randn(2, 3, 16, 16),
    }
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    full = model.generate(**prompt, **greedy, use_cache=False)
    assert torch.equal(model.generate(**prompt, **greedy), full)
    for option in ({"prefill_chunk_size": 7}, {"cache_implementation": "static"}):
        with pytest.raises(FlamingoError, match="give the prompt in one part and use no static cache"):
            model.generate(**prompt, **greedy, **option)


def test_a_language_model_that_takes_no_mask_is_refused_by_name(vision_directory: Any) -> None:
    with pytest.raises(FlamingoError, match=r"fusion\.bidirectional needs a mask.*bloom"):
        of_family("bloom", vision_directory, {})
