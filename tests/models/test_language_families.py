"""The join in language models of many families: what holds for one must hold for all, or be refused by
name. What these tests find is the table in docs/language_models.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from language_families import (
    FAMILIES,
    FIRST_NEW,
    NEW,
    Family,
    join,
    random_language,
    without_dropout,
)
from language_table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import frozen_sha256

TOLERANCE = 1e-5

SetGates = Callable[[VisionLanguageModel, float], VisionLanguageModel]
Batch = dict[str, Tensor]
Trained = tuple[VisionLanguageModel, torch.optim.Optimizer]


@pytest.fixture(scope="module", params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def joined(family: Family, vision_directory: Path, set_gates: SetGates) -> VisionLanguageModel:
    """Gates open, in evaluation mode; shared by the tests of a family, so they change copies only."""
    return set_gates(join(random_language(family), vision_directory), 0.7).eval()


@pytest.fixture(scope="module")
def trained(joined: VisionLanguageModel) -> Trained:
    """A copy after one step of AdamW, with weight decay, on what trains; and the optimizer."""
    model = without_dropout(copy.deepcopy(joined)).train()
    batch = two_rows()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    model.zero_grad()
    return model.eval(), optimizer


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What the tests of this run found, written to the docs at the end where that was asked for."""
    found = Table()
    yield found
    found.write_if_asked()


def two_rows() -> Batch:
    """Two rows, the second padded on the left, with two images each and new tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[60, 5, 61, 60, 7, 8, 64], [0, 0, 9, 60, 11, 60, 12]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]),
        "media_index": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [-1, -1, -1, 2, 2, 3, 3]]),
        "pixel_values": torch.randn(4, 3, 16, 16, generator=generator),
    }


def alone(batch: Batch, row: int) -> Batch:
    """A row of `two_rows` without its padding and without the other row's images."""
    first = 2 * row
    keep = batch["attention_mask"][row].bool()
    fields = {key: value[row, keep][None] for key, value in batch.items() if key != "pixel_values"}
    index = fields["media_index"]
    return {
        **fields,
        "media_index": index.where(index < 0, index - first),
        "pixel_values": batch["pixel_values"][first : first + 2],
    }


def padded_right(batch: Batch) -> Batch:
    """The rows of `two_rows` with the padding after the text."""
    return {key: value if key == "pixel_values" else _moved(key, value) for key, value in batch.items()}


def _moved(key: str, value: Tensor) -> Tensor:
    moved = value.clone()
    moved[1] = value[1].roll(-2)
    return moved


def packed(batch: Batch) -> Batch:
    """Both documents of `two_rows` in one row, two padded positions after them."""
    documents = [alone(batch, 0), alone(batch, 1)]
    lengths = [document["input_ids"].shape[1] for document in documents]
    second = documents[1]["media_index"]
    media_index = torch.cat((documents[0]["media_index"], second.where(second < 0, second + 2)), 1)
    pad = torch.zeros(1, 2, dtype=torch.int64)
    return {
        "input_ids": torch.cat([document["input_ids"] for document in documents] + [pad], 1),
        "attention_mask": torch.tensor([[1] * sum(lengths) + [0] * 2]),
        "segment_ids": torch.tensor([[0] * lengths[0] + [1] * lengths[1] + [-1] * 2]),
        "position_ids": torch.cat([torch.arange(n) for n in (*lengths, 2)])[None],
        "media_index": torch.cat((media_index, pad - 1), 1),
        "pixel_values": batch["pixel_values"],
    }


