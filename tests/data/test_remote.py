"""Shards far away: real servers on loopback, one of them with faults; what is read is what was written, or one line."""

import datetime
import hashlib
import json
import logging
import pickle
import ssl
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.manifest import Manifest, Shard, load_manifest
from flamingo_lite.data.remote import Missing, Refused, RemoteStore, fetch
from flamingo_lite.data.shards import Shards, read_samples, write_shards
from flamingo_lite.data.stores import CacheConfig, check_room, open_store
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.datamodule import open_sources

SCHEMES = ("https", "s3")
STALL = 5.0


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a directory; `faults[file name]` says what befalls its next requests, one after the other."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.directory = directory
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def store(self, scheme: str, cache: Path, **settings: Any) -> RemoteStore:
        """The store of the directory through the scheme's own code: to s3fs the server is an endpoint of S3."""
        options = {"s3": {"anon": True, "endpoint_url": self.url}} if scheme == "s3" else {}
        settings = {"retries": 2, "pause": 0.01, "timeout": 10, "options": options, **settings}
        address = "s3://bucket/shards" if scheme == "s3" else f"{self.url}/bucket/shards"
        store = open_store(address, CacheConfig(directory=str(cache), **settings))
        assert isinstance(store, RemoteStore)
        return store


class FaultyHandler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        with self.server.counting:
            self.server.requests[name] += 1
            faults = self.server.faults.get(name, [])
            fault = faults.pop(0) if faults else ""
        path = self.server.directory / name
        data = path.read_bytes() if path.is_file() else b""
        if fault.isdecimal():
            self.answer(int(fault), b"")
        elif fault == "redirect":
            self.answer(302, b"", {"Location": "https://169.254.169.254/secret?signature=hunter2"})
        elif fault == "reset":
            self.connection.shutdown(2)
        elif fault == "wrong":
            self.answer(200, bytes(reversed(data)))
        elif fault == "surplus":
            self.answer(200, data + b"more")
        elif fault == "short":
            self.answer(200, data[:-1])
        elif fault == "cut":
            self.answer(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
        elif fault == "endless":
            self.answer(200, b"", {"Transfer-Encoding": "chunked"})
            while True:
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        elif fault == "stall":
            self.answer(200, data[: len(data) // 2], {"Content-Length": str(len(data))}, close=False)
            time.sleep(STALL)
            self.close_connection = True
        elif fault == "slow":
            time.sleep(0.4)
            self.answer(200, data)
        elif not path.is_file():
            self.answer(404, b"")
        else:
            self.answer(200, data)

    def answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, close: bool = True
    ) -> None:
        headers = {"Content-Length": str(len(data)), **(headers or {})}
        if "Transfer-Encoding" in headers:
            del headers["Content-Length"]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = close

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has broken off, as some tests want
            self.close_connection = True


@pytest.fixture(autouse=True)
def _no_credentials_from_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Nine documents in three shards, with sidecars."""
    documents = ((f"{i:04d}", Document([f"text {i} " * 200])) for i in range(9))
    write_shards(documents, tmp_path / "shards", samples_per_shard=3)
    return tmp_path / "shards"


@pytest.fixture
def manifest(directory: Path) -> Manifest:
    return load_manifest(directory)


@pytest.fixture
def first(manifest: Manifest) -> Shard:
    return manifest.shards[0]


@pytest.fixture
def server(directory: Path) -> Iterator[FaultyServer]:
    with FaultyServer(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def read(store: RemoteStore, shard: Shard) -> bytes:
    with store.open(shard) as file:
        return file.read()


# What is read


def test_a_real_s3_server_gives_what_was_written_there(
    directory: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        endpoint = "http://{}:{}".format(*moto.get_host_and_port())
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        for path in directory.iterdir():
            client.put_object(Bucket="bucket", Key=f"a b/shards/{path.name}", Body=path.read_bytes())
        config = CacheConfig(
            directory=str(tmp_path / "cache"), retries=0, options={"s3": {"endpoint_url": endpoint}}
        )
        store = RemoteStore("s3://bucket/a b/shards", config)
        assert store.manifest() == (directory / "shards.json").read_bytes()
        for shard in manifest.shards:
            assert read(store, shard) == (directory / shard.name).read_bytes()
            assert store.sidecar(shard) == (directory / f"{shard.name}.idx").read_bytes()
        with pytest.raises(Missing, match="s3://bucket/elsewhere/shards.json: there is nothing"):
            RemoteStore("s3://bucket/elsewhere", config).manifest()
        with pytest.raises(Missing, match="s3://no-bucket/x/shards.json: there is nothing"):
            RemoteStore("s3://no-bucket/x", config).manifest()
    finally:
        moto.stop()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_shard_is_fetched_once_and_then_read_from_the_cache(
    scheme: str, server: FaultyServer, directory: Path, first: Shard, tmp_path: Path
) -> None:
    store = pickle.loads(pickle.dumps(server.store(scheme, tmp_path / "cache")))
    assert store.manifest() == (directory / "shards.json").read_bytes()
    for _ in range(3):
        assert read(store, first) == (directory / first.name).read_bytes()
        assert store.sidecar(first) == (directory / f"{first.name}.idx").read_bytes()
    with tarfile.open(store.path(first)) as tar:
        assert len(tar.getnames()) == 3
    assert server.requests == {"shards.json": 1, first.name: 1, f"{first.name}.idx": 1}


def test_a_shard_without_a_sidecar_has_none(
    server: FaultyServer, directory: Path, first: Shard, tmp_path: Path
) -> None:
    store = server.store("s3", tmp_path / "cache")
    (directory / f"{first.name}.idx").unlink()
    assert store.sidecar(first) is None
    server.faults[f"{first.name}.idx"] = ["403"]
    assert store.sidecar(first) is None


def test_an_index_that_is_not_the_shards_is_not_used(
    server: FaultyServer, directory: Path, first: Shard, tmp_path: Path
) -> None:
    store = server.store("https", tmp_path / "cache", retries=0)
    index = directory / f"{first.name}.idx"
    right = index.read_bytes()
    index.write_bytes(bytes(len(right)))
    with pytest.raises(FlamingoError, match="idx: not fetched .* it does not fit 3 samples in 10,240 bytes"):
        store.sidecar(first)
    index.write_bytes(right)
    assert store.sidecar(first) == right


@pytest.mark.parametrize("scheme", SCHEMES)
def test_samples_from_far_away_are_those_of_the_directory_though_requests_fail(
    scheme: str, server: FaultyServer, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    faults = ["503", "cut", "", "wrong", "reset", ""]
    for number, shard in enumerate(manifest.shards):
        server.faults[shard.name] = faults[number:] * 3
        server.faults[f"{shard.name}.idx"] = faults[number + 1 :]
    size = max(shard.bytes for shard in manifest.shards) + 100
    store = server.store(scheme, tmp_path / "cache", bytes=str(size))
    assert list(read_samples(store, seed=3)) == list(read_samples(directory, seed=3))
    assert all(server.requests[shard.name] > 3 for shard in manifest.shards)


def test_a_shard_that_was_evicted_is_fetched_again(
    server: FaultyServer, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    one = max(shard.bytes for shard in manifest.shards)
    store = server.store("https", tmp_path / "cache", bytes=str(one))
    for _ in range(2):
        for shard in manifest.shards:
            assert read(store, shard) == (directory / shard.name).read_bytes()
    assert all(server.requests[shard.name] == 2 for shard in manifest.shards)


def test_a_shard_that_has_changed_is_not_served_from_the_cache(
    server: FaultyServer, directory: Path, first: Shard, tmp_path: Path
) -> None:
    store = server.store("https", tmp_path / "cache")
    read(store, first)
    write_shards([("new", Document(["other text"]))], directory, overwrite=True)
    [changed] = load_manifest(directory).shards
    assert json.loads(store.manifest())["shards"][0]["sha256"] == changed.sha256 != first.sha256
    assert read(store, changed) == (directory / changed.name).read_bytes()


def test_a_worker_goes_by_the_manifest_that_the_run_began_with(
    server: FaultyServer, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    shards = Shards(server.store("https", tmp_path / "cache"))
    expected = list(shards)
    write_shards([("new", Document(["other text"]))], directory, overwrite=True)
    again = pickle.loads(pickle.dumps(shards))
    assert again.manifest.shards == manifest.shards
    assert list(again) == expected
    assert server.requests["shards.json"] == 1


class Bytes(Dataset[bytes]):
    def __init__(self, store: RemoteStore, shards: tuple[Shard, ...]) -> None:
        self.store, self.shards = store, shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> bytes:
        return hashlib.sha256(read(self.store, self.shards[index])).digest()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_worker_processes_read_after_the_main_process_has(
    scheme: str, server: FaultyServer, manifest: Manifest, tmp_path: Path
) -> None:
    store = server.store(scheme, tmp_path / "cache")
    store.manifest()
    loader = DataLoader(Bytes(store, manifest.shards), batch_size=None, num_workers=2, timeout=60)
    assert [digest.hex() for digest in loader] == [shard.sha256 for shard in manifest.shards]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four are meant, however few the cores
def test_four_processes_that_want_one_shard_fetch_it_once(
    server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    server.faults[first.name] = ["slow"]  # so that all of them ask before it is there
    four = Bytes(server.store("https", tmp_path / "cache"), (first,) * 4)
    loader = DataLoader(four, batch_size=None, num_workers=4, timeout=60)
    assert [digest.hex() for digest in loader] == [first.sha256] * 4
    assert server.requests[first.name] == 1


# Faults that pass


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("faults", [["503", "503"], ["429", "500"], ["cut"], ["wrong", "short"], ["surplus"]])
def test_a_fault_that_passes_is_tried_again(
    scheme: str,
    faults: list[str],
    server: FaultyServer,
    directory: Path,
    first: Shard,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.faults[first.name] = list(faults)
    with caplog.at_level(logging.WARNING, "flamingo_lite"):
        assert read(server.store(scheme, tmp_path / "cache"), first) == (directory / first.name).read_bytes()
    assert server.requests[first.name] == len(faults) + 1
    assert len([r for r in caplog.records if "trying again in" in r.getMessage()]) == len(faults)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_connection_that_is_reset_is_tried_again(
    scheme: str, server: FaultyServer, first: Shard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults[first.name] = ["reset"] * 3  # the first of which aiohttp does not tell of
    with caplog.at_level(logging.WARNING, "flamingo_lite"):
        assert read(server.store(scheme, tmp_path / "cache"), first)
    assert "trying again in" in caplog.text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_falls_silent_is_left_after_the_timeout(
    scheme: str, server: FaultyServer, directory: Path, first: Shard, tmp_path: Path
) -> None:
    server.faults[first.name] = ["stall"]
    started = time.monotonic()
    assert read(server.store(scheme, tmp_path / "cache", timeout=0.3), first)
    assert time.monotonic() - started < STALL


def test_the_manifest_is_tried_again_too(server: FaultyServer, directory: Path, tmp_path: Path) -> None:
    server.faults["shards.json"] = ["cut", "503"]
    store = server.store("https", tmp_path / "cache")
    assert store.manifest() == (directory / "shards.json").read_bytes()
    assert list((tmp_path / "cache").iterdir()) == []


def test_pauses_grow_and_differ(
    server: FaultyServer, first: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flamingo_lite.data.remote.time.sleep", pauses.append)
    server.faults[first.name] = ["503"] * 5
    read(server.store("https", tmp_path / "cache", retries=5, pause=1.0), first)
    assert pauses == sorted(pauses)
    assert all(0.75 * 2**i <= pause <= 1.25 * 2**i for i, pause in enumerate(pauses))
    assert len({round(pause / 2**i, 6) for i, pause in enumerate(pauses)}) > 1


def test_the_generators_that_a_run_is_seeded_with_are_not_drawn_from(
    server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    import random

    random.seed(3)
    before = random.getstate()
    server.faults[first.name] = ["503"]
    read(server.store("https", tmp_path / "cache"), first)
    assert random.getstate() == before


# Faults that do not pass


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "fault, said",
    [
        (
            "503",
            r"tries: 3, the last one: (ClientResponseError: 503|OSError: )",
        ),
        ("cut", "tries: 3, the last one: "),
        (
            "wrong",
            "the last one: the sha256 of what came is not the one in shards.json.; copy the manifest and its shards",
        ),
        ("short", r"the last one: [\d,]+ bytes came instead of the expected [\d,]+.; copy"),
        ("surplus", r"the last one: more than the expected [\d,]+ bytes came.; copy"),
    ],
)
def test_a_fault_that_stays_names_the_shard_the_tries_and_the_cause(
    scheme: str, fault: str, said: str, server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    server.faults[first.name] = [fault] * 9
    store = server.store(scheme, tmp_path / "cache")
    with pytest.raises(FlamingoError, match=said) as caught:
        read(store, first)
    assert str(caught.value).startswith(f"{store.location}/{first.name}: ") and "\n" not in str(caught.value)
    assert server.requests[first.name] == 3
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_a_server_that_never_answers_is_named_with_the_timeout(
    server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    server.faults[first.name] = ["stall"]
    store = server.store("https", tmp_path / "cache", timeout=0.2, retries=0)
    with pytest.raises(FlamingoError, match="tries: 1, .* nothing came for 0.2 seconds.*data.cache.timeout"):
        read(store, first)


def test_a_body_without_end_is_broken_off(server: FaultyServer, first: Shard, tmp_path: Path) -> None:
    server.faults[first.name] = ["endless"]
    with pytest.raises(FlamingoError, match="more than the expected"):
        read(server.store("https", tmp_path / "cache", retries=0), first)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "fault, kind, said",
    [
        (
            "404",
            Missing,
            "there is nothing; copy the whole directory of shards there, or correct the address",
        ),
        ("403", Refused, "may not be read .*; give "),
        ("401", Refused, "may not be read .*; give "),
        ("400", FlamingoError, "cannot be read .*; correct the address or data.cache.options"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    scheme: str,
    fault: str,
    kind: type[FlamingoError],
    said: str,
    server: FaultyServer,
    first: Shard,
    tmp_path: Path,
) -> None:
    server.faults[first.name] = [fault] * 9
    store = server.store(scheme, tmp_path / "cache")
    with pytest.raises(kind, match=f"{store.location}/{first.name}: {said}"):
        read(store, first)
    assert server.requests[first.name] == 1


def test_redirects_are_refused_without_repeating_a_signature(
    server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    server.faults[first.name] = ["redirect"]
    with pytest.raises(
        FlamingoError, match=r"redirects to https://169.254.169.254/\.\.\., and redirects are"
    ) as caught:
        read(server.store("https", tmp_path / "cache"), first)
    assert "hunter2" not in str(caught.value)


def test_s3_without_credentials_is_one_line_that_says_where_to_give_them(
    server: FaultyServer, first: Shard, tmp_path: Path
) -> None:
    options = {"s3": {"endpoint_url": server.url}}
    store = open_store("s3://bucket/shards", CacheConfig(directory=str(tmp_path / "cache"), options=options))
    with pytest.raises(Refused, match="credentials.*data.cache.options.s3.anon=true for a public bucket"):
        store.manifest()
    assert not server.requests


def test_a_server_that_is_not_there_is_tried_and_named(tmp_path: Path, first: Shard) -> None:
    config = CacheConfig(directory=str(tmp_path / "cache"), retries=1, pause=0.01)
    with pytest.raises(
        FlamingoError, match=r"http://127.0.0.1:9/a/shards.json: not fetched .tries: 2, .*Connect"
    ):
        open_store("http://127.0.0.1:9/a", config).manifest()


@pytest.mark.parametrize(
    "address, options, said",
    [
        ("s3://a!b/c", {"s3": {"anon": True}}, "a!b/c/shards.json: cannot be read .*Invalid bucket name"),
        ("s3://a/c", {"s3": {"profile": "nobody"}}, "may not be read .*nobody.*; give credentials"),
        (
            "s3://a/c",
            {"s3": {"anon": True, "endpoint_url": "x"}},
            "data.cache.options.s3: refused by its library",
        ),
        (
            "https://a/c",
            {"https": {"client_kwargs": {"x": 1}}},
            "data.cache.options.https: refused by its library",
        ),
    ],
)
def test_a_setting_that_cannot_be_right_is_named_at_once(
    address: str, options: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FlamingoError, match=said):
        open_store(address, CacheConfig(directory=str(tmp_path / "cache"), options=options)).manifest()
    assert "trying again" not in caplog.text


def test_a_bug_is_neither_tried_again_nor_hidden(
    server: FaultyServer, directory: Path, tmp_path: Path
) -> None:
    def broken(path: Path) -> None:
        raise NameError("nonsense")

    store = server.store("https", tmp_path / "cache")
    with pytest.raises(NameError, match="nonsense"):
        fetch(f"{store.location}/shards.json", tmp_path / "target", 10**6, store.config, broken)
    assert server.requests["shards.json"] == 1


def test_a_cache_that_is_taken_away_is_not_the_servers_fault(server: FaultyServer, tmp_path: Path) -> None:
    store = server.store("https", tmp_path / "cache")
    with pytest.raises(FlamingoError, match="gone: the cache of shards cannot be used .*No such file"):
        fetch(f"{store.location}/shards.json", tmp_path / "gone" / "target", 10**6, store.config)


@pytest.fixture
def stranger(server: FaultyServer, tmp_path: Path) -> str:
    """The server's address behind TLS, with a certificate that nobody vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "certificate.pem").write_bytes(secret + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server.url.replace("http://", "https://")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    scheme: str, stranger: str, server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"s3": {"anon": True, "endpoint_url": stranger}}
    config = CacheConfig(directory=str(tmp_path / "cache"), options=options)
    address = "s3://bucket/shards" if scheme == "s3" else f"{stranger}/bucket/shards"
    with pytest.raises(FlamingoError, match="shards.json: cannot be read .*certificate verify failed"):
        open_store(address, config).manifest()
    assert not server.requests and "trying again" not in caplog.text


def test_a_full_disk_is_not_the_servers_fault(
    server: FaultyServer, first: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flamingo_lite.data.remote._check_shard", full)
    with pytest.raises(
        FlamingoError, match="No space left on device.*free some space or lower data.cache.bytes"
    ):
        read(server.store("https", tmp_path / "cache"), first)
    assert server.requests[first.name] == 1


# What is asked for


@pytest.mark.parametrize("cache", [None, CacheConfig()])
@pytest.mark.parametrize("address", ["s3://bucket/a", "gs://bucket/a", "https://host/a"])
def test_shards_far_away_want_a_cache_that_was_asked_for(address: str, cache: CacheConfig | None) -> None:
    with pytest.raises(FlamingoError, match=f"{address}: .*set data.cache.directory .*50GB"):
        open_store(address, cache)


def test_a_scheme_whose_library_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(FlamingoError, match=r"gs://bucket/a: .*gcsfs.*pip install 'flamingo_lite\[remote\]'"):
        open_store("gs://bucket/a", CacheConfig(directory=str(tmp_path)))


def test_a_cache_far_away_is_refused() -> None:
    with pytest.raises(
        FlamingoError, match="data.cache.directory is s3://bucket; expected a directory of this"
    ):
        CacheConfig(directory="s3://bucket")


def test_a_limit_too_small_for_the_shards_of_a_window_is_one_line(
    server: FaultyServer, manifest: Manifest, tmp_path: Path
) -> None:
    sizes = sorted(shard.bytes for shard in manifest.shards)
    store = server.store("https", tmp_path / "cache", bytes=str(2 * sizes[-1]))
    local = open_store(tmp_path)
    check_room(store.config, [(store, manifest.shards), (local, manifest.shards)], 2)
    with pytest.raises(
        FlamingoError, match=f"take up to {sum(sizes):,} bytes; raise it, or lower data.shuffle_shards"
    ):
        check_room(store.config, [(store, manifest.shards)], 3)


def test_a_run_whose_windows_the_cache_cannot_hold_does_not_start(
    server: FaultyServer, manifest: Manifest, tmp_path: Path
) -> None:
    most = max(shard.bytes for shard in manifest.shards)
    cache = CacheConfig(directory=str(tmp_path / "cache"), bytes=str(2 * most))
    address = server.store("https", tmp_path / "cache").location
    assert len(open_sources(DataConfig(directory=address, cache=cache, shuffle_shards=2))) == 1
    with pytest.raises(FlamingoError, match="or lower data.shuffle_shards"):
        open_sources(DataConfig(directory=address, cache=cache, shuffle_shards=3))


def test_what_is_computed_about_shards_far_away_lies_in_the_cache(
    server: FaultyServer, tmp_path: Path
) -> None:
    one, other = (server.store(scheme, tmp_path / "cache").beside for scheme in SCHEMES)
    assert one != other
    assert one.is_relative_to(tmp_path / "cache")
