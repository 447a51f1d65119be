"""What a set of documents is like, counted in one pass: images, texts, sizes, similarity, roles, rejects.

Images are known by their headers, not decoded. A set that is too large to be read whole is known by a sample of it:
the same documents at every call.
"""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flamingo_lite.data.shards import Shards
from flamingo_lite.data.stores import local_directory
from flamingo_lite.document import Document, Text, image_format, image_size
from flamingo_lite.errors import FlamingoError, SampleError

BOUND = 1000.0  # similarities are cosines, or a hundred times that


@dataclass
class Stats:
    """Counts over documents. `unit`: what `lengths` are in, "tokens" or "characters"; `total`: all documents of the
    set, of which `documents` were read and `rejects` could not be; `left_out`: what the conversion rejected.

    Lists have an entry per document (`images`, `lengths`) or per image (`widths`, `heights`, `bytes`).
    """

    unit: str = "characters"
    total: int = 0
    documents: int = 0
    images: "array[int]" = field(default_factory=lambda: array("I"))
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    widths: "array[int]" = field(default_factory=lambda: array("I"))
    heights: "array[int]" = field(default_factory=lambda: array("I"))
    bytes: "array[int]" = field(default_factory=lambda: array("Q"))
    similarities: "array[float]" = field(default_factory=lambda: array("d"))
    formats: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    trained: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def take(self, document: Document | SampleError, measure: Callable[[str], int] = len) -> None:
        """Counts a document, or the reason why it cannot be used. `measure`: the length of a text in `unit`."""
        try:
            if isinstance(document, SampleError):
                raise document
            self._add(document, measure)
        except SampleError as error:
            self.rejects[error.reason] += 1

    def _add(self, document: Document, measure: Callable[[str], int]) -> None:
        # All headers first: a document is counted whole or not at all.
        sizes = [(image, image_size(image.data, image.name)) for image in document.images]
        self.documents += 1
        self.images.append(len(sizes))
        self.lengths.append(sum(measure(text.text) for text in document.texts))
        for image, (width, height) in sizes:
            self.widths.append(width)
            self.heights.append(height)
            self.bytes.append(len(image.data))
            self.formats[str(image_format(image.data))] += 1
        for text in document.texts:
            self._add_text(text)
        self.similarities.extend(similarities(document.meta))

    def _add_text(self, text: Text) -> None:
        self.texts += 1
        self.trained += text.loss
        if text.role is not None:
            self.roles[text.role[:40]] += 1


def chosen(total: int, count: int | None, seed: int = 0) -> Sequence[int]:
    """The numbers of all documents, or of `count` drawn without replacement by `seed`, in their order."""
    if count is None or count >= total:
        return range(total)
    return sorted(random.Random(f"chosen/{seed}").sample(range(total), count))


def document_at(shards: Shards, number: int) -> Document | SampleError:
    """The document of a sample, or why there is none."""
    try:
        return shards[number][1]
    except SampleError as error:
        return error


def open_shards(directory: str | Path, sample: int | None) -> Shards:
    """Errors: `FlamingoError` for no shards, for shards without documents, and for a sample below 1."""
    if sample is not None and sample < 1:
        raise FlamingoError(f"{sample} documents cannot be read; expected 1 or more")
    shards = Shards(local_directory(directory))
    if not len(shards):
        raise FlamingoError(f"{directory}: the shards hold no documents; expected at least one")
    return shards


def left_out(info: Mapping[str, Any]) -> Counter[str]:
    """Rejects by reason, as a conversion noted them in the manifest's info."""
    noted = info.get("rejects")
    counts = noted.items() if isinstance(noted, dict) else ()
    return Counter({str(reason): count for reason, count in counts if type(count) is int and count > 0})


def similarities(meta: Any, depth: int = 4) -> Iterator[float]:
    """Every number that stands under "similarity" in a document's meta, alone or in a list."""
    if isinstance(meta, Mapping) and depth:
        for name, value in meta.items():
            if name == "similarity":
                found = value if isinstance(value, list) else [value]
                yield from (float(v) for v in found if type(v) in (int, float) and -BOUND < v < BOUND)
            else:
                yield from similarities(value, depth - 1)
    elif isinstance(meta, list) and depth:
        for value in meta:
            yield from similarities(value, depth - 1)
