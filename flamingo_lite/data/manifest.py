"""The manifest `shards.json`: which shards a directory has, and what is in them.

It is written last, so a directory with a manifest is whole; what it does not name is never opened.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flamingo_lite.data.tar import BLOCK, scan
from flamingo_lite.errors import FlamingoError

MANIFEST = "shards.json"
VERSION = 1

# A plain file name: no separator, no leading dot, no scheme, so that it stays inside its directory.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar. `offsets`: where each sample begins, in bytes; with them samples are read in any order."""

    name: str
    bytes: int
    sha256: str
    samples: int
    images: int
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The shards of a directory, in order. `info`: what made them, free JSON."""

    directory: Path
    shards: tuple[Shard, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def to_json(self) -> str:
        """One line per shard: readable, and small however many samples there are."""
        lines = ",\n".join(f"  {json.dumps(asdict(shard))}" for shard in self.shards)
        return f'{{"version": {VERSION}, "info": {json.dumps(self.info)}, "shards": [\n{lines}\n]}}\n'


def load_manifest(directory: str | Path, verify: Literal["bytes", "sha256"] = "bytes") -> Manifest:
    """The manifest of a directory, checked against the shards beside it: their sizes, or all their bytes.

    Errors: `FlamingoError` naming the directory or the shard: no manifest, a damaged one, a name that leaves
    the directory, a missing shard, or one that differs from what the manifest says.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise FlamingoError(
            f"{directory}: no shards here, {MANIFEST} is missing; make them with `flamingo-lite data`"
        )
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version != VERSION:
            raise FlamingoError(f"{path}: version {version!r}; this release reads version {VERSION}")
        shards = [_shard(entry) for entry in content["shards"]]
        info = dict(content.get("info") or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FlamingoError(f"{path}: not a manifest of shards ({error or type(error).__name__})") from error
    if len({shard.name for shard in shards}) != len(shards):
        raise FlamingoError(f"{path}: names a shard twice")
    return Manifest(directory, tuple(_checked(directory, shard, verify) for shard in shards), info)


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shard(entry: dict[str, Any]) -> Shard:
    """Errors: `ValueError`, `KeyError` or `TypeError` that says what is wrong with the entry."""
    counts = [entry["bytes"], entry["samples"], entry["images"]]
    offsets = tuple(entry.get("offsets") or ())
    if not _NAME.fullmatch(entry["name"]):
        raise ValueError(f"shard name {entry['name']!r}; expected a plain file name that ends in .tar")
    if not all(type(count) is int and count >= 0 for count in [*counts, *offsets]):
        raise ValueError(f"{entry['name']}: expected whole numbers of bytes, samples, images and offsets")
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"{entry['name']}: sha256 is not 64 hexadecimal digits")
    shard = Shard(entry["name"], counts[0], entry["sha256"], counts[1], counts[2], offsets)
    if offsets:
        _check_offsets(shard)
    return shard


def _check_offsets(shard: Shard) -> None:
    steps = zip(shard.offsets, [*shard.offsets[1:], shard.bytes], strict=True)
    if len(shard.offsets) != shard.samples or any(a >= b or a % BLOCK for a, b in steps):
        raise ValueError(
            f"{shard.name}: the offsets do not fit {shard.samples} samples in {shard.bytes} bytes"
        )


def _checked(directory: Path, shard: Shard, verify: str) -> Shard:
    path = directory / shard.name
    if not path.is_file():
        raise FlamingoError(
            f"{path}: the shard is missing, but {MANIFEST} names it; restore it or make shards again"
        )
    if (size := path.stat().st_size) != shard.bytes:
        kind = "truncated" if size < shard.bytes else "foreign"
        raise FlamingoError(
            f"{path}: {kind} shard of {size:,} bytes, {MANIFEST} says {shard.bytes:,}; make it again"
        )
    if verify == "sha256" and sha256_of(path) != shard.sha256:
        raise FlamingoError(f"{path}: the shard's sha256 differs from the one in {MANIFEST}; make it again")
    if shard.offsets or not shard.samples:
        return shard
    return _with_offsets(path, shard)


def _with_offsets(path: Path, shard: Shard) -> Shard:
    """Finds where the samples begin, for shards that another program wrote."""
    found = scan(path)
    if found.tail is not None:
        raise FlamingoError(f"{path}: not the tar that {MANIFEST} describes ({found.tail}); make it again")
    indexed = Shard(**{**asdict(shard), "offsets": tuple(found.offsets)})
    try:
        _check_offsets(indexed)
    except ValueError as error:
        raise FlamingoError(
            f"{path}: not the tar that {MANIFEST} describes ({error}); make it again"
        ) from error
    return indexed
