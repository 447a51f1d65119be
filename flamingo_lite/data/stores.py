"""Stores: where shards lie, and how one of them becomes a file of this machine that can be read.

A local directory is the trivial one. Shards far away (s3://, gs://, https://) are read through a bounded
cache, only where `data.cache.directory` asks for it; addresses come from the configuration, never from data.
"""

import heapq
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import unknown

if TYPE_CHECKING:
    from flamingo_lite.data.manifest import Shard

MANIFEST = "shards.json"
SCHEMES = ("s3", "gs", "https")
UNITS = {"": 1, "B": 1} | {
    f"{prefix}{middle}B": base**power
    for middle, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}

# One letter before the colon is a drive of Windows, not a scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_SECRETS = ("key", "secret", "token", "password", "username", "headers", "auth")
_NAMED_TOKENS = ("anon", "cloud", "google_default")
"""gcsfs calls a way of finding credentials a token, too; these are names, not secrets."""


@dataclass
class CacheConfig:
    """Where shards from far away are kept, and how much of them.

    `bytes`: the most that the cache's shards take ("50GB", "200MiB"); the least recently used go first. `timeout`:
    seconds without an answer or a byte; `retries`: how often a failed transfer is tried again, after pauses
    that grow from `pause` seconds. `options`: what fsspec's file system of a scheme is told
    ({"s3": {"endpoint_url": ...}}); it is no place for credentials.
    """

    directory: str | None = None
    bytes: str = "50GB"
    timeout: float = 30.0
    retries: int = 5
    pause: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_bytes(self.bytes, "data.cache.bytes")
        if not self.timeout > 0:
            raise FlamingoError(f"data.cache.timeout is {self.timeout}; expected seconds above 0")
        if self.retries < 0 or not self.pause >= 0:
            raise FlamingoError(
                f"data.cache.retries is {self.retries} and pause {self.pause}; expected 0 or more"
            )
        if self.directory and scheme_of(self.directory):
            raise FlamingoError(
                f"data.cache.directory is {self.directory}; expected a directory of this machine"
            )
        for scheme, options in self.options.items():
            if scheme not in SCHEMES:
                raise unknown("scheme in data.cache.options:", scheme, SCHEMES)
            if not isinstance(options, dict):
                raise FlamingoError(f"data.cache.options.{scheme} is {options!r}; expected names with values")
            _refuse_secrets(f"data.cache.options.{scheme}", options)

    @property
    def limit(self) -> int:
        """`bytes` as a number."""
        return parse_bytes(self.bytes, "data.cache.bytes")


