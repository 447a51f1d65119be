"""Files that lie beside a run and that training does not depend on: rejects, skipped steps, samples, rows of figures.

Where the disk refuses one of them, a line says so once, and training goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.evaluation.results import write_atomically

Say = Callable[[str], None]


class Beside:
    """`say` gets one line for each kind of file that could not be written."""

    def __init__(self, say: Say = print) -> None:
        self.say = say
        self._told: set[str] = set()

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """What the disk refuses inside ends there. `what`: the file, as the line calls it."""
        try:
            yield
        except (OSError, FlamingoError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            if what not in self._told:
                self._told.add(what)
                reason = cause.strerror or first_line(cause)
                self.say(
                    f"{what} cannot be written ({reason}): it lacks what comes now, and training goes on"
                )


class LineFile:
    """JSON, a line for each value. Several processes may add to one file: their lines do not run into each other."""

    def __init__(self, path: Path, beside: Beside) -> None:
        self.path, self.beside = path, beside
        self._is_cut = False

    def add(self, values: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(value) + "\n" for value in values)
        # What the disk has cut is ended, so that it spoils no other line.
        left = memoryview((("\n" if self._is_cut else "") + text).encode())
        self._is_cut = True
        with self.beside.writing(str(self.path)), self.path.open("ab", buffering=0) as file:
            while left:
                left = left[file.write(left) :]
            self._is_cut = False


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of steps that will be taken again, and what was cut. Errors: `FlamingoError`."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if (value := _parsed(line)) is not None and value["step"] <= step]
    if not kept:
        path.unlink()
    elif kept != lines:
        write_atomically(path, "".join(kept).encode())


def _parsed(line: str) -> Any:
    """None for a line that was cut."""
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
