"""Answers on the disk, each under the sha256 of what was asked: nothing is asked, or paid for, twice."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.teacher.messages import Answer, Message, Sampling


class AnswerCache:
    """A file per answer in `directory`, whole or not there; `lock` keeps a second run out while one asks.

    Beside it, until there is an answer, a line for each try that was sent and may have cost something (`begin`), so that
    what a killed run has spent is known to the next.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: str) -> Answer | None:
        """Errors: `FlamingoError` naming a file that no run has written so."""
        path = self._path(key)
        try:
            return Answer(**json.loads(path.read_bytes())["answer"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FlamingoError(
                f"{path}: not an answer that was kept here ({error}); remove the file, and it is asked for again"
            ) from error

    def put(self, key: str, request: dict[str, Any], answer: Answer) -> None:
        """Keeps the answer beside its request, on the disk when this returns. Errors: `FlamingoError`."""
        path = self._path(key)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as file:
                json.dump({"request": request, "answer": asdict(answer)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise FlamingoError(
                f"{path}: the answer cannot be kept ({error.strerror}); free some space, or set cache=DIR elsewhere"
            ) from error

    def begin(self, key: str, tokens: int) -> None:
        """Notes, before it is sent, a try that may cost so many tokens. Errors: `FlamingoError`."""
        path = self._tries(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="ascii") as file:
                file.write(f"{tokens}\n")
        except OSError as error:
            raise FlamingoError(
                f"{path}: cannot be written ({error.strerror}); free some space, or set cache=DIR elsewhere"
            ) from error

    def undo(self, key: str) -> None:
        """The last try has cost nothing."""
        lines = self._tries(key).read_text(encoding="ascii").splitlines(keepends=True)
        if lines[:-1]:
            self._tries(key).write_text("".join(lines[:-1]), encoding="ascii")
        else:
            self.forget(key)

    def forget(self, key: str) -> None:
        """There is an answer, which says itself what its tries have cost."""
        self._tries(key).unlink(missing_ok=True)

    def lost(self, key: str) -> int:
        """The tokens that tries of a request without an answer may have cost."""
        return _sum_of(self._tries(key))

    def all_lost(self) -> int:
        """The same, of all requests."""
        found = self.directory.glob("*/*.tries")
        return sum(_sum_of(path) for path in found if not path.with_suffix(".json").exists())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Errors: `FlamingoError` while another run holds it. A run that is killed lets go of it."""
        import filelock

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(self.directory / ".lock", timeout=0)
            held.acquire()
        except filelock.Timeout as error:
            raise FlamingoError(
                f"{self.directory}: another run keeps its answers there; wait for it, or set cache=DIR elsewhere"
            ) from error
        except OSError as error:
            raise FlamingoError(
                f"{self.directory}: answers cannot be kept there ({error.strerror}); set cache=DIR elsewhere"
            ) from error
        try:
            yield
        finally:
            held.release()

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"

    def _tries(self, key: str) -> Path:
        return self._path(key).with_suffix(".tries")


def _sum_of(tries: Path) -> int:
    try:
        lines = tries.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return 0
    return sum(int(line) for line in lines if line.isdigit())


def described(name: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """All that decides an answer. Where the model runs, and under whose key, does not."""
    said = [_described(message) for message in messages]
    return {"model": name, "messages": said, "sampling": asdict(sampling)}


def _described(message: Message) -> dict[str, Any]:
    """A picture is described by its content's sha256."""
    if not message.parts:
        return {"role": message.role, "text": message.text}
    parts = [part if isinstance(part, str) else {"picture": part.id} for part in message.parts]
    return {"role": message.role, "parts": parts}


def key_of(request: dict[str, Any]) -> str:
    """sha256 of the request, in hex."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
