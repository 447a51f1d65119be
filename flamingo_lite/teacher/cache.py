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
    """A file per answer in `directory`, whole or not there; `lock` keeps a second run out while one asks."""

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
