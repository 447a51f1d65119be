"""A recipe to a batch: what the documents are alone, each in its place; what cannot be used leaves a gap."""

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flamingo_lite.data.batches import Packing, Recipe, Row, Slot, packed_rows
from flamingo_lite.data.lengths import Measure, index_lengths
from flamingo_lite.data.prepared import PreparedBatch
from flamingo_lite.data.reader import Reader, Source
from flamingo_lite.data.shards import Shards, write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.processing import VisionLanguageProcessor

ImageOf = Callable[[int], Image]
ROW, IMAGES = 40, 4
DOCUMENTS = 20


def document(number: int, image_of: ImageOf) -> Document:
    images = [image_of(number * 3 + i) for i in range(number % 4)]
    return Document([*images, Text("ab" * (number % 7 + 1), loss=number != 5)], {"number": number})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, image_of: ImageOf) -> Path:
    directory = tmp_path_factory.mktemp("reader") / "shards"
    write_shards(((f"{i:03d}", document(i, image_of)) for i in range(DOCUMENTS)), directory, 8)
    return directory


def reader_of(directory: Path, processor: VisionLanguageProcessor, packed: bool, **changes: float) -> Reader:
    sources = [
        Source(name, Shards(directory), processor.template, changes.get(name, 1.0)) for name in ("one", "two")
    ]
    if not packed:
        return Reader(sources, processor, ROW)
    return Reader(sources, processor, ROW, ROW, IMAGES)


def recipe_of(reader: Reader, numbers: list[int], sources: list[int] | None = None) -> Recipe:
    owners = np.array(sources or [0] * len(numbers))
    if reader.row_tokens is None:
        return Recipe(tuple((Slot(*pair),) for pair in zip(owners.tolist(), numbers, strict=False)))
    lengths = index_lengths(
        reader.sources[0].shards, Measure(reader.processor, reader.processor.template, ROW)
    )
    packing = Packing(99, ROW, IMAGES, lambda sources, numbers: lengths.take(numbers))
    return Recipe(tuple(packed_rows(owners, np.array(numbers), packing, (0, 0))))


def check_places(batch: PreparedBatch, rows: tuple[Row, ...], reader: Reader, missing: set[int]) -> None:
    """Every document that is there stands in its planned place, as it is alone; all else is padding."""
    kept = [[slot for slot in row if slot.number not in missing] for row in rows]
    kept = [row for row in kept if row]
    assert len(batch.batch) == len(kept)
    used = torch.zeros_like(batch.batch.attention_mask)
    pixels = batch.to("cpu").batch.pixel_values
    for number, row in enumerate(kept):
        for slot in row:
            key, document = reader.sources[slot.source].shards[slot.number]
            alone = reader.processor(document, complete=True, max_length=ROW)
            here = (number, slice(slot.start, slot.start + alone.input_ids.shape[1]))
            for name in ("input_ids", "labels", "position_ids"):
                assert torch.equal(batch.batch[name][here], alone[name][0])
            seen = batch.batch.media_index[here]
            assert torch.equal(seen >= 0, alone.media_index[0] >= 0)
            assert torch.equal(pixels[seen[seen >= 0]], alone.pixel_values[alone.media_index[0][seen >= 0]])
            assert (batch.source_ids[here] == slot.source).all()
            used[here] = True
    assert torch.equal(used, batch.batch.attention_mask)
    assert (batch.source_ids[~used] == -1).all()


@pytest.mark.parametrize("packed", [False, True])
def test_documents_stand_in_their_places_as_they_are_alone(
    directory: Path, processor: VisionLanguageProcessor, packed: bool
) -> None:
    reader = reader_of(directory, processor, packed)
    recipe = recipe_of(reader, [11, 0, 3, 7, 8, 12, 2], [0, 1, 0, 0, 1, 1, 0])
    batch = reader[recipe]
    assert isinstance(batch, PreparedBatch)
    check_places(batch, recipe.rows, reader, set())
    assert batch.rejects == () and batch.outcomes == (True,) * 7 and batch.documents == 7
    assert {(used.source, used.key) for used in batch.samples} == {
        *(("one", key) for key in ("011", "003", "007", "002")),
        *(("two", key) for key in ("000", "008", "012")),
    }
    assert batch.tokens == int(batch.batch.attention_mask.sum())
    assert batch.capacity == (len(recipe.rows) * ROW if packed else None)


