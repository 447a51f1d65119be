"""A batch: its invariants, and slicing that takes the right images along."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.batch import Batch
from flamingo_lite.errors import FlamingoError


def make_batch(images_per_row: list[int], length: int = 8, with_optional: bool = False) -> Batch:
    """Row r has its images at positions 1, 2, ...; pixel value i marks image i."""
    shape = (len(images_per_row), length)
    media_index = torch.full(shape, -1)
    media_first = torch.full(shape, -1)
    first = 0
    for row, count in enumerate(images_per_row):
        for image in range(count):
            media_index[row, 1 + image :] = first + image
        if count:
            media_first[row, 1:] = first
        first += count
    return Batch(
        input_ids=torch.arange(shape[0] * length).view(shape),
        attention_mask=torch.ones(shape, dtype=torch.bool),
        position_ids=torch.arange(length).repeat(shape[0], 1),
        labels=torch.zeros(shape, dtype=torch.int64),
        pixel_values=torch.arange(first, dtype=torch.float32)[:, None, None, None].expand(first, 3, 2, 2),
        media_index=media_index,
        segment_ids=torch.zeros(shape, dtype=torch.int64) if with_optional else None,
        media_first=media_first if with_optional else None,
    )


def images_seen(batch: Batch, name: str = "media_index") -> list[list[int]]:
    """For each position the pixel value of its image, -1 for none."""
    return [
        [-1 if i < 0 else int(batch.pixel_values[i, 0, 0, 0]) for i in row] for row in batch[name].tolist()
    ]


def test_a_batch_unpacks_into_its_fields_that_are_present() -> None:
    batch = make_batch([1, 0])
    assert set({**batch}) == {
        *("input_ids", "attention_mask", "position_ids", "labels", "pixel_values", "media_index"),
    }
    assert "segment_ids" in {**make_batch([1], with_optional=True)}
    with pytest.raises(KeyError):
        _ = batch["segment_ids"]


def test_a_batch_without_images_has_no_padding_images() -> None:
    batch = make_batch([0, 0])
    assert batch.pixel_values.shape[0] == 0
    assert (batch.media_index == -1).all()


@pytest.mark.parametrize("last", [-2, 0, 2])
def test_a_media_index_that_does_not_fit_the_images_is_refused(last: int) -> None:
    batch = make_batch([2])
    wrong = batch.media_index.clone()
    wrong[wrong == 1] = last
    with pytest.raises(FlamingoError, match="media_index"):
        Batch(**{**batch, "media_index": wrong})


@pytest.mark.parametrize("name", ["labels", "media_index", "attention_mask", "position_ids"])
def test_a_field_of_another_shape_is_refused_by_name(name: str) -> None:
    batch = make_batch([1, 1])
    with pytest.raises(FlamingoError, match=name):
        Batch(**{**batch, name: batch[name][:, 1:]})


def test_pixel_values_with_a_batch_dimension_are_refused() -> None:
    batch = make_batch([1])
    with pytest.raises(FlamingoError, match="pixel_values"):
        Batch(**{**batch, "pixel_values": batch.pixel_values[None]})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
def test_chosen_rows_see_the_same_images_as_before(images_per_row: list[int], data: st.DataObject) -> None:
    batch = make_batch(images_per_row, with_optional=True)
    rows = data.draw(st.lists(st.integers(0, len(images_per_row) - 1), max_size=6))
    chosen = batch.rows(rows)
    assert chosen.input_ids.tolist() == [batch.input_ids[r].tolist() for r in rows]
    for name in ("media_index", "media_first"):
        assert images_seen(chosen, name) == [images_seen(batch, name)[r] for r in rows]
    assert len(chosen.pixel_values) == sum(images_per_row[r] for r in set(rows))


def test_rows_takes_slices_and_tensors() -> None:
    batch = make_batch([1, 2, 0])
    for rows in (slice(1, None), torch.tensor([1, 2]), torch.tensor([False, True, True]).nonzero()[:, 0]):
        assert images_seen(batch.rows(rows)) == images_seen(batch)[1:]


def test_rows_that_share_an_image_still_share_it() -> None:
    batch = make_batch([1, 0, 0])
    shared = Batch(**{**batch, "media_index": batch.media_index[[0, 0, 1]]})
    assert len(shared.rows([0, 1]).pixel_values) == 1


def test_moving_a_batch_keeps_its_types() -> None:
    batch = make_batch([1], with_optional=True).to("cpu", non_blocking=True)
    assert batch.attention_mask.dtype is torch.bool
    assert batch.input_ids.dtype is torch.int64
    assert batch.pixel_values.is_floating_point()
    assert len(batch) == 1


def test_a_batch_on_a_device_is_not_read_back() -> None:
    batch = make_batch([2]).to("meta")  # reading a value of a meta tensor would raise
    assert batch.media_index.device.type == "meta"
