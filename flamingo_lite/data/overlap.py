"""What training documents have in common with the examples of an evaluation: images, and runs of words.

An image is the same by the sha256 of its bytes, or nearly so by its perceptual hash; a text overlaps where 13 words in a
row are the same, whatever their case and punctuation (Brown et al. 2020, appendix C). Shards are read one document at a
time; what is kept is as large as the evaluation.
"""

import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flamingo_lite.data.deny import bits_apart, perceptual_hash
from flamingo_lite.data.limits import DENY_DISTANCE
from flamingo_lite.data.make import available_cores
from flamingo_lite.data.shards import Shards
from flamingo_lite.document import Document, Image, decode_image
from flamingo_lite.errors import SampleError

Reason = Literal["exact", "perceptual", "text"]
REASONS: dict[Reason, str] = {
    "exact": "the bytes of an image are those of a training image",
    "perceptual": "an image looks like a training image",
    "text": "13 words in a row stand in a training text",
}
WORDS = 13
"""How many words in a row are an overlap."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Looked:
    """One example that is looked for: its images, and its texts."""

    images: Sequence[Image]
    texts: Sequence[str]

    @property
    def is_short(self) -> bool:
        """Whether no text of it is long enough to be found."""
        return not any(runs(text) for text in self.texts)


@dataclass
class Overlap:
    """Where an example was met first, for one reason, and in how many documents. `detail`: the words that are the same,
    or in how many bits of 64 the hashes differ, at least."""

    where: str
    detail: str | int | None = None
    documents: int = 1

    def add(self, other: "Overlap") -> None:
        self.documents += other.documents
        if isinstance(self.detail, int) and isinstance(other.detail, int) and other.detail < self.detail:
            self.where, self.detail = other.where, other.detail


Overlaps = dict[tuple[int, Reason], Overlap]
"""By the number of the example."""


@dataclass
class Met:
    """What was met in some documents. `rejects`: those that cannot be used, by reason. `unreadable`: the numbers of
    examples with an image that cannot be read, and so cannot be looked for, with why."""

    overlaps: Overlaps = field(default_factory=dict)
    documents: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    unreadable: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Met") -> None:
        for key, overlap in other.overlaps.items():
            if key in self.overlaps:
                self.overlaps[key].add(overlap)
            else:
                self.overlaps[key] = overlap
        self.documents += other.documents
        self.rejects += other.rejects
        self.unreadable |= other.unreadable


def runs(text: str) -> list[str]:
    """Every `WORDS` words in a row, in small letters, without punctuation."""
    words = _WORD.findall(text.casefold())
    return [" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)]


class OverlapIndex:
    """The examples of an evaluation, to be met by number. Picklable. `unreadable`: as in `Met`; the other images and the
    texts of these examples are looked for."""

    def __init__(self, examples: Sequence[Looked], distance: int = DENY_DISTANCE) -> None:
        self.distance = distance
        self._exact: dict[str, list[int]] = {}
        self._runs: dict[str, list[int]] = {}
        self.unreadable: dict[int, str] = {}
        hashes: dict[str, int] = {}
        for number, example in enumerate(examples):
            for image in example.images:
                try:
                    if image.id not in hashes:
                        hashes[image.id] = perceptual_hash(image.pil())
                except SampleError as error:
                    self.unreadable.setdefault(number, str(error))
                    continue
                numbers = self._exact.setdefault(image.id, [])
                if numbers[-1:] != [number]:
                    numbers.append(number)
            for run in dict.fromkeys(run for text in example.texts for run in runs(text)):
                self._runs.setdefault(run, []).append(number)
        self._ids = list(hashes)
        self._hashes = np.array(list(hashes.values()), dtype=np.uint64)

    def meet(self, document: Document, where: str) -> Overlaps:
        """What of the examples is in a document. Errors: `SampleError` for an image that is not whole."""
        found: Overlaps = {}
        for text in document.texts:
            for run in runs(text.text):
                for number in self._runs.get(run, ()):
                    found.setdefault((number, "text"), Overlap(where, run))
        for image in document.images if len(self._hashes) else ():
            for number in self._exact.get(image.id, ()):
                found.setdefault((number, "exact"), Overlap(where))
            self._meet_nearly(image, where, found)
        return found

    def _meet_nearly(self, image: Image, where: str, found: Overlaps) -> None:
        pixels = decode_image(image.data, image.name)
        apart = bits_apart(self._hashes, perceptual_hash(pixels))
        for place in np.flatnonzero(apart <= self.distance):
            if self._ids[place] == image.id:
                continue  # the same image is no near one
            for number in self._exact[self._ids[place]]:
                met, bits = found.get((number, "perceptual")), int(apart[place])
                if met is None or (isinstance(met.detail, int) and bits < met.detail):
                    found[number, "perceptual"] = Overlap(where, bits)


Task = tuple[int, int]
"""(number of the set of shards, number of the shard in it)"""


def meet_shards(sets: Sequence[Shards], index: OverlapIndex, workers: int = 0) -> Iterator[Met]:
    """What is met in each shard, in their order. `workers`: processes; 0 = one per core."""
    tasks = [(i, number) for i, shards in enumerate(sets) for number in range(len(shards.manifest.shards))]
    count = min(workers or available_cores(), len(tasks))
    if count <= 1:
        yield from (_meet_shard(sets, index, task) for task in tasks)
        return
    # Spawned, not forked: the parent may hold threads whose locks a fork would copy locked.
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, _start_worker, (sets, index)) as pool:
        yield from pool.imap(_meet_in_worker, tasks)


def _meet_shard(sets: Sequence[Shards], index: OverlapIndex, task: Task) -> Met:
    shards = sets[task[0]]
    shard = shards.manifest.shards[task[1]]
    met = Met()
    for number in range(shards.ends[task[1]] - shard.samples, shards.ends[task[1]]):
        try:
            key, document = shards[number]
            where = f"{shards.store.location}/{shard.name}/{key}"
            met.add(Met(index.meet(document, where), documents=1))
        except SampleError as error:
            met.rejects[error.reason] += 1
    return met


_WORK: list[tuple[Sequence[Shards], OverlapIndex]] = []


def _start_worker(sets: Sequence[Shards], index: OverlapIndex) -> None:
    _WORK[:] = [(sets, index)]


def _meet_in_worker(task: Task) -> Met:
    return _meet_shard(*_WORK[0], task)
