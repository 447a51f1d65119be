"""What a format is: it cuts its inputs into units and reads a unit into records, *format -> Document*.

A record is a document under its key, or a reject that says why there is none. The engine does all else: filters,
shards, restarts. To add a format: a module with `FORMAT = Format(...)`, and a line in `formats.py`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.data.filters import Filters, option
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError


@dataclass(frozen=True)
class Options(Filters):
    """What every format can be told. A format with options of its own extends it, and may change defaults."""

    images: Path | None = option(None, "the folder that holds the images which the inputs name")
    samples_per_shard: int = option(1000, "documents of a shard, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_shard < 1:
            raise FlamingoError(f"samples_per_shard is {self.samples_per_shard}; expected 1 or more")


@dataclass(frozen=True)
class Unit:
    """What is converted, and redone, as one: an input, or the records `start` to `stop` of one.

    `name` is the input's, relative to what the user gave, so that keys do not depend on where it lies. `beside`:
    other files that decide the outcome.
    """

    path: Path
    name: str
    start: int = 0
    stop: int | None = None
    beside: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """The name as a part of keys and shard names: without suffix, plain, short, and as unique as the name."""
        folder, slash, file = self.name.rpartition("/")
        stem = folder + slash + file.split(".")[0]
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).lstrip("_-")[:40]
        return (
            plain
            if plain == stem
            else f"{plain or 'input'}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        )

    @property
    def id(self) -> str:
        """Names the unit among all units of a directory."""
        return self.stem if self.stop is None else f"{self.stem}-{self.start:08d}"

    def key(self, number: int) -> str:
        """The key of the input's record `number`: unique among all inputs, a function of the input's name alone."""
        return f"{self.stem}-{number:08d}"

    def where(self, number: int) -> str:
        """How messages name the record."""
        return f"{self.name}: record {number}"


@dataclass(frozen=True)
class Reject:
    """A document that there is not, or (`image`) an image that was left out of one that there is."""

    key: str
    reason: str
    message: str
    image: bool = False


Record = tuple[str, Document] | Reject


@dataclass(frozen=True)
class Format:
    """`summary`: one line for the help. `interleaved`: an image that cannot be used is left out of its document, and
    ends of chunks are set by where images stand; otherwise the document goes with it. `joint`: what comes between two
    texts that such an image stood between.

    `units` errors: `FlamingoError` for inputs of another kind. `read` errors: `FlamingoError` when the whole unit
    cannot be read; what concerns one record is a `Reject`, and its reason is "layout" if fields are unknown, missing
    or of the wrong type: a file whose first record has this reason is refused whole.
    """

    summary: str
    units: Callable[[Sequence[Path], Any], list[Unit]]
    read: Callable[[Unit, Any], Iterator[Record]]
    options: type[Options] = Options
    interleaved: bool = False
    joint: str = " "


def attempt(key: str, make: Callable[[], Document]) -> Record:
    """The document that `make` returns, or the reject for its `SampleError`."""
    try:
        return key, make()
    except SampleError as error:
        return Reject(key, error.reason, str(error))


def files(inputs: Sequence[Path], *suffixes: str) -> list[Unit]:
    """One unit per file: those given, and those with one of the suffixes (".jsonl") anywhere in the folders given.

    Errors: `FlamingoError` for an input that is missing or has another suffix, a folder without any such file, or two
    inputs that would have the same name.
    """
    expected = " or ".join(suffixes)
    units = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.endswith(suffixes) and p.is_file())
            if not inside:
                raise FlamingoError(f"{path}: no {expected} file in this folder; found {_shown(path)}")
            units += [Unit(found, found.relative_to(path).as_posix()) for found in inside]
        elif not path.exists():
            raise FlamingoError(f"{path}: no such file; give {expected} files, or a folder of them")
        elif not path.name.endswith(suffixes):
            raise FlamingoError(f"{path}: expected a {expected} file, or a folder of them")
        else:
            units.append(Unit(path, path.name))
    return units


def whole_files(*suffixes: str) -> Callable[[Sequence[Path], Any], list[Unit]]:
    """`Format.units` of a format in which each file is a unit."""
    return lambda inputs, options: files(inputs, *suffixes)


def stretches(unit: Unit, records: int, size: int = 5000) -> list[Unit]:
    """A unit of many records as several, so that they are shared among workers and redone apart."""
    return [
        Unit(unit.path, unit.name, start, min(start + size, records), unit.beside)
        for start in range(0, records, size)
    ]


def fields(
    record: Any, where: str, required: Mapping[str, type | tuple[type, ...]],
    optional: Mapping[str, type | tuple[type, ...]] | None = None, open: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The record, whose fields are these and no others (unless `open`).

    Errors: `SampleError` ("layout") naming the fields that are missing, unknown, or of another type than expected.
    """
    if not isinstance(record, dict):
        raise SampleError(
            f"{where}: a {type(record).__name__}; expected an object with {', '.join(required)}", "layout"
        )
    known = {**(optional or {}), **required}
    problems = [f"{name} is missing" for name in required if name not in record]
    if not open:
        problems += [f"{name} is unknown" for name in sorted(set(record) - set(known))]
    for name, kinds in known.items():
        if name in record and not isinstance(record[name], kinds):
            names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
            found = type(record[name]).__name__
            problems.append(f"{name} is a {found}, not a {' or '.join(names)}")
    if problems:
        raise SampleError(f"{where}: {'; '.join(problems)} (expected {', '.join(required)})", "layout")
    return record


def _shown(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"
