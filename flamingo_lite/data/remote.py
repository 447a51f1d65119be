"""Shards far away: fetched whole through fsspec into the cache, tried again where the failure may pass.

Nothing is read that does not have the manifest's size and sha256. A failed transfer is never a bad sample: it
ends in a whole shard or stops the run.
"""

import hashlib
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from fsspec.callbacks import Callback

from flamingo_lite.data.cache import FileCache, disk_error, is_full
from flamingo_lite.data.manifest import Shard
from flamingo_lite.data.shard_index import index_fits
from flamingo_lite.data.stores import MANIFEST, CacheConfig
from flamingo_lite.errors import FlamingoError, first_line

MANIFEST_LIMIT = 2**30
"""The most bytes of a manifest that are taken from a server: a million shards."""
LONGEST_PAUSE = 60.0

_LIBRARIES = {
    "aiobotocore",
    "aiohttp",
    "botocore",
    "gcsfs",
    "google",
    "http",
    "requests",
    "s3fs",
    "ssl",
    "urllib3",
}
"""Whose exceptions are failures of a transfer; any other one is a bug and is not caught."""
_PASSING = {
    "HTTPClientError",
    "ConnectionError",
    "ResponseParserError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "FlexibleChecksumError",
    "ClientError",
}
"""Of botocore's own exceptions those that may pass, or have a status; all others are about settings."""
_ABOUT_CREDENTIALS = re.compile("Credential|Profile|Token|SSO|MetadataRetrieval")
_CREDENTIALS = {
    "s3": "give credentials by the environment or a profile, or data.cache.options.s3.anon=true for a public bucket",
    "gs": "give Google's default credentials, or data.cache.options.gs.token=anon for a public bucket",
    "https": "give a login in ~/.netrc together with data.cache.options.https.client_kwargs.trust_env=true",
}
_PASSING_STATUS = {408, 425, 429}

logger = logging.getLogger(__name__)
# Seeds of the run stay untouched, and processes that were forked do not all pause alike.
_jitter = random.SystemRandom()


class Missing(FlamingoError):
    """There is nothing at an address."""


class Refused(FlamingoError):
    """The server does not let us read what is at an address."""


class _Mismatch(Exception):
    """What arrived is not what the manifest says."""


class _Redirected(Exception):
    """The server names another address."""


@dataclass(frozen=True)
class RemoteStore:
    """The shards at an address (checked: `stores.check_address`), through the cache of `config`.

    Errors of its methods: as `fetch`.
    """

    location: str
    config: CacheConfig

    @property
    def directory(self) -> Path:
        assert self.config.directory is not None
        return Path(self.config.directory)

    @property
    def beside(self) -> Path:
        return self.directory / "beside" / hashlib.sha256(self.location.encode()).hexdigest()[:16]

    def manifest(self) -> bytes:
        """Fetched anew each time, so that a changed one is seen."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=self.directory, prefix="manifest-")
        except OSError as error:
            raise disk_error(self.directory, error) from error
        with folder as name:
            target = Path(name) / MANIFEST
            fetch(f"{self.location}/{MANIFEST}", target, MANIFEST_LIMIT, self.config)
            return target.read_bytes()

    def path(self, shard: Shard) -> Path:
        self.open(shard).close()
        return self._cache.path(f"{shard.sha256}.tar")

    def open(self, shard: Shard) -> BinaryIO:
        address, check = f"{self.location}/{shard.name}", partial(_check_shard, shard)

        def fetch_shard(target: Path) -> None:
            fetch(address, target, shard.bytes, self.config, check)

        return self._cache.open(f"{shard.sha256}.tar", shard.bytes, fetch_shard)

    def sidecar(self, shard: Shard) -> bytes | None:
        address, size = f"{self.location}/{shard.name}.idx", 8 * (shard.samples + 1)
        # Its content is not vouched for by a hash: another address's index is not taken for this one's.
        name = hashlib.sha256(f"{address} {shard.sha256}".encode()).hexdigest()

        def fetch_index(target: Path) -> None:
            fetch(address, target, size, self.config, partial(_check_index, shard))

        try:
            with self._cache.open(f"{name}.idx", size, fetch_index) as file:
                return file.read()
        except (Missing, Refused):
            # S3 refuses what is not there to those who may not list; the shard itself says if that is all.
            return None

    @property
    def _cache(self) -> FileCache:
        return FileCache(self.directory, self.config.limit)


def fetch(
    address: str,
    target: Path,
    most: int,
    config: CacheConfig,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes what lies at the address to `target`: at most `most` bytes, which `check` has found right.

    Errors: `Missing`, `Refused` or another `FlamingoError` at once for what will not pass; a `FlamingoError`
    after `config.retries` more tries for what might have.
    """
    system, cause, advice = file_system(address, config), "", ""
    for left in reversed(range(config.retries + 1)):
        try:
            system.get_file(address, str(target), callback=_Bound(most))
            check(target)
            return
        except _Mismatch as error:
            cause, advice = str(error), "copy the manifest and its shards there again"
        except Exception as error:
            if is_full(error) or getattr(error, "filename", None) == str(target):
                raise disk_error(target.parent, error) from error
            if (failure := lasting_failure(address, error)) is not None:
                raise failure from error
            if isinstance(error, TypeError | ValueError) and config.options.get(_option_name(address)):
                raise _bad_options(address, error) from error
            if not _is_transfer(error):
                raise
            cause = _said(error, config.timeout)
            advice = "try again later, or raise data.cache.retries or data.cache.timeout"
        if left:
            growth = 2 ** (config.retries - left)
            pause = min(config.pause * growth, LONGEST_PAUSE) * _jitter.uniform(0.75, 1.25)
            logger.warning("%s: %s; trying again in %.1f seconds", address, cause, pause)
            time.sleep(pause)
    raise FlamingoError(
        f"{address}: not fetched (tries: {config.retries + 1}, the last one: {cause}); {advice}"
    )


