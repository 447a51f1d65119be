"""Stores: a location is local, or one of three schemes, or refused by name; the cache's settings are checked."""

import os
import pickle
from pathlib import Path

import pytest

from flamingo_lite.cli import main
from flamingo_lite.data.manifest import load_manifest
from flamingo_lite.data.shards import write_shards
from flamingo_lite.data.stores import CacheConfig, LocalStore, check_address, open_store, parse_bytes
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_shards([("a", Document(["text"]))], tmp_path / "shards")
    return tmp_path / "shards"


def test_a_local_store_gives_the_files_of_its_directory(directory: Path) -> None:
    store = pickle.loads(pickle.dumps(open_store(directory)))
    [shard] = load_manifest(directory).shards
    assert store == LocalStore(directory) and store.beside == directory
    assert store.manifest() == (directory / "shards.json").read_bytes()
    assert store.path(shard) == directory / "shard-000000.tar"
    with store.open(shard) as file:
        assert len(file.read()) == shard.bytes


def test_a_local_sidecar_is_read_where_there_is_one(directory: Path) -> None:
    [shard] = load_manifest(directory).shards
    index = directory / "shard-000000.tar.idx"
    index.unlink(missing_ok=True)
    assert open_store(directory).sidecar(shard) is None
    index.write_bytes(b"12345678")
    assert open_store(directory).sidecar(shard) == b"12345678"


def test_a_local_sidecar_is_read_no_further_than_it_can_be_long(directory: Path) -> None:
    [shard] = load_manifest(directory).shards
    (directory / f"{shard.name}.idx").write_bytes(bytes(10_000))
    assert len(LocalStore(directory).sidecar(shard) or b"") == 8 * (shard.samples + 1) + 1


def test_a_pipe_in_place_of_a_local_sidecar_is_none(directory: Path) -> None:
    [shard] = load_manifest(directory).shards
    (directory / f"{shard.name}.idx").unlink()
    os.mkfifo(directory / f"{shard.name}.idx")
    assert LocalStore(directory).sidecar(shard) is None


@pytest.mark.parametrize("command", ["check", "stats", "preview"])
def test_commands_that_look_at_shards_refuse_an_address(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", command, "s3://bucket/shards"]) == 2
    assert "s3://bucket/shards: only directories of this machine" in capsys.readouterr().err


def test_a_directory_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="no shards here, shards.json is missing"):
        open_store(tmp_path).manifest()


def test_a_missing_local_shard_is_named(directory: Path) -> None:
    [shard] = load_manifest(directory).shards
    (directory / shard.name).unlink()
    with pytest.raises(FlamingoError, match="shard-000000.tar: the shard is missing"):
        open_store(directory).open(shard)


@pytest.mark.parametrize("location", ["a b/c", "./pipe:cat", "C:\\shards", "/data/s3:/x"])
def test_a_path_of_this_machine_is_local(location: str) -> None:
    assert open_store(location) == LocalStore(Path(location))


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/shards", "gs://bucket", "https://host:8080/a/b", "http://127.0.0.1:9/a", "http://[::1]/"],
)
def test_these_addresses_are_read(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "ftp://host/a",
        "memory://a",
        "data:text/plain,a",
        "hf://datasets/a",
        "simplecache::s3://bucket/a",
    ],
)
def test_another_scheme_is_refused_by_name(address: str) -> None:
    scheme = address.partition(":")[0]
    with pytest.raises(FlamingoError, match=f"shards are not read through {scheme}:"):
        open_store(address)


@pytest.mark.parametrize(
    "address", ["http://example.org/a", "http://127.0.0.1.example.org/a", "http://2130706433/a"]
)
def test_http_is_read_from_this_machine_only(address: str) -> None:
    with pytest.raises(FlamingoError, match="use https://"):
        open_store(address)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(FlamingoError, match="credentials") as caught:
        open_store("https://me:hunter2@host/a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["https://host/a?b=c", "https://host/a#b", "https://host/a b", "s3://b/a::zip", "https://host\\a"],
)
def test_an_address_that_means_more_than_a_place_is_refused(address: str) -> None:
    with pytest.raises(FlamingoError, match="plain address"):
        open_store(address)


@pytest.mark.parametrize("address", ["s3:bucket", "s3://", "https:///a"])
def test_an_address_without_a_host_is_refused(address: str) -> None:
    with pytest.raises(FlamingoError, match="a host or bucket"):
        open_store(address)


@pytest.mark.parametrize(
    "text, number", [("50GB", 50 * 10**9), ("1.5 KiB", 1536), ("7", 7), ("2tb", 2 * 10**12), ("3B", 3)]
)
def test_amounts_of_bytes_are_read_in_units(text: str, number: int) -> None:
    assert parse_bytes(text, "x") == number


@pytest.mark.parametrize("text", ["", "many", "-1GB", "0", "1 XB", "nan", "1e9", "0.1"])
def test_another_amount_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(FlamingoError, match="data.cache.bytes is .*50GB"):
        CacheConfig(bytes=text)


@pytest.mark.parametrize(
    "name, value", [("timeout", 0), ("timeout", float("nan")), ("retries", -1), ("pause", -1)]
)
def test_a_cache_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(FlamingoError, match=f"{name} (is )?{value}"):
        CacheConfig(**{name: value})


def test_options_of_an_unknown_scheme_are_refused() -> None:
    with pytest.raises(FlamingoError, match="unknown scheme in data.cache.options: 's4'; did you mean 's3'"):
        CacheConfig(options={"s4": {}})


@pytest.mark.parametrize(
    "options",
    [
        {"s3": {"secret": "hunter2"}},
        {"s3": {"client_kwargs": {"aws_secret_access_key": "hunter2"}}},
        {"gs": {"token": "hunter2"}},
        {"https": {"headers": {"Authorization": "hunter2"}}},
    ],
)
def test_credentials_among_the_options_are_refused_and_not_repeated(options: dict) -> None:
    with pytest.raises(FlamingoError, match="give credentials by the environment") as caught:
        CacheConfig(options=options)
    assert "hunter2" not in str(caught.value)


def test_a_way_of_finding_credentials_is_no_secret() -> None:
    assert CacheConfig(options={"gs": {"token": "anon"}, "s3": {"anon": True}}).options
