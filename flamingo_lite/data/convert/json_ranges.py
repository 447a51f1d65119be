"""Where the elements of a JSON file lie, in bytes: a file of gigabytes is read by stretches and never held whole.

The file is mapped, not read; only one element at a time is parsed to find where it ends.
"""

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flamingo_lite.errors import FlamingoError

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}
_WINDOWS = (2**12, 2**16, 2**20)
# An element is parsed within a window of these sizes; a longer list or object is walked element by element.


@dataclass(slots=True)
class Element:
    """One element of a list or an object: its bytes are [start, end); `key` is its name in an object."""

    key: str | None
    start: int
    end: int = -1


class JsonFile:
    """A mapped JSON file: `with JsonFile(path) as file: ...`. Errors: `FlamingoError` naming the file and the byte."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise FlamingoError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
        try:
            self._data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            self._file.close()
            raise FlamingoError(f"{path}: is empty or no plain file; expected a JSON file") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._data.close()
        self._file.close()

    def kind(self, start: int = 0) -> type | None:
        """list or dict, by the first character at or after `start`; None for anything else."""
        return {b"[": list, b"{": dict}.get(self._at(self._skip(start)))

    def elements(self, start: int = 0) -> Iterator[Element]:
        """The elements of the list or object that begins at `start`, in order."""
        last = None
        for element in self.heads(start):
            if last is not None:
                yield last
            last = element
        if last is not None:
            yield last

    def heads(self, start: int = 0) -> Iterator[Element]:
        """The elements before their ends are known, which are looked for only to get to the next one."""
        position = self._skip(start)
        opening = self._at(position)
        if opening not in _CLOSING:
            raise self._error(position, "a list or an object")
        position = self._skip(position + 1)
        if self._at(position) == _CLOSING[opening]:
            self._check_rest(start, position)
            return
        while True:
            key = None
            if opening == b"{":
                key, position = self._key(position)
            yield (element := Element(key, position))
            element.end = self.end(position)
            position = self._skip(element.end)
            if self._at(position) == _CLOSING[opening]:
                self._check_rest(start, position)
                return
            if self._at(position) != b",":
                raise self._error(position, f"a comma or {_CLOSING[opening].decode()}")
            position = self._skip(position + 1)

    def end(self, position: int) -> int:
        """Where the value that begins at `position` ends."""
        first = self._at(position)
        if first == b'"':
            return self._text_end(position)
        for window in _WINDOWS:
            # As latin-1 a byte is a character, so positions agree, and what is no ASCII stands inside texts only.
            text = self._data[position : position + window].decode("latin-1")
            is_whole = position + window >= len(self._data)
            try:
                _, length = json.JSONDecoder().raw_decode(text)
            except ValueError as error:
                if is_whole:
                    raise self._error(position, "JSON") from error
                continue
            except RecursionError as error:
                raise self._error(position, "JSON that is not nested so deeply") from error
            if length < len(text) or is_whole:  # a number at the window's edge may go on
                return position + length
        if first not in _CLOSING:
            raise self._error(position, "JSON")
        end = position + 1
        for element in self.elements(position):
            end = element.end
        return self._skip(end) + 1  # of an empty one, blank for a megabyte, too

    def read(self, start: int, end: int) -> bytes:
        """These bytes of the file."""
        return self._data[start:end]

    def _key(self, position: int) -> tuple[str, int]:
        found = _STRING.match(self._data, position)
        colon = self._skip(found.end()) if found else position
        if not found or self._at(colon) != b":":
            raise self._error(position, "a name and a colon")
        try:
            return json.loads(found.group().decode("utf-8")), self._skip(colon + 1)
        except ValueError as error:
            raise self._error(position, "a name in UTF-8") from error

    def _check_rest(self, start: int, position: int) -> None:
        """Behind the outermost list or object comes nothing: a file of JSON lines would lose all but the first."""
        if start == 0 and (rest := self._skip(position + 1)) < len(self._data):
            raise self._error(rest, "nothing more")

    def _text_end(self, position: int) -> int:
        end = self._data.find(b'"', position + 1)
        # Images in base64 are megabytes without a backslash: a search is several times faster than the pattern.
        if end > 0 and self._data.find(b"\\", position, end) < 0:
            return end + 1
        if found := _STRING.match(self._data, position):
            return found.end()
        raise self._error(position, "the end of a text")

    def _skip(self, position: int) -> int:
        found = _SPACE.match(self._data, position)
        assert found is not None  # it matches nothing as well
        position = found.end()
        if position == 0 and self._data[:3] == b"\xef\xbb\xbf":
            return self._skip(3)
        return position

    def _at(self, position: int) -> bytes:
        return self._data[position : position + 1]

    def _error(self, position: int, expected: str) -> FlamingoError:
        found = self._data[position : position + 12].decode("utf-8", "replace")
        shown = repr(found) if found else "the end of the file"
        return FlamingoError(f"{self.path}: no JSON at byte {position:,}: found {shown}, expected {expected}")
