"""Batches by number: an order that a seed decides, shared out over ranks."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.datamodule import Batches

DOCUMENTS = 23


@pytest.fixture(scope="module")
def directory(shards: Path) -> Path:
    return shards


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 9), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_visits_each_document_once(
    directory: Path, processor: VisionLanguageProcessor, batch_size: int, seed: int, epochs: int
) -> None:
    batches = Batches(directory, processor, batch_size, seed)
    visited = [i for number in range(-(-epochs * DOCUMENTS // batch_size)) for i in batches.indices(number)]
    for epoch in range(epochs):
        assert sorted(visited[epoch * DOCUMENTS : (epoch + 1) * DOCUMENTS]) == list(range(DOCUMENTS))


@settings(max_examples=20, deadline=None)
@given(world_size=st.integers(1, 4), number=st.integers(0, 20))
def test_ranks_share_a_global_batch(
    directory: Path, processor: VisionLanguageProcessor, world_size: int, number: int
) -> None:
    whole = Batches(directory, processor, 3 * world_size, 0).indices(number)
    shares = [
        Batches(directory, processor, 3, 0, rank=rank, world_size=world_size).indices(number)
        for rank in range(world_size)
    ]
    assert sum(shares, []) == whole


def test_orders_differ_between_seeds_and_epochs(directory: Path, processor: VisionLanguageProcessor) -> None:
    first, second = (Batches(directory, processor, DOCUMENTS, seed) for seed in (0, 1))
    assert first.indices(0) != first.indices(1) != second.indices(1)


def test_a_packed_batch_has_the_same_documents_in_fewer_rows(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    apart, packed = (Batches(directory, processor, 8, 0, pack=pack)[0] for pack in (False, True))
    assert not isinstance(apart, str) and not isinstance(packed, str)
    assert packed.documents == apart.documents == 8 and len(packed) < 8
    assert sorted(packed.input_ids[packed.attention_mask]) == sorted(apart.input_ids[apart.attention_mask])


def test_a_batch_is_complete_and_cut_at_the_longest_length(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    batch = Batches(directory, processor, 8, 0, max_length=9)[0]
    assert not isinstance(batch, str)
    assert batch.input_ids.shape == (8, 9)
    assert int(batch.media_index.max()) + 1 == len(batch.pixel_values)
    assert (batch.labels != -100).any(dim=1).all()
