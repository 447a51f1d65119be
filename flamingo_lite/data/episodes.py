"""Episodes for in-context instruction tuning: each document behind k others of its task, its demonstrations.

As in MetaICL and Otter. Episode i is a pure function of (the shards, the options, i): which demonstrations a document
gets depends on nothing that was drawn before it.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from flamingo_lite.data.shards import Shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.names import check_choice

LOSSES = ("all", "query")
AT_FIRST = 8
"""Candidates that are looked at for each demonstration, before all of the task's documents are."""


@dataclass(frozen=True)
class EpisodeConfig:
    """`shots`: demonstrations before each query. `by`: the entry of a document's meta that names its task; "" takes all
    documents for one task. `loss`: the answers of all, or of the query alone."""

    shots: int = 3
    by: str = ""
    loss: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise FlamingoError(f"--shots is {self.shots}; expected 1 or more")
        check_choice("value of --loss:", self.loss, LOSSES)


class Left(NamedTuple):
    """A document without an episode, and why."""

    key: str
    reason: str
    message: str


@dataclass(frozen=True)
class Tasks:
    """What is known of all documents before the first episode: the task of each, and its images."""

    members: Mapping[Any, Sequence[int]]
    images: Mapping[int, frozenset[str]]


def tasks_of(shards: Shards, by: str) -> tuple[dict[int, Any], Tasks, list[Left]]:
    """The task of each document that can be read and names one, its fellows, and what was left out."""
    task_of: dict[int, Any] = {}
    images: dict[int, frozenset[str]] = {}
    members: dict[Any, list[int]] = defaultdict(list)
    left: list[Left] = []
    for number in range(len(shards)):
        key = f"#{number}"
        try:
            key, document = shards[number]
            task = _task(document, by, key)
        except SampleError as error:
            left.append(Left(key, error.reason, str(error)))
            continue
        task_of[number] = task
        images[number] = frozenset(image.id for image in document.images)
        members[task].append(number)
    return task_of, Tasks(dict(members), images), left


def episodes(shards: Shards, config: EpisodeConfig, left: list[Left]) -> Iterator[tuple[str, Document]]:
    """(key, episode) for each document, in order, under the document's own key; `left` gets those that have none.

    No demonstration shows an image of its query. Errors: `FlamingoError` where no document names a task.
    """
    task_of, tasks, unread = tasks_of(shards, config.by)
    left += unread
    if not task_of:
        why = f" ({unread[0].message})" if unread else ""
        raise FlamingoError(
            f"{shards.store.location}: no document has a task{why}; expected its name in meta"
        )
    for number, task in task_of.items():
        key, query = shards[number]
        chosen = draw(number, tasks.members[task], tasks.images, config)
        if len(chosen) < config.shots:
            named = f"of the task {task!r} " if config.by else ""
            message = f"{key}: {len(chosen)} other documents {named}can be shown; expected {config.shots}"
            left.append(Left(key, "episode", message))
            continue
        yield key, episode(query, [shards[other] for other in chosen], config.loss)


def draw(
    number: int, members: Sequence[int], images: Mapping[int, frozenset[str]], config: EpisodeConfig
) -> list[int]:
    """The numbers of a query's demonstrations: others of its task that share no image with it; fewer where there are."""
    chosen: list[int] = []
    for size in (AT_FIRST * config.shots, len(members)):
        generator = random.Random(f"{config.seed}/episodes/{number}")
        found = (members[i] for i in generator.sample(range(len(members)), min(size, len(members))))
        others = (n for n in found if n != number and not images[n] & images[number])
        chosen = [n for n, _ in zip(others, range(config.shots), strict=False)]
        if len(chosen) == config.shots:
            break
    return chosen


def episode(query: Document, demonstrations: Sequence[tuple[str, Document]], loss: str) -> Document:
    """The demonstrations in order, each a chunk, then the query. Only the query's own message of the system is kept."""
    system = [segment for segment in query if _is_system(segment)]
    segments: list[Text | Image] = [*system]
    for _, document in demonstrations:
        segments += _shown([s for s in document if not _is_system(s)], trained=loss == "all")
    segments += [segment for segment in query if not _is_system(segment)]
    meta = {**query.meta, "demonstrations": [key for key, _ in demonstrations]}
    return Document(segments, meta, query.name)


def recipe(config: EpisodeConfig, shards: Shards) -> dict[str, Any]:
    """What decides the bytes of the episodes, to be kept in their manifest."""
    return {**asdict(config), "of": [shard.sha256 for shard in shards.manifest.shards]}


def _shown(segments: Sequence[Text | Image], trained: bool) -> list[Text | Image]:
    """A demonstration, over at its last text."""
    texts = [number for number, segment in enumerate(segments) if isinstance(segment, Text)]
    shown: list[Text | Image] = []
    for number, segment in enumerate(segments):
        if isinstance(segment, Text):
            ends_chunk = segment.ends_chunk or number == texts[-1]
            segment = replace(segment, loss=segment.loss and trained, ends_chunk=ends_chunk)
        shown.append(segment)
    return shown


def _is_system(segment: Text | Image) -> bool:
    return isinstance(segment, Text) and segment.role == "system"


def _task(document: Document, by: str, key: str) -> Any:
    if not by:
        return ""
    task = document.meta.get(by)
    if not isinstance(task, str | int | bool):
        found = "is missing" if by not in document.meta else f"is a {type(task).__name__}"
        raise SampleError(f"{key}: {by!r} {found} in meta; expected the name of its task", "episode")
    return task
