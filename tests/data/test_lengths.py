"""Lengths of documents: those that encoding gives, kept under a name that says what decided them."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_lite.data.lengths import Lengths, Measure, file_name, index_lengths, missing_shards
from flamingo_lite.data.shards import Shards, write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.processing import VisionLanguageProcessor

ImageOf = Callable[[int], Image]


def document(number: int, image_of: ImageOf) -> Document:
    return Document([image_of(number % 3), Text("a" * (number + 1)), *[image_of(0)] * (number % 2)])


@pytest.fixture
def directory(tmp_path: Path, image_of: ImageOf) -> Path:
    documents: Iterable[tuple[str, Document]] = (
        (f"{i:03d}", document(i, image_of) if i != 4 else Document([Text("mute", loss=False)]))
        for i in range(12)
    )
    write_shards(documents, tmp_path / "shards", samples_per_shard=5)
    return tmp_path / "shards"


@pytest.fixture
def measure(processor: VisionLanguageProcessor) -> Measure:
    return Measure(processor, processor.template, 10)


def test_lengths_are_those_of_the_encoded_documents(
    directory: Path, measure: Measure, image_of: ImageOf
) -> None:
    shards = Shards(directory)
    numbers = np.array([11, 0, 7, 7, 4, 3])
    tokens, images = index_lengths(shards, measure).take(numbers)
    for number, length, count in zip(numbers.tolist(), tokens, images, strict=True):
        # The document 4 has nothing to train on.
        encoded = measure.processor.encode(document(number, image_of), True, 10)
        assert (length, count) == ((0, 0) if number == 4 else (len(encoded), len(encoded.images)))


@pytest.mark.slow  # starting processes that import torch takes seconds
def test_processes_measure_the_same(
    directory: Path, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_lite.data.lengths.FEW", 0)
    done: list[tuple[int, int]] = []
    index_lengths(Shards(directory), measure, workers=2, progress=lambda *n: done.append(n))
    apart = {p.name: p.read_bytes() for p in (directory / "lengths" / measure.key).glob("*.npy")}
    for path in (directory / "lengths" / measure.key).glob("*.npy"):
        path.unlink()
    index_lengths(Shards(directory), measure)
    assert {p.name: p.read_bytes() for p in (directory / "lengths" / measure.key).glob("*.npy")} == apart
    assert done[-1] == (12, 12) and len(done) == 3


def test_what_is_measured_is_not_measured_again(directory: Path, measure: Measure) -> None:
    index_lengths(Shards(directory), measure)
    for path in directory.glob("*.tar"):
        os.truncate(path, 0)
    tokens, _ = index_lengths(Shards(directory), measure).take(np.arange(12))
    assert tokens.sum() > 0


def test_a_sample_that_cannot_be_read_has_no_tokens_and_keeps_its_number(
    directory: Path, measure: Measure
) -> None:
    whole, _ = index_lengths(Shards(directory), measure).take(np.arange(12))
    for path in (directory / "lengths" / measure.key).glob("*.npy"):
        path.unlink()
    os.truncate(directory / "shard-000001.tar", 0)
    cut, _ = index_lengths(Shards(directory), measure).take(np.arange(12))
    assert cut.tolist() == [*whole[:5], 0, 0, 0, 0, 0, *whole[10:]]


def test_other_shards_and_other_measures_have_lengths_of_their_own(
    directory: Path, measure: Measure, image_of: ImageOf
) -> None:
    index_lengths(Shards(directory), measure)
    shorter = replace(measure, max_length=5)
    other = replace(measure, template=replace(measure.template, end=False))
    assert len({m.key for m in (measure, shorter, other)}) == 3
    write_shards([("a", document(1, image_of))], directory, overwrite=True)
    shards = Shards(directory)
    assert missing_shards(shards, directory / "lengths" / measure.key) == [0]


def test_the_key_does_not_depend_on_how_the_tokenizer_was_last_called(measure: Measure) -> None:
    before = measure.key
    measure.processor.tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert measure.key == before


def test_lengths_that_are_missing_or_damaged_name_the_command(directory: Path, measure: Measure) -> None:
    shards = Shards(directory)
    folder = index_lengths(shards, measure).folder
    path = folder / file_name(shards.manifest.shards[0])
    np.save(path, np.zeros((3, 2), np.int32))
    with pytest.raises(FlamingoError, match=r"shard-000000.*flamingo-lite data index"):
        Lengths(shards, folder).take(np.array([0]))
    path.write_bytes(b"none")
    with pytest.raises(FlamingoError, match=r"shard-000000.*flamingo-lite data index"):
        Lengths(shards, folder).take(np.array([0]))
    path.unlink()
    with pytest.raises(FlamingoError, match=r"shard-000000.*flamingo-lite data index"):
        Lengths(shards, folder).take(np.array([0]))


def test_shards_in_a_place_that_cannot_be_written_to_are_measured_elsewhere(
    directory: Path, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(directory))
    with pytest.raises(FlamingoError, match="cannot be written to.*data.cache.directory"):
        index_lengths(Shards(directory), measure)
    tokens, _ = index_lengths(Shards(directory), measure, tmp_path / "cache").take(np.arange(12))
    assert tokens.sum() > 0 and not (directory / "lengths").exists()