def file_system(address: str, config: CacheConfig) -> fsspec.AbstractFileSystem:
    """fsspec's file system for the address, told about timeouts; retries and redirects are left to us.

    Errors: `FlamingoError` where its library is missing or does not take the options.
    """
    name = _option_name(address)
    options = config.options.get(name, {})
    try:
        # fsspec keeps one instance per process and settings, so that connections are used again.
        system = fsspec.filesystem(name, **_SETTINGS[name](options, config.timeout))
    except ImportError as error:
        raise FlamingoError(
            f"{address}: reading {name}:// needs more libraries ({first_line(error)}); "
            "pip install 'flamingo_lite[remote]'"
        ) from error
    except (TypeError, ValueError) as error:
        raise _bad_options(address, error) from error
    if name == "s3":
        # Its own tries within each of ours would multiply them.
        system.retries = 1  # pyrefly: ignore
    return system


def lasting_failure(address: str, error: BaseException) -> FlamingoError | None:
    """The error to raise at once; None for a failure that may pass."""
    status, name, said = _status(error), type(error).__name__, _words(error)
    if isinstance(error, _Redirected):
        return FlamingoError(
            f"{address}: the server redirects to {error}, and redirects are not followed; "
            "give the address that they lead to"
        )
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Missing(
            f"{address}: there is nothing; copy the whole directory of shards there, or correct the address"
        )
    settings = _library(error) == "botocore" and not _PASSING & _kinds(error)
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or (settings and _ABOUT_CREDENTIALS.search(name))
        or name == "DefaultCredentialsError"  # Google's
        or said.startswith("Forbidden: ")  # gcsfs's word for 403
    ):
        return Refused(f"{address}: may not be read ({said}); {_CREDENTIALS[_option_name(address)]}")
    wrong = status is not None and 300 <= status < 500 and status not in _PASSING_STATUS
    if wrong or settings or name == "InvalidURL" or "certificate verify failed" in str(error):
        return FlamingoError(f"{address}: cannot be read ({said}); correct the address or data.cache.options")
    return None


class _Bound(Callback):
    """Breaks off a transfer of more bytes than there should be."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self._check(size or 0)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._check(self.value)

    def _check(self, size: int) -> None:
        if size > self.most:
            raise _Mismatch(f"more than the expected {self.most:,} bytes came")


def _check_size(size: int, path: Path) -> None:
    if (found := path.stat().st_size) != size:
        raise _Mismatch(f"{found:,} bytes came instead of the expected {size:,}")


def _check_shard(shard: Shard, path: Path) -> None:
    _check_size(shard.bytes, path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise _Mismatch(f"the sha256 of what came is not the one in {MANIFEST}")


def _check_index(shard: Shard, path: Path) -> None:
    if not index_fits(path.read_bytes(), shard):
        raise _Mismatch(f"it does not fit {shard.samples} samples in {shard.bytes:,} bytes")


def _is_transfer(error: BaseException) -> bool:
    return isinstance(error, OSError) or _library(error) in _LIBRARIES


def _kinds(error: BaseException | None) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _said(error: BaseException, timeout: float) -> str:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"nothing came for {timeout:g} seconds"
    return f"{type(error).__name__}: {_words(error)}"


def _words(error: BaseException) -> str:
    """What a library says, on one line: botocore's first line says least."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _option_name(address: str) -> str:
    """The name in `data.cache.options` of the address's file system."""
    scheme = urlsplit(address).scheme
    return "https" if scheme == "http" else scheme


def _bad_options(address: str, error: BaseException) -> FlamingoError:
    name = _option_name(address)
    return FlamingoError(
        f"data.cache.options.{name}: refused by its library ({_words(error)}); "
        f"expected options of fsspec's file system for {name}"
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an exception, or what it comes from, carries in its library's way."""
    if error is None or "HttpProcessingError" in _kinds(error.__cause__):
        return None  # aiohttp gives a status of its own making to an answer that it cannot read
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for status in (
        getattr(error, "status", None),
        metadata.get("HTTPStatusCode"),
        getattr(error, "code", None),
    ):
        if str(status).isdecimal():
            return int(str(status))
    return _status(error.__cause__)


async def _refuse_redirects(response: Any) -> None:
    if 300 <= response.status < 400:
        there = urlsplit(response.headers.get("Location", ""))
        # Not the whole address: what servers redirect to is often signed.
        raise _Redirected(
            f"{there.scheme}://{there.netloc}/..." if there.netloc else f"{there.path or 'nowhere'}"
        )


def _s3_settings(options: dict[str, Any], timeout: float) -> dict[str, Any]:
    given = options.get("config_kwargs", {})
    limits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
    return {**options, "config_kwargs": {**limits, **given}}


def _gs_settings(options: dict[str, Any], timeout: float) -> dict[str, Any]:
    return {**options, "requests_timeout": _silence(timeout)}


def _https_settings(options: dict[str, Any], timeout: float) -> dict[str, Any]:
    client = {
        "timeout": _silence(timeout),
        **options.get("client_kwargs", {}),
        "raise_for_status": _refuse_redirects,
    }
    return {**options, "client_kwargs": client, "allow_redirects": False}


def _silence(timeout: float) -> Any:
    """However long a transfer takes, no single answer or byte may take longer than `timeout`."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)


_SETTINGS = {"s3": _s3_settings, "gs": _gs_settings, "https": _https_settings}
