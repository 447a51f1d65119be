"""Shards: what is read is what was written, once each, in a known order; what is broken is named."""

import errno
import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.data.manifest import MANIFEST, load_manifest, sha256_of
from flamingo_lite.data.samples import from_sample, to_sample
from flamingo_lite.data.shard_index import index_bytes, sample_offsets
from flamingo_lite.data.shards import (
    Shard,
    Shards,
    ShardWriter,
    read_samples,
    read_shards,
    write_shards,
)
from flamingo_lite.data.stores import LocalStore
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError


def picture(number: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (6, 4), (number % 256, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(i, kind) for i, kind in enumerate(["JPEG", "PNG", "WEBP", "JPEG"])]


def numbered(count: int) -> list[tuple[str, Document]]:
    return [(f"{i:04d}", Document([Image(picture(i)), f"text {i}"], {"number": i})) for i in range(count)]


def numbers(documents: Any) -> list[int]:
    return [document.meta["number"] for document in documents]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Seven documents in three shards."""
    write_shards(numbered(7), tmp_path / "a b", samples_per_shard=3)
    return tmp_path / "a b"


texts = st.builds(
    Text,
    st.text(max_size=12),
    loss=st.booleans(),
    role=st.none() | st.text(max_size=5),
    ends_chunk=st.booleans(),
)
images = st.builds(Image, st.sampled_from(PICTURES), words=st.none() | st.text(max_size=5))
finite = st.floats(allow_nan=False, allow_infinity=False)
metas = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | finite | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
documents = st.builds(Document, st.lists(texts | images, max_size=6), metas)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents, min_size=1, max_size=5), st.integers(1, 3))
def test_a_document_comes_back_as_it_was_written(
    tmp_path: Path, written: list[Document], samples_per_shard: int
) -> None:
    pairs = [(f"key-{i}", document) for i, document in enumerate(written)]
    write_shards(pairs, tmp_path / "s", samples_per_shard, overwrite=True)
    read = list(read_samples(tmp_path / "s"))
    assert read == pairs
    for (_, before), (_, after) in zip(pairs, read, strict=True):
        assert [image.data for image in after.images] == [image.data for image in before.images]
        assert [image.words for image in after.images] == [image.words for image in before.images]


def test_any_webdataset_reader_can_read_a_shard(directory: Path) -> None:
    sample = next(iter(webdataset.WebDataset(str(directory / "shard-000000.tar"), shardshuffle=False)))
    content = json.loads(sample["json"])
    assert sample["__key__"] == "0000"
    assert content["images"] == ["0.jpg", None]
    assert content["texts"] == [None, "text 0"]
    assert content["meta"]["loss"] == [None, True]
    assert sample["0.jpg"] == picture(0)


def test_the_manifest_says_what_the_shards_are(directory: Path) -> None:
    manifest = load_manifest(directory, verify="sha256")
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert (manifest.samples, manifest.images) == (7, 7)
    for shard in manifest.shards:
        path = directory / shard.name
        assert (shard.bytes, shard.sha256) == (path.stat().st_size, sha256_of(path))
    wanted = [name for shard in manifest.shards for name in (shard.name, f"{shard.name}.idx")]
    assert sorted(p.name for p in directory.iterdir()) == sorted([MANIFEST, *wanted])
    assert "offsets" not in (directory / MANIFEST).read_text()


def test_the_same_documents_make_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    write_shards(numbered(7), tmp_path / "again", samples_per_shard=3, info={"made": "elsewhere"})
    again = load_manifest(tmp_path / "again")
    assert again.shards == load_manifest(directory).shards
    assert again.info == {"made": "elsewhere"}


def test_without_a_seed_documents_come_in_the_order_written(directory: Path) -> None:
    assert numbers(read_shards(directory)) == list(range(7))


def test_the_order_is_a_function_of_seed_and_epoch(directory: Path) -> None:
    orders = [tuple(numbers(read_shards(directory, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(7)) for order in orders)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.none() | st.integers(0, 3), st.integers(0, 2))
def test_all_ranks_together_read_each_document_once(
    directory: Path, world_size: int, seed: int | None, epoch: int
) -> None:
    shares = [numbers(read_shards(directory, seed, epoch, rank, world_size)) for rank in range(world_size)]
    assert sorted(sum(shares, [])) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_number_beyond_the_last_sample_ends_iteration(directory: Path) -> None:
    shards = Shards(directory)
    assert [key for key, _ in shards] == [f"{i:04d}" for i in range(7)]
    with pytest.raises(IndexError):
        _ = shards[-1]


# What is refused before anything is written


@pytest.mark.parametrize("key", ["", "a.b", "../up", "a/b", "__meta__", "ä", "k" * 81])
def test_a_key_that_is_no_plain_name_is_refused(key: str) -> None:
    with pytest.raises(FlamingoError, match="sample key"):
        to_sample(key, Document(["a"]))


@pytest.mark.parametrize(
    "meta",
    [{"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": float("-inf")}, {"a": {1, 2}}, {"a": b"b"}],
)
def test_a_meta_that_would_come_back_changed_is_refused_by_key(meta: dict) -> None:
    with pytest.raises(FlamingoError, match="sample k: meta"):
        to_sample("k", Document(["a"], meta))


def test_an_image_that_is_none_is_refused_by_key() -> None:
    with pytest.raises(FlamingoError, match="sample k: .*not an image"):
        to_sample("k", Document([Image(b"GIF89a")]))


def test_shards_are_not_overwritten_unasked(directory: Path) -> None:
    with pytest.raises(FlamingoError, match="has shards already"):
        write_shards(numbered(1), directory)
    assert numbers(read_shards(directory)) == list(range(7))


def test_overwriting_leaves_no_shard_of_before(directory: Path) -> None:
    write_shards(numbered(2), directory, samples_per_shard=3, overwrite=True)
    assert sorted(path.name for path in directory.iterdir()) == [
        *("shard-000000.tar", "shard-000000.tar.idx", MANIFEST)
    ]
    assert numbers(read_shards(directory)) == [0, 1]


# What fails on the way leaves nothing behind


def failing(error: Exception) -> Iterator[tuple[str, Document]]:
    yield from numbered(5)
    raise error


@pytest.mark.parametrize("error", [RuntimeError("boom"), FlamingoError("boom"), KeyboardInterrupt()])
def test_documents_that_fail_leave_nothing_behind(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        write_shards(failing(error), tmp_path / "new", samples_per_shard=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_leaves_nothing_behind(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlamingoError, match="No space left on device.*free some space"):
        write_shards(numbered(7), tmp_path / "new", samples_per_shard=3)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_overwriting_keeps_the_old_shards(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlamingoError):
        write_shards(numbered(2), directory, overwrite=True)
    assert numbers(read_shards(directory)) == list(range(7))
    assert len(list(directory.iterdir())) == 7


def test_a_failure_keeps_other_files_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FlamingoError):
        write_shards(failing(FlamingoError("boom")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_documents_make_no_shards(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="no documents"):
        write_shards([], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="0000 comes twice"), ShardWriter(tmp_path / "new") as writer:
        writer.write("0000", Document(["a"]))
        writer.write("0000", Document(["b"]))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlamingoError, match="file"):
        write_shards(numbered(1), tmp_path / "file" / "shards")


# What is broken on disk


def change_manifest(directory: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((directory / MANIFEST).read_text())
    change(content)
    (directory / MANIFEST).write_text(json.dumps(content))


def test_a_directory_without_a_manifest_is_no_directory_of_shards(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FlamingoError, match=f"{MANIFEST} is missing"):
            load_manifest(path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "shards": [3]}', "[" * 9999]
)
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(FlamingoError, match=MANIFEST):
        load_manifest(tmp_path)


def test_a_manifest_of_another_version_is_refused(directory: Path) -> None:
    change_manifest(directory, lambda m: m.update(version=2))
    with pytest.raises(FlamingoError, match="version 2"):
        load_manifest(directory)


@pytest.mark.parametrize(
    "name",
    [
        "../shard.tar",
        "/etc/passwd.tar",
        "sub/s.tar",
        "pipe:cat x.tar",
        "http://x/s.tar",
        ".s.tar",
        "s.tar.gz",
        "s\n.tar",
        "",
    ],
)
def test_a_shard_name_that_leaves_the_directory_is_refused(name: str, directory: Path) -> None:
    change_manifest(directory, lambda m: m["shards"][0].update(name=name))
    with pytest.raises(FlamingoError, match="shard name"):
        load_manifest(directory)


@pytest.mark.parametrize(
    "values",
    [
        *({"samples": -1}, {"bytes": 1.5}, {"images": "3"}, {"sha256": "0"}),
        *(
            {"offsets": [0, 1, 2]},
            {"offsets": [0, 0, 512]},
            {"offsets": [0, 512, 10**9]},
            {"offsets": [0, -512, 512]},
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_shard(values: dict, directory: Path) -> None:
    change_manifest(directory, lambda m: m["shards"][0].update(values))
    with pytest.raises(FlamingoError, match="shard-000000.tar"):
        load_manifest(directory)


def test_a_missing_shard_is_named(directory: Path) -> None:
    (directory / "shard-000001.tar").unlink()
    with pytest.raises(FlamingoError, match="shard-000001.tar: the shard is missing"):
        load_manifest(directory)


@pytest.mark.parametrize("size", [0, 100, 512, 5000])
def test_a_truncated_shard_is_named(size: int, directory: Path) -> None:
    os.truncate(directory / "shard-000001.tar", size)
    with pytest.raises(FlamingoError, match="shard-000001.tar: truncated"):
        load_manifest(directory)


@pytest.mark.parametrize("size", [0, 100, 512, 3000, 5000])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_shard_costs_its_tail_only(size: int, indexed: bool, directory: Path) -> None:
    whole, shards = list(read_samples(directory)), Shards(directory)
    ends = [int(offset) for offset in sample_offsets(shards.store, shards.manifest.shards[1])]
    if not indexed:
        (directory / "shard-000001.tar.idx").unlink()
    os.truncate(directory / "shard-000001.tar", size)
    shards = Shards(directory)
    for index, pair in enumerate(whole):
        if 3 <= index < 6 and ends[index - 3 + 1] > size:
            with pytest.raises(SampleError, match="shard-000001.tar.*truncated") as caught:
                _ = shards[index]
            assert caught.value.reason == "truncated"
        else:
            assert shards[index] == pair


@pytest.mark.parametrize("offsets", [[0, 512], [0, 512, 512, 1024], [0, 512, 1000, 2048], [0, 1, 2, 10**9]])
def test_an_index_that_does_not_fit_is_named(offsets: list[int], directory: Path) -> None:
    (directory / "shard-000001.tar.idx").write_bytes(index_bytes(offsets))
    with pytest.raises(
        FlamingoError, match="shard-000001.tar.idx: the index does not fit 3 samples"
    ) as caught:
        list(read_shards(directory))
    assert not isinstance(caught.value, SampleError)


def test_shards_are_read_without_their_indexes_and_with_offsets_in_the_manifest(directory: Path) -> None:
    shards = Shards(directory)
    found = [sample_offsets(shards.store, shard).tolist() for shard in shards.manifest.shards]
    for path in directory.glob("*.idx"):
        path.unlink()
    assert numbers(read_shards(directory)) == list(range(7))
    assert [sample_offsets(shards.store, shard).tolist() for shard in shards.manifest.shards] == found
    change_manifest(
        directory, lambda m: [s.update(offsets=o[:-1]) for s, o in zip(m["shards"], found, strict=True)]
    )
    assert numbers(read_shards(directory)) == list(range(7))


def failing_store(directory: Path, times: int) -> LocalStore:
    """A store whose first openings fail, as a network's disk does."""
    failures = iter(range(times))

    class Failing(LocalStore):
        def open(self, shard: Shard) -> BinaryIO:
            if next(failures, None) is not None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().open(shard)

    return Failing(directory)


def test_a_transient_error_is_tried_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamingo_lite.data.shards.PAUSES", (0.0, 0.0))
    assert Shards(failing_store(directory, 2))[0][0] == "0000"


def test_an_error_that_stays_stops_and_is_no_error_of_the_sample(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_lite.data.shards.PAUSES", (0.0, 0.0))
    with pytest.raises(FlamingoError, match="cannot be read .Input/output error, 3 times.") as caught:
        _ = Shards(failing_store(directory, 3))[0]
    assert not isinstance(caught.value, SampleError)


def test_opening_a_manifest_looks_at_no_shard(directory: Path) -> None:
    for path in directory.glob("*.tar"):
        os.truncate(path, 0)
    assert len(Shards(directory)) == 7


def test_a_shard_cut_while_it_is_read_is_named(directory: Path) -> None:
    shards = Shards(directory)
    os.truncate(directory / "shard-000001.tar", 1024)
    with pytest.raises(FlamingoError, match="shard-000001.tar: sample 0: truncated"):
        list(shards)


def test_a_changed_byte_is_found_by_its_sha256(directory: Path) -> None:
    path = directory / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    load_manifest(directory)
    with pytest.raises(FlamingoError, match="shard-000000.tar: the shard's sha256"):
        load_manifest(directory, verify="sha256")


def foreign_shard(directory: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar of somebody else's, under a manifest without offsets, as another program would write it."""
    directory.mkdir()
    path = directory / "foreign.tar"
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples = len({name.split(".")[0] for name in members if not name.startswith("__")})
    entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    content = {"version": 1, "shards": [{**entry, "samples": samples, "images": 0}]}
    (directory / MANIFEST).write_text(json.dumps(content))
    return directory


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return (Path.touch, (self.path,))


def test_interleaved_json_without_our_meta_is_read_with_defaults(tmp_path: Path) -> None:
    content = {"images": ["Picture.JPG", None], "texts": [None, "hello"], "meta": {"url": "u"}}
    members = {
        "__info__/x.json": b"{}",
        "a.json": json.dumps(content).encode(),
        "a.Picture.JPG": picture(0),
        "b.json": b'{"images": [null], "texts": ["b"]}',
    }
    read = dict(read_samples(foreign_shard(tmp_path / "f", members)))
    assert read == {"a": Document([Image(picture(0)), "hello"], {"url": "u"}), "b": Document(["b"])}


def test_members_that_are_no_json_and_no_image_are_never_decoded(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    members = {
        "a.json": b'{"images": [null], "texts": ["a"]}',
        **{f"a.{kind}": trap for kind in ("pkl", "pyd", "pth", "pickle", "npy", "gz", "txt", "cls")},
    }
    assert list(read_shards(foreign_shard(tmp_path / "f", members))) == [Document(["a"])]
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_archive_is_not_inflated(mode: str, tmp_path: Path) -> None:
    directory = foreign_shard(tmp_path / "f", {"a.json": random.Random(0).randbytes(2000)}, mode)
    with pytest.raises(FlamingoError, match="foreign.tar: not the tar"):
        list(read_shards(directory))
    change_manifest(directory, lambda m: m["shards"][0].update(offsets=[0]))
    with pytest.raises(FlamingoError, match="foreign.tar: sample 0, byte 0: no header of a plain tar"):
        list(read_shards(directory))


@pytest.mark.parametrize(
    "content, named",
    [
        (b"{", "cannot be parsed"),
        (b"\xff\xfe", "cannot be parsed"),
        (b"[" * 100_000, "cannot be parsed"),
        (b"[]", "not interleaved JSON"),
        (b'{"caption": "LAION"}', "not interleaved JSON"),
        (b'{"images": [null], "texts": []}', "parallel"),
        (b'{"images": [null], "texts": [null]}', "slot 0"),
        (b'{"images": ["0.jpg"], "texts": ["a"]}', "slot 0"),
        (b'{"images": [null], "texts": [3]}', "slot 0"),
        (b'{"images": [3], "texts": [null]}', "not in the shard"),
        (b'{"images": ["1.jpg"], "texts": [null]}', "1.jpg"),
        (b'{"images": ["json"], "texts": [null]}', "not an image"),
        (b'{"images": ["__url__"], "texts": [null]}', "not in the shard"),
        (b'{"images": ["0.png"], "texts": [null]}', "key.0.png: not an image"),
        (b'{"images": [null], "texts": ["a"], "meta": 3}', "meta"),
        (b'{"images": [null], "texts": ["a"], "meta": {"loss": []}}', "meta.loss"),
        (b'{"images": [null], "texts": ["a"], "meta": {"loss": ["no"]}}', "slot 0"),
        (b'{"images": [null], "texts": ["a"], "meta": {"document": 3}}', "meta"),
    ],
)
def test_a_sample_that_is_no_interleaved_document_is_named(
    content: bytes, named: str, tmp_path: Path
) -> None:
    members = {"key.json": content, "key.0.jpg": picture(0), "key.0.png": b"not a picture"}
    directory = foreign_shard(tmp_path / "f", members)
    with pytest.raises(FlamingoError, match=named) as caught:
        list(read_shards(directory))
    assert "foreign.tar/key" in str(caught.value)


def test_a_sample_without_json_is_named(tmp_path: Path) -> None:
    directory = foreign_shard(tmp_path / "f", {"000.jpg": picture(0), "000.txt": b"a caption"})
    with pytest.raises(FlamingoError, match="foreign.tar/000: the sample has no json"):
        list(read_shards(directory))


def test_a_corrupt_image_is_named_by_shard_and_key_when_it_is_decoded() -> None:
    content = {"images": ["0.jpg"], "texts": [None]}
    members = {"json": json.dumps(content).encode(), "0.jpg": picture(0)[:150]}
    document = from_sample(members, "s.tar/k")
    with pytest.raises(FlamingoError, match=r"^s.tar/k.0.jpg: not a readable image"):
        document.images[0].pil()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10_239), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_shard_is_read_or_refused_by_name(directory: Path, changes: list[tuple[int, int]]) -> None:
    path = directory / "shard-000002.tar"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for position, value in changes:
        damaged[position % 3000] = value  # the headers, the image and the json of the one sample
    path.write_bytes(damaged)
    try:
        list(read_shards(directory))
    except FlamingoError as error:
        assert "shard-000002.tar" in str(error)
    finally:
        path.write_bytes(whole)
