"""What a unit came to, on disk: it is written when the unit's shards are in place, so a unit with a ledger that fits
is done, and only such a unit is skipped by the next run."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Options, Unit
from flamingo_lite.data.manifest import Shard, sha256_of
from flamingo_lite.data.shard_writer import index_path, write_whole
from flamingo_lite.errors import FlamingoError

FOLDER = ".convert"
VERSION = 2
"""Of what the converters write: raised when the same input comes to other documents."""


@dataclass
class Ledger:
    """`fingerprint`: of all that decided the outcome. `rejects`: documents by reason; `images_left_out`: images."""

    unit: str
    fingerprint: str
    documents: int = 0
    images: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    images_left_out: Counter[str] = field(default_factory=Counter)
    shards: list[Shard] = field(default_factory=list)

    def to_json(self) -> str:
        content = asdict(self)
        content["shards"] = [
            {k: v for k, v in shard.items() if k != "offsets"} for shard in content["shards"]
        ]
        content["rejects"] = dict(sorted(self.rejects.items()))
        content["images_left_out"] = dict(sorted(self.images_left_out.items()))
        return json.dumps(content, indent=1) + "\n"


def ledger_path(directory: Path, unit: str) -> Path:
    """The ledger of the unit with this id."""
    return directory / FOLDER / f"{unit}.json"


def rejects_path(directory: Path, unit: str) -> Path:
    """The rejects of the unit with this id, a JSON line each."""
    return directory / FOLDER / f"{unit}.rejects.jsonl"


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Whole or not at all."""
    write_whole(ledger_path(directory, ledger.unit), ledger.to_json())


def read_ledger(directory: Path, unit: str) -> Ledger | None:
    """None where there is none, or none that can be read: the unit is then done again."""
    try:
        content = json.loads(ledger_path(directory, unit).read_bytes())
        content["shards"] = [Shard(**shard) for shard in content["shards"]]
        for name in ("rejects", "images_left_out"):
            content[name] = Counter(content[name])
        return Ledger(**content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fits(directory: Path, ledger: Ledger | None, fingerprint: str) -> bool:
    """Whether the unit is done: the same input, options and version, and its files lie there in their sizes."""
    if ledger is None or ledger.fingerprint != fingerprint:
        return False
    paths = [directory / shard.name for shard in ledger.shards]
    return rejects_path(directory, ledger.unit).is_file() and all(
        path.is_file()
        and path.stat().st_size == shard.bytes
        and index_path(path).is_file()
        and index_path(path).stat().st_size == 8 * (shard.samples + 1)
        for path, shard in zip(paths, ledger.shards, strict=True)
    )


def fingerprint(format_name: str, unit: Unit, options: Options) -> str:
    """sha256 of the input's content and of everything else that decides what it comes to.

    Images in a folder are not read for it: when they change, convert with --overwrite.
    """
    decisive: dict[str, Any] = {
        "version": VERSION,
        "format": format_name,
        "unit": [unit.name, unit.start, unit.stop],
        "inputs": [_content_of(path) for path in (unit.path, *unit.beside)],
        "options": {name: str(value) for name, value in sorted(vars(options).items())},
        "deny": _content_of(Path(options.deny)) if options.deny else None,
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def forget_folders() -> None:
    """Has the folders among the inputs looked at anew: a process may convert one twice, changed in between."""
    _folder.cache_clear()


def _content_of(path: Path) -> str:
    try:
        stat = path.stat()
        return _folder(path) if path.is_dir() else _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise FlamingoError(f"{path}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Cached, because the stretches of one file ask for it again and again."""
    return sha256_of(path)


@lru_cache(maxsize=8)
def _folder(path: Path) -> str:
    """Names, sizes and times of the files in a folder: their content would take as long as converting them."""
    digest = hashlib.sha256()
    for found in sorted(path.rglob("*")):
        if found.is_file():
            stat = found.stat()
            digest.update(
                f"{found.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()
