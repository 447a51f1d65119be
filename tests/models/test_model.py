"""What the joined model promises, whatever the layout of texts and images (design.md, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from flamingo_lite.batch import Batch
from flamingo_lite.data.packing import pack
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.processing import VisionLanguageProcessor

TOLERANCE = 1e-5

SetGates = Callable[[VisionLanguageModel, float], VisionLanguageModel]

# A document as drawn: a number is that image, a string is that text.
SEGMENTS = st.lists(
    st.one_of(st.integers(0, 3), st.sampled_from(["a", "bc", " = 8"])), min_size=1, max_size=6
)
MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(segments: list[int | str], image_of: Callable[[int], Image]) -> Document:
    return Document([image_of(s) if isinstance(s, int) else Text(s) for s in segments])


def logits_of(model: VisionLanguageModel, batch: Batch) -> list[Tensor]:
    """Each row's logits without padding."""
    with torch.no_grad():
        logits = model(**batch).logits
    return [row[mask] for row, mask in zip(logits, batch.attention_mask, strict=True)]


@pytest.fixture(params=["immediate", "all_previous"])
def either(
    request: pytest.FixtureRequest, model_config: dict[str, Any], set_gates: SetGates
) -> VisionLanguageModel:
    """A model of either kind of seeing, gates open."""
    torch.manual_seed(2)
    config = {**model_config, "fusion": {**model_config["fusion"], "sees": request.param}}
    return set_gates(build(config), 0.7).eval()


@MANY
@given(first=SEGMENTS, second=SEGMENTS)
def test_with_gates_at_zero_logits_are_bit_identical(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    set_gates: SetGates,
    language_directory: Any,
    first: list[int | str],
    second: list[int | str],
) -> None:
    alone = _language_alone(str(language_directory))
    set_gates(model, 0.0)
    batch = processor([make(first, image_of), make(second, image_of)])
    # <image> is no word of the language model alone: replace the mark, which only its own column would show.
    ids = batch.input_ids.masked_fill(batch.input_ids == processor.image_token_id, 5)
    with torch.no_grad():
        ours = model(**{**batch, "input_ids": ids}).logits
        theirs = alone(ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)


_ALONE: dict[str, Any] = {}


def _language_alone(directory: str) -> Any:
    if directory not in _ALONE:
        _ALONE[directory] = AutoModelForCausalLM.from_pretrained(directory).eval()
    return _ALONE[directory]


def test_the_language_model_keeps_its_keys_and_weights(
    model: VisionLanguageModel, language_directory: Any
) -> None:
    ours = model.language.state_dict()
    for key, value in _language_alone(str(language_directory)).state_dict().items():
        assert torch.equal(ours[key], value), key
    added = set(ours) - set(_language_alone(str(language_directory)).state_dict())
    assert all(".cross_attention." in key or key.endswith(".new_rows") for key in added)


@MANY
@given(segments=SEGMENTS, others=st.lists(SEGMENTS, max_size=2))
def test_padding_side_and_neighbours_change_nothing(
    either: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    segments: list[int | str],
    others: list[list[int | str]],
) -> None:
    documents = [make(s, image_of) for s in (segments, *others)]
    alone = logits_of(either, processor(documents[:1]))[0]
    for side in ("left", "right"):
        together = logits_of(either, processor(documents, padding_side=side))[0]
        torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(before=SEGMENTS, after=SEGMENTS, changed=SEGMENTS)