def test_gates_at_zero_leave_the_logits_of_known_words_bit_identical(
    name: str, family: Family, joined: VisionLanguageModel, set_gates: SetGates, table: Table
) -> None:
    batch = two_rows()
    batch["input_ids"] = batch["input_ids"].where(batch["input_ids"] < FIRST_NEW, 3)
    by_itself = AutoModelForCausalLM.from_config(family.config()).eval()
    state = joined.language.state_dict()
    by_itself.load_state_dict({key: state[key] for key in by_itself.state_dict()})
    positions = {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        ours = set_gates(copy.deepcopy(joined), 0.0)(**batch).logits
        theirs = by_itself(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **(positions if "position_ids" in joined.accepted else {}),
        ).logits
    assert torch.equal(ours[..., :FIRST_NEW], theirs[..., :FIRST_NEW])
    assert ours.shape[-1] == FIRST_NEW + NEW
    table.holds(name, joined, "gates at 0")


def test_the_join_adds_keys_and_changes_none(
    name: str, family: Family, joined: VisionLanguageModel, table: Table
) -> None:
    base = random_language(family).state_dict()
    ours = joined.language.state_dict()
    added = {key for key in ours if ".cross_attention." in key or key.endswith(".new_rows")}
    assert ours.keys() - added == base.keys()
    assert all(torch.equal(ours[key], base[key]) for key in base)
    table.holds(name, joined, "keys")


def test_checkpointing_changes_no_gradient(
    name: str, family: Family, joined: VisionLanguageModel, table: Table
) -> None:
    batch = two_rows() if family.refuses_packing else packed(two_rows())
    plain, recomputed = (without_dropout(copy.deepcopy(joined)).train() for _ in range(2))
    recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, recomputed):
        model.language.requires_grad_(True)
        model(**batch, labels=batch["input_ids"]).loss.backward()
    for (key, p), q in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=key)
    table.holds(name, joined, "checkpointing")


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_equals_generation_without(
    name: str, joined: VisionLanguageModel, table: Table, beams: int
) -> None:
    batch = two_rows()
    options = {
        "max_new_tokens": 5, "do_sample": False, "num_beams": beams, "eos_token_id": None,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    cached = joined.generate(**batch, **options, use_cache=True)
    full = joined.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached.sequences, full.sequences)
    for one, other in zip(cached.logits, full.logits, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
    table.holds(name, joined, "cached decoding")


def test_a_row_does_not_depend_on_its_padding_or_neighbours(
    name: str, joined: VisionLanguageModel, table: Table
) -> None:
    batch = two_rows()
    with torch.no_grad():
        by_itself = joined(**alone(batch, 1)).logits[0]
        left = joined(**batch).logits[1, 2:]
        right = joined(**padded_right(batch)).logits[1, :-2]
    torch.testing.assert_close(left, by_itself, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(right, by_itself, atol=TOLERANCE, rtol=TOLERANCE)
    table.holds(name, joined, "padding")


def test_the_loss_of_training_is_that_of_the_full_logits(joined: VisionLanguageModel) -> None:
    batch = two_rows()
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == FIRST_NEW, -100)
    model = without_dropout(copy.deepcopy(joined)).train()
    out = model(**batch, labels=labels)
    assert out.logits is None
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.testing.assert_close(out.loss, model.eval()(**batch, labels=labels).loss)


def test_of_the_embeddings_only_the_new_rows_train(
    name: str, family: Family, joined: VisionLanguageModel, trained: Trained, table: Table
) -> None:
    model, optimizer = trained
    assert frozen_sha256(model) == frozen_sha256(joined)
    owners = ["input"] if family.embeddings_are_tied else ["input", "output"]
    names = {parameter: key for key, parameter in model.language.named_parameters()}
    in_state = [names[p] for p in optimizer.state if p in names]
    rows = [key for key in in_state if ".cross_attention." not in key]
    assert len(rows) == len(owners) and all(key.endswith(".new_rows") for key in rows)
    before, after = dict(joined.language.named_parameters()), dict(model.language.named_parameters())
    for key in rows:
        assert after[key].shape[0] == NEW and not torch.equal(after[key], before[key])
    table.holds(name, joined, "new rows")


def test_saving_and_loading_what_was_trained_is_bit_identical(
    name: str, joined: VisionLanguageModel, trained: Trained, table: Table, tmp_path: Path
) -> None:
    model, _ = trained
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path).eval()
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    with torch.no_grad():
        assert torch.equal(loaded(**two_rows()).logits, model(**two_rows()).logits)
    assert loaded.config.text_config._attn_implementation == joined.config.text_config._attn_implementation
    table.holds(name, joined, "save and load")


@pytest.mark.parametrize("attention", ["as it comes", "eager"])
def test_packing_keeps_documents_apart_or_is_refused_by_name(
    name: str,
    family: Family,
    joined: VisionLanguageModel,
    vision_directory: Path,
    set_gates: SetGates,
    table: Table,
    attention: str,
) -> None:
    batch = two_rows()
    model = joined
    if attention == "eager":
        model = set_gates(join(random_language(family, "eager"), vision_directory), 0.7).eval()
    if family.refuses_packing:
        with pytest.raises(FlamingoError, match=f"not supported for {family.model_type}"):
            model(**packed(batch))
        table.holds(name, joined, "packing", "refused")
        return
    with torch.no_grad():
        together = model(**packed(batch)).logits[0]
        apart = [model(**alone(batch, row)).logits[0] for row in (0, 1)]
    for mine, expected in zip(together[:-2].split([len(a) for a in apart]), apart, strict=True):
        torch.testing.assert_close(mine, expected, atol=TOLERANCE, rtol=TOLERANCE)
    table.holds(name, joined, "packing")


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_in_bfloat16_no_packed_document_reads_another_or_it_is_refused(
    family: Family, joined: VisionLanguageModel, precision: str
) -> None:
    model = copy.deepcopy(joined).to(torch.bfloat16) if precision == "bfloat16" else joined
    batch = packed(two_rows())
    if family.refuses_packing:
        with pytest.raises(FlamingoError, match=f"not supported for {family.model_type}"):
            model(**batch)
        return
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, :7] = 33
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with torch.no_grad(), autocast:
        one, other = (model(**b).logits[0] for b in (batch, changed))
    assert torch.isfinite(one).all()
    assert not torch.equal(one[:7], other[:7])
    assert torch.equal(one[7:], other[7:])


def test_the_table_in_the_docs_is_what_these_tests_found(table: Table) -> None:
    """Last in this file: whatever ran before must stand in the docs as it was found."""
    assert table.differences() == []
