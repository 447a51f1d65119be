"""Prefix fusion: what it promises whatever the layout, who sees whom, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from flamingo_lite.data.packing import pack
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.models.vision import VisionConfig, load_vision, tower_to_dict
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from tests.models.test_model import MANY, SEGMENTS, TOLERANCE, logits_of, make

ImageOf = Callable[[int], Image]


@pytest.fixture(params=[False, True], ids=["causal", "bidirectional"])
def either(request: pytest.FixtureRequest, prefix_config: dict[str, Any]) -> VisionLanguageModel:
    torch.manual_seed(2)
    return build({**prefix_config, "fusion": {"name": "prefix", "bidirectional": request.param}}).eval()


# ---- who sees what


@MANY
@given(segments=SEGMENTS, others=st.lists(SEGMENTS, max_size=2))
def test_padding_side_and_neighbours_change_nothing(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    segments: list[int | str],
    others: list[list[int | str]],
) -> None:
    documents = [make(s, image_of) for s in (segments, *others)]
    alone = logits_of(either, prefix_processor(documents[:1]))[0]
    for side in ("left", "right"):
        together = logits_of(either, prefix_processor(documents, padding_side=side))[0]
        torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(before=SEGMENTS, after=SEGMENTS, changed=SEGMENTS)
def test_nothing_depends_on_what_comes_later(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    before: list[int | str],
    after: list[int | str],
    changed: list[int | str],
) -> None:
    length = len(prefix_processor.encode(make(before, image_of)))
    one, other = (
        logits_of(either, prefix_processor([make([*before, *rest], image_of)]))[0][:length]
        for rest in (after, changed)
    )
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(before=SEGMENTS, after=SEGMENTS)
def test_text_depends_on_the_image_before_it_and_not_on_the_one_behind(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    before: list[int | str],
    after: list[int | str],
) -> None:
    length = len(prefix_processor.encode(make(before, image_of)))
    one, other = (
        logits_of(either, prefix_processor([make([*before, image, *after], image_of)]))[0] for image in (4, 5)
    )
    torch.testing.assert_close(one[:length], other[:length], atol=TOLERANCE, rtol=TOLERANCE)
    assert (one[length:] - other[length:]).abs().amax(-1).min() > 1e-4


@MANY
@given(layouts=st.lists(SEGMENTS, min_size=1, max_size=4))
def test_packing_keeps_documents_apart(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    layouts: list[list[int | str]],
) -> None:
    documents = [make(segments, image_of) for segments in layouts]
    apart = logits_of(either, prefix_processor(documents, padding_side="right"))
    encoded = prefix_processor.encode_all(documents)
    batch = prefix_processor.collate(encoded, places=pack([len(document) for document in encoded]))
    with torch.no_grad():
        packed = either(**batch).logits
    assert batch.segment_ids is not None
    for number, alone in enumerate(apart):
        mine = packed[batch.segment_ids == number]
        torch.testing.assert_close(mine, alone, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(layouts=st.lists(SEGMENTS, min_size=1, max_size=3))
def test_an_image_stored_once_for_all_its_places_changes_nothing(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    layouts: list[list[int | str]],
) -> None:
    documents = [make([*segments, 3, 1, 3], image_of) for segments in layouts]
    every, distinct = (
        logits_of(either, prefix_processor(documents, distinct_images=d)) for d in (False, True)
    )
    for one, other in zip(every, distinct, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(segments=SEGMENTS, max_length=st.integers(2, 20))
def test_a_document_that_is_cut_gives_the_logits_of_its_beginning(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    segments: list[int | str],
    max_length: int,
) -> None:
    document = make(segments, image_of)
    whole = logits_of(either, prefix_processor([document], complete=True))[0]
    cut = logits_of(either, prefix_processor([document], complete=True, max_length=max_length))[0]
    torch.testing.assert_close(cut, whole[: len(cut)], atol=TOLERANCE, rtol=TOLERANCE)


def test_the_processor_writes_a_mark_per_media_token_and_all_point_to_their_image(
    prefix_processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    batch = prefix_processor([make([0, "a", 1], image_of)])
    marks = batch.input_ids == prefix_processor.image_token_id
    assert batch.media_index.tolist() == [[-1, 0, 0, 0, 0, 1, 1, 1]]
    assert marks.tolist() == [[False, True, True, True, False, True, True, True]]


# ---- the language model alone


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 24},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "query_pre_attn_scalar": 8},
    "gpt2": {"n_positions": 64},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False, "dropout": 0.0},
    "mpt": {"max_seq_len": 64, "expansion_ratio": 2},
    "bloom": {},
}


@pytest.fixture(params=sorted(FAMILIES))
def joined(request: pytest.FixtureRequest, vision_directory: Any) -> VisionLanguageModel:
    """A random language model of the family, with `<image>` behind its 60 words."""
    sizes = {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    language = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(request.param, **{**sizes, **FAMILIES[request.param]})
    )
    tower, vision = load_vision(VisionConfig(str(vision_directory)))
    config = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower_to_dict(tower),
        connector={
            "depth": 1,
            "latents": 2,
            "heads": 2,
            "dim_head": 4,
            "ff_mult": 1,
            "width": language.get_input_embeddings().weight.shape[1],
        },
        fusion={"name": "prefix"},
        image_token_id=60,
        first_new_token=60,
        new_tokens=1,
    )
    return VisionLanguageModel(config, vision=vision, language=language).eval()


@torch.no_grad()
def test_without_images_the_logits_are_the_language_models_own_bit_for_bit(
    joined: VisionLanguageModel,
) -> None:
    ids = torch.tensor([[3, 4, 5, 6], [0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    alone = AutoModelForCausalLM.from_config(joined.config.language_config()).eval()
    state = joined.language.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    theirs = alone(
        ids, attention_mask=mask, **(positions if "position_ids" in joined.accepted else {})
    ).logits
    assert torch.equal(joined(ids, attention_mask=mask).logits[..., :60], theirs)
    added = set(state) - set(alone.state_dict())
    assert {key.rsplit(".", 1)[-1] for key in added} == {"new_rows"}


@torch.no_grad()
def test_media_tokens_stand_where_their_embeddings_would(joined: VisionLanguageModel) -> None:
    """An image whose tokens are the embeddings of two words reads as these words."""
    tokens = joined.get_input_embeddings()(torch.tensor([[11, 12], [13, 14]]))
    spliced = joined(
        torch.tensor([[3, 60, 60, 5, 60, 60]]),
        media_index=torch.tensor([[-1, 1, 1, 1, 0, 0]]),
        media=MediaCache(media=tokens),
    )
    written = joined(torch.tensor([[3, 13, 14, 5, 11, 12]]))
    torch.testing.assert_close(spliced.logits, written.logits, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without(joined: VisionLanguageModel) -> None:
    batch = {
        "input_ids": torch.tensor([[60, 60, 5, 60, 60, 8], [0, 0, 9, 60, 60, 11]]),
        "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
        "media_index": torch.tensor([[0, 0, 0, 1, 1, 1], [-1, -1, -1, 2, 2, 2]]),
        "pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
    }
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    cached, full = (joined.generate(**batch, **options, use_cache=c) for c in (True, False))
    assert torch.equal(cached, full)


# ---- training


@pytest.mark.parametrize("segments", [[0, "ab"], ["ab"]], ids=["with an image", "text only"])
def test_every_trained_parameter_gets_a_gradient(
    either: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: ImageOf,
    segments: list[int | str],
) -> None:
    batch = prefix_processor([make(segments, image_of)], complete=True)
    either.train()(**batch).loss.backward()
    assert {n.split(".")[0] for n, p in either.named_parameters() if p.requires_grad} == {
        "connector",
        "language",
    }
    assert [n for n, p in either.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    assert all(torch.isfinite(p.grad).all() for p in either.parameters() if p.grad is not None)
    assert any(p.grad.any() for p in either.connector.parameters()) == (0 in segments)  # type: ignore[union-attr]


def test_a_text_only_training_batch_has_the_loss_of_evaluation(
    either: VisionLanguageModel, prefix_processor: VisionLanguageProcessor
) -> None:
    batch = prefix_processor([Document(["abc"])], complete=True)
    evaluated, trained = either(**batch), either.train()(**batch)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, evaluated.loss)


def test_training_changes_what_trains_the_new_rows_too_and_nothing_else(
    prefix_model: VisionLanguageModel, prefix_processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    before, trained = (
        frozen_sha256(prefix_model),
        copy.deepcopy({n: p for n, p in prefix_model.named_parameters() if p.requires_grad}),
    )
    optimizer = torch.optim.AdamW([p for p in prefix_model.parameters() if p.requires_grad], lr=0.1)
    prefix_model.train()(
        **prefix_processor([make([0, "ab", 1, "c"], image_of)], complete=True)
    ).loss.backward()
    optimizer.step()
    assert frozen_sha256(prefix_model) == before
    after = dict(prefix_model.named_parameters())
    assert any(name.endswith("new_rows") for name in trained)
    assert [name for name, value in trained.items() if torch.equal(value, after[name])] == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(
    either: VisionLanguageModel, prefix_processor: VisionLanguageProcessor, image_of: ImageOf, reentrant: bool
) -> None:
    batch = prefix_processor([make([0, "ab", 1, "c"], image_of)], complete=True)
    plain, recomputed = copy.deepcopy(either).train(), either.train()
    plain(**batch).loss.backward()
    recomputed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    recomputed(**batch).loss.backward()
    for (name, p), q in zip(recomputed.named_parameters(), plain.named_parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and q[1].grad is not None, name
            torch.testing.assert_close(p.grad, q[1].grad, msg=name)


# ---- what is refused


def test_marks_that_do_not_fit_their_images_are_refused_by_row(
    either: VisionLanguageModel, prefix_processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    batch = prefix_processor([Document(["abcdefg"]), make([0, "a", 1], image_of)], padding_side="right")
    fields = {**batch}
    image = prefix_processor.image_token_id
    too_few = batch.input_ids.clone()
    too_few[1, 1] = 7
    late = batch.media_index.clone()
    late[1, 5] = 0
    too_many = batch.input_ids.clone()
    too_many[0, 2:5] = image
    for broken, found in (
        ({"input_ids": too_few}, "row 1 has 5 <image> ids and reads 2 images; expected 3 ids for each"),
        ({"input_ids": batch.input_ids.where(batch.input_ids != image, 7)}, "row 1 has 0 <image> ids"),
        ({"media_index": late}, "row 1 has 6 <image> ids and reads 2 images"),
        ({"input_ids": too_many}, "row 0 has 3 <image> ids and reads 0 images"),
    ):
        with pytest.raises(FlamingoError, match=found):
            either(**{**fields, **broken})


def test_the_processor_of_another_fusion_is_refused(
    either: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: ImageOf
) -> None:
    with pytest.raises(FlamingoError, match=r"row 0 has 3 <image> ids.*template\.image_tokens=3"):
        either(**processor([make([0, 1, 2], image_of)]))


def test_a_connector_of_another_width_is_refused(prefix_config: dict[str, Any]) -> None:
    config = {**prefix_config, "connector": {**prefix_config["connector"], "width": None}}
    with pytest.raises(
        FlamingoError, match=r"tokens of width 24.*embeddings of width 32; set connector\.width=32"
    ):
        build(config)