def spoil_image(directory: Path, number: int) -> None:
    """Breaks the first image of a sample, without moving anything."""
    shards = Shards(directory)
    shard, within = shards.place(number)
    path = directory / shards.manifest.shards[shard].name
    data = bytearray(path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        member = next(m for m in tar if m.name.startswith(f"{number:03d}.0."))
    data[member.offset_data + 30 : member.offset_data + member.size] = bytes(member.size - 30)
    path.write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be_used_leaves_its_place_and_nothing_moves(
    tmp_path: Path, image_of: ImageOf, processor: VisionLanguageProcessor, packed: bool
) -> None:
    directory = tmp_path / "shards"
    write_shards(((f"{i:03d}", document(i, image_of)) for i in range(DOCUMENTS)), directory, 8)
    reader = reader_of(directory, processor, packed)
    recipe = recipe_of(reader, list(range(DOCUMENTS)))
    spoil_image(directory, 7)
    os.truncate(directory / "shard-000002.tar", 0)
    batch = reader[recipe]
    assert isinstance(batch, PreparedBatch)
    missing = {5, 7, 16, 17, 18, 19}
    check_places(batch, recipe.rows, reader, missing)
    planned = [slot.number for row in recipe.rows for slot in row]
    assert batch.outcomes == tuple(number not in missing for number in planned)
    found = {reject.key: reject.reason for reject in batch.rejects}
    assert found == {"005": "no_labels", "007": "image", **{f"#{i}": "truncated" for i in range(4)}}
    assert {reject.shard for reject in batch.rejects if reject.reason == "image"} == {"shard-000000.tar"}


def test_a_document_with_too_many_images_for_a_row_is_a_reject(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    reader = reader_of(directory, processor, True)
    reader.row_images = 2
    lengths = index_lengths(reader.sources[0].shards, Measure(processor, processor.template, ROW))
    packing = Packing(99, ROW, 2, lambda sources, numbers: lengths.take(numbers))
    batch = reader[Recipe(tuple(packed_rows(np.zeros(3, int), np.array([1, 2, 3]), packing, (0, 0))))]
    assert isinstance(batch, PreparedBatch)
    assert [(r.key, r.reason) for r in batch.rejects] == [("003", "images")]
    assert sorted(used.key for used in batch.samples) == ["001", "002"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [(), ((Slot(0, 5, 0, 0),),)], ids=["no rows", "a reject alone"])
def test_where_nothing_is_left_there_is_one_row_without_labels(
    directory: Path, processor: VisionLanguageProcessor, packed: bool, rows: tuple[Row, ...], model
) -> None:
    reader = reader_of(directory, processor, packed)
    batch = reader[Recipe(rows)]
    assert isinstance(batch, PreparedBatch)
    assert len(batch.batch) == 1 and (batch.batch.labels == -100).all() and batch.documents == 0
    assert (batch.batch.segment_ids is not None) == packed
    loss = model.train()(**batch.batch, num_items=1).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_of_sources_stand_at_their_tokens(
    directory: Path, processor: VisionLanguageProcessor, packed: bool
) -> None:
    reader = reader_of(directory, processor, packed, two=0.25)
    batch = reader[recipe_of(reader, [1, 2, 3, 4], [0, 1, 1, 0])]
    assert isinstance(batch, PreparedBatch) and batch.loss_weights is not None
    for source, weight in ((0, 1.0), (1, 0.25), (-1, 0.0)):
        assert (batch.loss_weights[batch.source_ids == source] == weight).all()
    assert (batch.source_ids == 1).any() and (batch.source_ids == 0).any()


def test_weights_that_are_all_one_are_none(directory: Path, processor: VisionLanguageProcessor) -> None:
    batch = reader_of(directory, processor, False)[Recipe(((Slot(0, 1),),))]
    assert isinstance(batch, PreparedBatch) and batch.loss_weights is None


def test_a_length_that_was_measured_otherwise_names_the_command(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    reader = reader_of(directory, processor, True)
    said = reader[Recipe(((Slot(0, 1, 0, 3),),))]
    assert isinstance(said, str) and "001: has" in said and "`flamingo-lite data index --fresh`" in said


def test_sources_may_be_written_by_templates_of_their_own(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    reader = reader_of(directory, processor, False)
    reader.sources[1] = replace(reader.sources[1], template=replace(processor.template, end=False))
    batch = reader[Recipe(((Slot(0, 2),), (Slot(1, 2),)))]
    assert isinstance(batch, PreparedBatch)
    assert batch.batch.attention_mask.sum(1).diff().tolist() == [-1]


@pytest.mark.parametrize("error", [MemoryError(), ImportError("torch"), NameError("x"), KeyError("x")])
def test_what_is_no_samples_fault_is_never_swallowed(
    directory: Path,
    processor: VisionLanguageProcessor,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(self: Shards, index: int) -> tuple[str, Document]:
        raise error

    monkeypatch.setattr(Shards, "__getitem__", failing)
    with pytest.raises(type(error)):
        reader_of(directory, processor, False)[Recipe(((Slot(0, 1),),))]


@pytest.mark.parametrize("draft", [False, True])
def test_images_leave_a_worker_as_bytes_and_are_normalised_where_they_arrive(
    directory: Path, processor: VisionLanguageProcessor, draft: bool
) -> None:
    reader = reader_of(directory, processor, False)
    reader.draft = draft
    batch = reader[Recipe(((Slot(0, 1),), (Slot(0, 2),)))]
    assert isinstance(batch, PreparedBatch)
    assert batch.batch.pixel_values.dtype == torch.uint8
    images = [image for i in (1, 2) for image in reader.sources[0].shards[i][1].images]
    pixels = torch.stack([processor.image_transform(image, draft) for image in images])
    assert torch.equal(batch.to("cpu").batch.pixel_values, pixels)
    assert torch.equal(batch.to("cpu").to("cpu").batch.pixel_values, pixels)


def test_a_prepared_batch_moves_with_all_that_is_in_it(
    directory: Path, processor: VisionLanguageProcessor
) -> None:
    reader = reader_of(directory, processor, True, two=2.0)
    batch = reader[recipe_of(reader, [1, 2, 3], [0, 1, 0])]
    assert isinstance(batch, PreparedBatch)
    moved = batch.to("meta")
    assert moved.loss_weights is not None
    for tensor in (moved.batch.input_ids, moved.batch.pixel_values, moved.source_ids, moved.loss_weights):
        assert tensor.device.type == "meta"
    assert moved.samples == batch.samples


def test_a_shard_that_cannot_be_read_stops_the_run(
    directory: Path, processor: VisionLanguageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_lite.data.shards.PAUSES", (0.0, 0.0))
    reader = reader_of(directory, processor, False)

    def failing(file: object, *arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("flamingo_lite.data.shards.stretch_of", failing)
    with pytest.raises(FlamingoError, match="cannot be read .Input/output error, 3 times"):
        reader.read(Recipe(((Slot(0, 1),),)))
