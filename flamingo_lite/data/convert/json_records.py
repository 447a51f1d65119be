"""The records of one large JSON file, by number: the elements of a list or an object somewhere in it.

Where they lie is found once per process; what a unit needs is then read from there, so memory stays flat.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Record, Unit, attempt, stretches
from flamingo_lite.data.convert.json_ranges import JsonFile
from flamingo_lite.data.convert.sources import MAX_LINE, parse_json
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError

_KINDS = {list: "a list", dict: "an object", None: "neither a list nor an object"}


@dataclass(frozen=True, eq=False)
class Section:
    """A list or an object in a JSON file. Element i has the bytes [starts[i], ends[i]); `numbers`: element by key."""

    path: Path
    starts: array
    ends: array
    keys: tuple[str, ...]
    numbers: dict[str, int]

    def __len__(self) -> int:
        return len(self.starts)

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, str | None, bytes]]:
        """Number, key (None in a list) and bytes of the elements from `start` to `stop`."""
        with self.path.open("rb") as file:
            for number in range(start, len(self) if stop is None else stop):
                file.seek(self.starts[number])
                # What is above the limit is refused as such, and not held to find that out.
                data = file.read(min(self.ends[number] - self.starts[number], MAX_LINE + 1))
                yield number, self.keys[number] if self.keys else None, data

    def read(self, number: int) -> bytes:
        """The bytes of one element."""
        return next(self.items(number, number + 1))[2]


def section(path: Path, kind: type, name: str | None = None) -> Section:
    """The list or object (`kind`) that a JSON file is, or that it holds under `name`.

    Errors: `FlamingoError` naming a file that is no JSON, holds no such section, or has a key twice in it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FlamingoError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
    return _section(path, kind, name, status.st_size, status.st_mtime_ns)


def names(path: Path) -> Iterator[str]:
    """The names at the top of a JSON file that is an object; none for a list."""
    with JsonFile(path) as file:
        if file.kind() is dict:
            yield from (str(element.key) for element in file.heads())


def value(path: Path, name: str) -> Any:
    """The small value that a JSON file holds under `name`. Errors: `FlamingoError` where it has none."""
    with JsonFile(path) as file:
        start = _start(file, name)
        return parse_json(file.read(start, min(file.end(start), start + MAX_LINE + 1)), f"{path}: {name}")


def read_records(
    unit: Unit, found: Section, make: Callable[[str | None, Any, str], Document]
) -> Iterator[Record]:
    """The documents that `make` makes of the unit's records: it gets key, parsed record and what messages call it."""
    for number, key, data in found.items(unit.start, unit.stop):
        where = unit.where(number)
        yield attempt(unit.key(number), partial(_make, make, key, data, where))


def cut(unit: Unit, found: Section) -> list[Unit]:
    """The unit in stretches. Errors: `FlamingoError` where there is no record."""
    if not len(found):
        raise FlamingoError(f"{found.path}: holds no records; nothing can be converted")
    return stretches(unit, len(found))


def _make(
    make: Callable[[str | None, Any, str], Document], key: str | None, data: bytes, where: str
) -> Document:
    return make(key, parse_json(data, where), where)


# The size and the time of the last change are here for the cache: a file that has changed is read anew.
@lru_cache(maxsize=8)
def _section(path: Path, kind: type, name: str | None, size: int, changed: int) -> Section:
    with JsonFile(path) as file:
        start = 0 if name is None else _start(file, name)
        if file.kind(start) is not kind:
            what = f"{name!r} is" if name else "is"
            raise FlamingoError(f"{path}: {what} {_KINDS[file.kind(start)]}; expected {_KINDS[kind]}")
        starts, ends, keys = array("q"), array("q"), []
        for element in file.elements(start):
            starts.append(element.start)
            ends.append(element.end)
            if element.key is not None:
                keys.append(element.key)
    numbers = {key: number for number, key in enumerate(keys)}
    if len(numbers) < len(keys):
        twice = next(key for number, key in enumerate(keys) if numbers[key] != number)
        raise FlamingoError(f"{path}: has {twice!r} twice; expected every key once")
    return Section(path, starts, ends, tuple(keys), numbers)


def _start(file: JsonFile, name: str) -> int:
    if file.kind() is not dict:
        raise FlamingoError(f"{file.path}: is {_KINDS[file.kind()]}; expected an object with {name!r}")
    seen = []
    for element in file.heads():
        if element.key == name:
            return element.start
        seen.append(element.key)
    raise FlamingoError(f"{file.path}: has no {name!r}; found {', '.join(map(repr, seen[:8])) or 'nothing'}")