def test_nothing_depends_on_what_comes_later(
    either: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    before: list[int | str],
    after: list[int | str],
    changed: list[int | str],
) -> None:
    length = len(processor.encode(make(before, image_of)))
    one, other = (
        logits_of(either, processor([make([*before, *rest], image_of)]))[0][:length]
        for rest in (after, changed)
    )
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_image_before_matters(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    one, other = (logits_of(model, processor([make([i, "abc"], image_of)]))[0] for i in (0, 1))
    assert (one[-1] - other[-1]).abs().max() > 1e-2


@MANY
@given(segments=SEGMENTS, position=st.integers(1, 5))
def test_cached_decoding_equals_full_recomputation(
    either: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    segments: list[int | str],
    position: int,
) -> None:
    prompts = processor([make(segments, image_of), make([2, "abcdef"], image_of)])
    fields = {name: prompts[name] for name in ("input_ids", "attention_mask", "pixel_values", "media_index")}
    options = {
        "max_new_tokens": position,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached = either.generate(**fields, **options, use_cache=True)
    full = either.generate(**fields, **options, use_cache=False)
    assert torch.equal(cached.sequences, full.sequences)
    for a, b in zip(cached.logits, full.logits, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


@MANY
@given(layouts=st.lists(SEGMENTS, min_size=1, max_size=4))
def test_packing_keeps_documents_apart(
    either: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    layouts: list[list[int | str]],
) -> None:
    documents = [make(segments, image_of) for segments in layouts]
    apart = logits_of(either, processor(documents, padding_side="right"))
    encoded = processor.encode_all(documents)
    batch = processor.collate(encoded, places=pack([len(document) for document in encoded]))
    with torch.no_grad():
        packed = either(**batch).logits
    assert batch.segment_ids is not None
    for number, alone in enumerate(apart):
        mine = packed[batch.segment_ids == number]
        torch.testing.assert_close(mine, alone, atol=TOLERANCE, rtol=TOLERANCE)


def test_positions_restart_in_packed_rows_that_bring_none(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    documents = [make([0, "abcdef", 1, "bc"], image_of), make(["a", 2], image_of), make(["bc"], image_of)]
    encoded = processor.encode_all(documents)
    batch = processor.collate(encoded, places=pack([len(document) for document in encoded]))
    with torch.no_grad():
        given, derived = (model(**fields).logits for fields in (batch, {**batch, "position_ids": None}))
    assert torch.equal(given[batch.attention_mask], derived[batch.attention_mask])


@pytest.mark.parametrize("segments", [[0, "ab"], ["ab"]], ids=["with an image", "text only"])
def test_every_trained_parameter_gets_a_gradient(
    either: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    segments: list[int | str],
) -> None:
    batch = processor([make(segments, image_of)], complete=True)
    either.train()(**batch).loss.backward()
    assert [n for n, p in either.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in either.named_parameters() if not p.requires_grad and p.grad is not None] == []
    assert all(torch.isfinite(p.grad).all() for p in either.parameters() if p.grad is not None)


def test_a_text_only_training_batch_has_the_loss_of_evaluation(
    model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    batch = processor([Document(["abc"])], complete=True)
    evaluated = model(**batch)
    trained = model.train()(**batch)
    assert trained.logits is None and evaluated.logits is not None
    torch.testing.assert_close(trained.loss, evaluated.loss)


def test_nothing_trained_on_is_a_loss_of_zero(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    batch = processor([make([0, "ab"], image_of)], complete=True)
    batch.labels.fill_(-100)
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss == 0
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_training_changes_what_trains_and_nothing_else(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    before, trained = frozen_sha256(model), copy.deepcopy([p for p in model.parameters() if p.requires_grad])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**processor([make([0, "ab", 1, "c"], image_of)], complete=True)).loss.backward()
    optimizer.step()
    assert frozen_sha256(model) == before
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(after, trained, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    reentrant: bool,
) -> None:
    batch = processor([make([0, "ab", 1, "c"], image_of)], complete=True)
    plain, recomputed = copy.deepcopy(model).train(), model.train()
    plain(**batch).loss.backward()
    recomputed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert all(block.gradient_checkpointing for block in recomputed.blocks.values())
    recomputed(**batch).loss.backward()
    for (name, p), q in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and q.grad is not None, name
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_copy_reads_its_own_media(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    set_gates: SetGates,
) -> None:
    batch = processor([make([0, "ab"], image_of)])
    twin = copy.deepcopy(model)
    before = logits_of(twin, batch)[0]
    set_gates(model, 0.0)
    assert torch.equal(logits_of(twin, batch)[0], before)
    assert not torch.equal(logits_of(model, batch)[0], before)


def test_num_items_divides_the_summed_loss(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    batch = processor([make([0, "ab"], image_of)], complete=True)
    trained = int((batch.labels[:, 1:] != -100).sum())
    by_default, by_ten = model.train()(**batch).loss, model(**batch, num_items=10).loss
    torch.testing.assert_close(by_default * trained, by_ten * 10)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_loss_is_the_weighted_mean_of_the_token_losses(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    is_training: bool,
) -> None:
    batch = processor([make([0, "ab"], image_of), make(["cde"], image_of)], complete=True)
    weights = torch.rand(batch.labels.shape)
    out = model.train(is_training)(**batch, loss_weights=weights)
    is_trained = F.pad(batch.labels[:, 1:] != -100, (1, 0))
    assert torch.equal(out.token_losses > 0, is_trained)
    expected = (out.token_losses * weights)[is_trained].sum() / weights[is_trained].sum()
    torch.testing.assert_close(out.loss, expected)
    by_ten = model(**batch, loss_weights=weights, num_items=10).loss
    torch.testing.assert_close(by_ten * 10, (out.token_losses * weights)[is_trained].sum())


def test_media_that_does_not_fit_is_refused(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    batch = processor([make([0, "ab"], image_of)])
    doubled = {
        "input_ids": batch.input_ids.repeat(2, 1),
        "pixel_values": batch.pixel_values.repeat(2, 1, 1, 1),
        "media_index": batch.media_index.repeat(2, 1),
    }
    with pytest.raises(FlamingoError, match="there are 2 images"):
        model(**doubled)
    with pytest.raises(FlamingoError, match="there are 2 images"):
        model.generate(**doubled, max_new_tokens=1)
    with pytest.raises(FlamingoError, match=r"the vision encoder takes \(16, 16\)"):
        model(batch.input_ids, media_index=batch.media_index, pixel_values=torch.zeros(1, 3, 8, 8))


def test_data_parallel_is_refused_by_name(model: VisionLanguageModel) -> None:
    with pytest.raises(FlamingoError, match="DataParallel slices a batch"):
        model._replicate_for_data_parallel()  # what torch's DataParallel asks of every module first


def test_token_embeddings_cannot_be_resized(model: VisionLanguageModel) -> None:
    with pytest.raises(FlamingoError, match="shift the ids"):
        model.resize_token_embeddings(300)


def test_an_image_mark_is_never_generated(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    prompt = processor([make([0, "ab"], image_of)])
    # Tied: the column of <image> wins everywhere once its row points where the hidden states do.
    with torch.no_grad():
        hidden = model.language.base_model(prompt.input_ids).last_hidden_state[0, -1]
        model.get_input_embeddings().new_rows.copy_(100 * hidden)
    assert model(**prompt).logits[0, -1].argmax() == processor.image_token_id
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert processor.image_token_id not in out[0, prompt.input_ids.shape[1] :]


def test_beams_share_the_images_and_equal_a_search_without_cache(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    prompt = processor([make([0, "ab", 1, "c"], image_of), make(["xy"], image_of)])
    seen = []
    handle = model.vision.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    beams = model.generate(**prompt, max_new_tokens=4, num_beams=3, do_sample=False)
    handle.remove()
    assert seen == [2]
    slow = model.generate(**prompt, max_new_tokens=4, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, slow)
