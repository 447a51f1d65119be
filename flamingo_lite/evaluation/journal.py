"""What an evaluation has answered so far: a line for each prediction, appended as it comes, a file for each process.

A run that was ended in the middle goes on from here; one that is done leaves `samples.jsonl` in its place.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answers import Answered
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Ranked
from flamingo_lite.evaluation.results import flat, write_atomically
from flamingo_lite.evaluation.scoring import Outcome

FOLDER = ".answers"
IDENTITY = "run.json"

Key = tuple[str | int, ...]
"""Which prediction: the model, the setting, the seed and the query."""


class Journal:
    """One process's file of answers, open for appending."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.path = directory / FOLDER / f"{rank:04}.jsonl"
        self._file: IO[str] | None = None

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            # A line that a killed process left half-written must not swallow the next one.
            if self._file.tell():
                self._file.write("\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, answers: Sequence[tuple[Key, Answered]]) -> None:
        """Appends; what was written survives the end of this process."""
        assert self._file is not None, "a journal is written to inside its context"
        try:
            self._file.writelines(_line(key, answered) for key, answered in answers)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error


def begin(directory: Path, identity: Mapping[str, Any]) -> None:
    """Makes `directory` that of the run with this identity (plain JSON), or finds that it is.

    Errors: `FlamingoError` naming what differs, where another evaluation was begun there.
    """
    path = directory / FOLDER / IDENTITY
    if path.is_file():
        before = _read_json(path)
        if before == identity:
            return
        if next(_every_line(directory), None) is not None:
            check_same(before, identity, directory)
    shutil.rmtree(path.parent, ignore_errors=True)
    write_atomically(path, (json.dumps(identity, indent=1) + "\n").encode())


def read(directory: Path) -> dict[Key, Answered]:
    """What all processes have answered, failures left out: they are to be tried again."""
    answers = _every_line(directory)
    return {key: found for key, found in answers if not isinstance(found.outcome, GenerationFailure)}


def end(directory: Path) -> None:
    """Forgets the answers, which stand in `samples.jsonl` now."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    """Errors: `FlamingoError` naming the first of the fields in which two identities differ."""
    old, new = flat(before), flat(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise FlamingoError(
                f"{directory} holds another evaluation: {name} was {_shown(old.get(name))} there and is "
                f"{_shown(new.get(name))} now; choose another output=, or delete results.json and {FOLDER} in it"
            )


def _shown(value: object) -> str:
    written = "not there" if value is None else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 60 else f"{written[:57]}..."


def _line(key: Key, answered: Answered) -> str:
    outcome = answered.outcome
    record: dict[str, Any] = {"key": key, "prompt_sha": answered.prompt_sha, "near_tie": answered.near_tie}
    if isinstance(outcome, GenerationFailure):
        record["failure"] = outcome.reason
    elif isinstance(outcome, Ranked):
        record |= {"raw": outcome.raw, "scores": outcome.scores}
    else:
        record["raw"] = outcome
    return json.dumps(record, separators=(",", ":")) + "\n"


def _every_line(directory: Path) -> Iterator[tuple[Key, Answered]]:
    for path in sorted((directory / FOLDER).glob("*.jsonl")):
        yield from _lines(path)


def _lines(path: Path) -> Iterator[tuple[Key, Answered]]:
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            key = tuple(record["key"])
            outcome: Outcome
            if "failure" in record:
                outcome = GenerationFailure(record["failure"])
            elif "scores" in record:
                outcome = Ranked(record["raw"], tuple(record["scores"]))
            else:
                outcome = record["raw"]
            yield key, Answered(outcome, record["prompt_sha"], record["near_tie"])
        except (ValueError, KeyError, TypeError):
            continue  # empty, or cut off where a process was killed


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlamingoError(f"{path} cannot be read ({error}); delete {path.parent} to start over") from error
    return found if isinstance(found, dict) else {}


def _unwritable(path: Path, error: OSError) -> FlamingoError:
    return FlamingoError(f"{path} cannot be written ({error.strerror or error}); choose another output=")
