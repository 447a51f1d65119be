"""The cache of files: what it gives is right, and it never holds more than its limit."""

import hashlib
import os
import random
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.cache import FileCache
from flamingo_lite.errors import FlamingoError


def name_of(number: int) -> str:
    return f"{hashlib.sha256(bytes([number])).hexdigest()}.tar"


def content_of(number: int, size: int) -> bytes:
    return bytes([number]) * size


def read(cache: FileCache, number: int, size: int, fetched: list[int] | None = None) -> bytes:
    def fetch(path: Path) -> None:
        path.write_bytes(content_of(number, size))
        if fetched is not None:
            fetched.append(number)

    with cache.open(name_of(number), size, fetch) as file:
        return file.read()


def taken(cache: FileCache) -> int:
    total = 0
    for path in (cache.directory / "shards").glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def entries(cache: FileCache) -> set[str]:
    return {path.name for path in (cache.directory / "shards").iterdir()}


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=6, max_size=6),
    st.integers(60, 150),
    st.randoms(use_true_random=False),
)
def test_a_hundred_accesses_keep_what_was_used_last_within_the_limit(
    sizes: list[int], limit: int, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, expected = FileCache(Path(folder), limit), OrderedDict[int, int]()
        for _ in range(100):
            number, fetched = chance.randrange(len(sizes)), []
            assert read(cache, number, sizes[number], fetched) == content_of(number, sizes[number])
            assert fetched == ([] if number in expected else [number])
            if number not in expected:
                while sum(expected.values()) + sizes[number] > limit:
                    expected.popitem(last=False)
            expected[number] = sizes[number]
            expected.move_to_end(number)
            assert entries(cache) == {name_of(number) for number in expected}
            assert taken(cache) <= limit


def test_the_limit_holds_at_every_moment_while_several_threads_fetch(tmp_path: Path) -> None:
    cache, most, wrong = FileCache(tmp_path, 250), 0, []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            number = chance.randrange(8)
            if read(cache, number, 80) != content_of(number, 80):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, taken(cache))
        time.sleep(0.001)
    assert not wrong
    assert 0 < most <= 250
    assert taken(cache) <= 250


def test_an_entry_evicted_while_it_is_open_is_read_to_its_end_and_fetched_again_later(tmp_path: Path) -> None:
    cache, fetched = FileCache(tmp_path, 100), []
    with cache.open(name_of(1), 60, lambda path: path.write_bytes(content_of(1, 60)) and None) as file:
        read(cache, 2, 60)
        assert entries(cache) == {name_of(2)}
        assert file.read() == content_of(1, 60)
    assert read(cache, 1, 60, fetched) == content_of(1, 60)
    assert fetched == [1]


def test_an_entry_above_the_limit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="data.cache.bytes is 100, and one shard alone takes 101; raise"):
        read(FileCache(tmp_path, 100), 1, 101)


def test_a_fetch_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.open(name_of(1), 60, fail)
    assert entries(cache) == set()
    assert read(cache, 1, 60) == content_of(1, 60)


def test_a_damaged_entry_is_fetched_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)
    read(cache, 1, 60)
    os.truncate(cache.path(name_of(1)), 30)
    assert read(cache, 1, 60) == content_of(1, 60)


def test_what_a_killed_process_has_left_is_removed_when_room_is_needed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)
    read(cache, 1, 10)
    cache.path(f"{name_of(2)}.80.partial").write_bytes(b"half")
    read(cache, 3, 60)
    assert entries(cache) == {name_of(1), name_of(3)}


def test_room_claimed_by_a_transfer_under_way_is_not_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_lite.data.cache.PATIENCE", 0.2)
    cache = FileCache(tmp_path, 100)
    read(cache, 1, 10)
    cache.path(f"{name_of(2)}.80.partial").touch()
    with (
        FileLock(tmp_path / "locks" / f"{name_of(2)[:2]}.lock"),
        pytest.raises(FlamingoError, match="transfers under way have left no room for 60 more"),
    ):
        read(cache, 3, 60)
    assert entries(cache) == {name_of(1), f"{name_of(2)}.80.partial"}  # and nothing was evicted in vain


def test_files_of_others_in_the_directory_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)
    read(cache, 1, 60)
    (tmp_path / "shards" / "thesis.tar").write_bytes(b"x" * 500)
    read(cache, 2, 60)
    assert entries(cache) == {"thesis.tar", name_of(2)}


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        FlamingoError, match="file: the cache of shards cannot be used .*data.cache.directory"
    ):
        read(FileCache(tmp_path / "file", 100), 1, 10)
