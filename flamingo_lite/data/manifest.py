"""The manifest `shards.json`: which shards a directory has, and what is in them.

It is written last, so a directory with a manifest is whole; what it does not name is never opened. Where samples begin
inside a shard stands beside it (`shard_index.py`): a manifest has a line for each shard, whatever it holds.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flamingo_lite.data.stores import MANIFEST, LocalStore, Store
from flamingo_lite.data.tar import BLOCK
from flamingo_lite.errors import FlamingoError

VERSION = 1

# A plain file name: no separator, no leading dot, no scheme, so that it stays inside its directory.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar. `offsets`: where each sample begins, in manifests that say so themselves; see `sample_offsets`."""

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
        entries = (asdict(shard) for shard in self.shards)
        lines = ",\n".join(
            f"  {json.dumps({name: value for name, value in entry.items() if name != 'offsets' or value})}"
            for entry in entries
        )
        return f'{{"version": {VERSION}, "info": {json.dumps(self.info)}, "shards": [\n{lines}\n]}}\n'


def load_manifest(directory: str | Path, verify: Literal["bytes", "sha256"] = "bytes") -> Manifest:
    """The manifest of a directory, checked against the shards beside it: their sizes, or all their bytes.

    Errors: `FlamingoError` naming the directory or the shard: no manifest, a damaged one, a name that leaves
    the directory, a missing shard, or one that differs from what the manifest says.
    """
    manifest = read_manifest(LocalStore(Path(directory)))
    for shard in manifest.shards:
        _check(manifest.directory, shard, verify)
    return manifest


def read_manifest(store: Store) -> Manifest:
    """The manifest of a store for reading: no shard is opened, and none is looked at but for its name.

    Errors: `FlamingoError` for no manifest, a damaged one, and a shard that is missing from a directory.
    """
    manifest = parse_manifest(store.manifest(), f"{store.location}/{MANIFEST}", store.beside)
    if isinstance(store, LocalStore):
        _check_names(store.directory, manifest.shards)
    return manifest


def parse_manifest(data: bytes, where: str, directory: Path) -> Manifest:
    """The manifest that `data` spells, whether its shards are there or not. Errors: `FlamingoError` for a damaged one."""
    try:
        content = json.loads(data)
        version = content["version"]
        if version != VERSION:
            raise FlamingoError(f"{where}: version {version!r}; this release reads version {VERSION}")
        shards = tuple(_shard(entry) for entry in content["shards"])
        info = dict(content.get("info") or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FlamingoError(f"{where}: not a manifest of shards ({error or type(error).__name__})") from error
    if len({shard.name for shard in shards}) != len(shards):
        raise FlamingoError(f"{where}: names a shard twice")
    return Manifest(directory, shards, info)


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
    if max(counts[1:]) * BLOCK > counts[0]:  # a reader would count to the end of them
        raise ValueError(f"{entry['name']}: more samples or images than {counts[0]:,} bytes can hold")
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


def _check_names(directory: Path, shards: tuple[Shard, ...]) -> None:
    # One listing: asking for each of 100,000 shards on a network's disk takes minutes. A pipe or a device under a
    # shard's name would never end.
    with os.scandir(directory) as entries:
        present = {entry.name for entry in entries if entry.is_file()}
    if missing := [shard.name for shard in shards if shard.name not in present]:
        raise FlamingoError(
            f"{directory / missing[0]}: the shard is missing, but {MANIFEST} names it ({len(missing)} are); "
            "restore it or make shards again"
        )


def _check(directory: Path, shard: Shard, verify: str) -> None:
    path = directory / shard.name
    if (size := path.stat().st_size) != shard.bytes:
        kind = "truncated" if size < shard.bytes else "foreign"
        raise FlamingoError(
            f"{path}: {kind} shard of {size:,} bytes, {MANIFEST} says {shard.bytes:,}; make it again"
        )
    if verify == "sha256" and sha256_of(path) != shard.sha256:
        raise FlamingoError(f"{path}: the shard's sha256 differs from the one in {MANIFEST}; make it again")