class Store(Protocol):
    """The shards of one location. Picklable: a worker process gets its own."""

    @property
    def location(self) -> str:
        """The directory or address, as messages name it."""
        ...

    @property
    def beside(self) -> Path:
        """A directory of this machine for what is computed about the shards; it may not exist yet."""
        ...

    def manifest(self) -> bytes:
        """The content of shards.json. Errors: `FlamingoError` where there is none."""
        ...

    def path(self, shard: "Shard") -> Path:
        """The shard as a local file. From far away: whole, with the manifest's size and sha256.

        Another process may evict it from the cache at any time: `open` is the way to read it.
        """
        ...

    def open(self, shard: "Shard") -> BinaryIO:
        """The shard, opened for reading; what is open can be read to its end. Errors: `FlamingoError`, `OSError`."""
        ...

    def sidecar(self, shard: "Shard") -> bytes | None:
        """The content of the shard's index (`shard-000000.tar.idx`); None where it has none."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """Shards in a directory of this machine, as they are: nothing is checked, copied or cached."""

    directory: Path

    @property
    def location(self) -> str:
        return str(self.directory)

    @property
    def beside(self) -> Path:
        return self.directory

    def manifest(self) -> bytes:
        try:
            return (self.directory / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FlamingoError(
                f"{self.directory}: no shards here, {MANIFEST} is missing; make them with `flamingo-lite data`"
            ) from None

    def path(self, shard: "Shard") -> Path:
        return self.directory / shard.name

    def open(self, shard: "Shard") -> BinaryIO:
        try:
            return self.path(shard).open("rb")
        except FileNotFoundError:
            raise FlamingoError(
                f"{self.path(shard)}: the shard is missing, but {MANIFEST} names it; restore it or make shards again"
            ) from None

    def sidecar(self, shard: "Shard") -> bytes | None:
        path = self.directory / f"{shard.name}.idx"
        if not path.is_file():  # a pipe under that name would never end
            return None
        with path.open("rb") as file:
            return file.read(8 * (shard.samples + 1) + 1)  # one more tells that it does not fit


def open_store(location: str | Path, cache: CacheConfig | None = None) -> Store:
    """The store at a directory or an address.

    Errors: `FlamingoError` for a scheme that is not read, an address with credentials in it, or one far away
    without a cache.
    """
    scheme = scheme_of(location)
    if scheme is None:
        return LocalStore(Path(location))
    address = str(location).rstrip("/")
    check_address(address)
    if cache is None or not cache.directory:
        raise FlamingoError(
            f"{address}: shards far away are read through a cache on this machine; set data.cache.directory "
            f"(data.cache.bytes is {(cache or CacheConfig()).bytes})"
        )
    from flamingo_lite.data.remote import RemoteStore, file_system

    file_system(address, cache)  # what is missing here is better said before the run than in its workers
    return RemoteStore(address, cache)


def local_directory(location: str | Path) -> Path:
    """The directory, for commands that look at shards where they lie. Errors: `FlamingoError` for an address."""
    if scheme_of(location) is not None:
        raise FlamingoError(
            f"{location}: only directories of this machine are looked at; copy the shards to one first"
        )
    return Path(location)


def check_room(cache: CacheConfig, sources: Iterable[tuple[Store, Sequence["Shard"]]], together: int) -> None:
    """Errors: `FlamingoError` unless the cache holds `together` shards, of any size, of each source far away."""
    needed = sum(
        sum(heapq.nlargest(together, (shard.bytes for shard in shards)))
        for store, shards in sources
        if not isinstance(store, LocalStore)
    )
    if needed > cache.limit:
        raise FlamingoError(
            f"data.cache.bytes is {cache.bytes}, and the {together} shards that are read at a time from each source "
            f"take up to {needed:,} bytes; raise it, or lower data.shuffle_shards"
        )


def scheme_of(location: str | Path) -> str | None:
    """ "s3" of "s3://bucket/shards"; None for a local path."""
    if isinstance(location, Path):
        return None
    match = _SCHEME.match(location)
    return match[1].lower() if match else None


def check_address(address: str) -> None:
    """Errors: `FlamingoError` unless it is s3://, gs:// or https:// (http:// on this machine), and plain."""
    scheme = scheme_of(address)
    expected = "expected a local directory, s3://, gs:// or https://"
    parts = urlsplit(address)
    if scheme == "http" and not is_loopback(parts.hostname or ""):
        raise FlamingoError(f"{address}: http:// is read from this machine only; use https://")
    if scheme not in (*SCHEMES, "http"):
        raise FlamingoError(
            f"{address}: shards are not read through {scheme}: ({expected}; a directory of that name is ./{address})"
        )
    if not address.startswith(f"{scheme}://") or not parts.hostname:
        raise FlamingoError(f"{address}: no address of shards; {expected} and a host or bucket")
    if "@" in parts.netloc:
        raise FlamingoError(
            f"{scheme}://...@{parts.hostname}: credentials do not belong into an address, "
            "which is logged; give them by the environment"
        )
    if re.search(r"[?#\\\s\x00-\x1f]", address) or "::" in parts.path:
        raise FlamingoError(f"{address}: expected a plain address, without ? # \\ :: and spaces")


def is_loopback(host: str) -> bool:
    """Is it this machine's own address?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_bytes(text: str, name: str) -> int:
    """50,000,000,000 of "50GB"; KiB, MiB, ... are powers of 1024. Errors: `FlamingoError` that names `name`."""
    match = _AMOUNT.fullmatch(str(text))
    unit = next((u for u in UNITS if match and u.lower() == match[2].lower()), None)
    if match is None or unit is None or (number := int(float(match[1]) * UNITS[unit])) < 1:
        raise FlamingoError(f"{name} is {text!r}; expected an amount of bytes such as 50GB or 200MiB")
    return number


def _refuse_secrets(where: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, dict):
            _refuse_secrets(f"{where}.{name}", value)
        named = name == "token" and value in _NAMED_TOKENS
        if not named and (name in _SECRETS or name.startswith("aws_")):
            raise FlamingoError(
                f"{where}.{name}: settings are written into logs; give credentials by the environment or a profile"
            )
