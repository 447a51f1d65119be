"""The plan of a run: which documents make up each batch, as recipes. No document is opened for it.

A global batch is `batch_size` rows of the mixture's order (documents, or rows that several share). It is planned alike on
every rank, and each takes its share, so the number of ranks, of accumulated batches and of worker processes changes
nothing. Where a run stands is three numbers (`Position`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flamingo_lite.data.mixing import Mixture
from flamingo_lite.data.order import ROWS, Numbers, keeping_last, permutation
from flamingo_lite.data.packing import pack
from flamingo_lite.errors import FlamingoError

WINDOW = 1024
"""Documents that are planned at once where rows are not packed; any number would give the same batches."""

Measured = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
"""(sources, numbers) to (tokens, images) of documents."""


class Slot(NamedTuple):
    """The place of a document: its source, its number there, and where in its row it starts.

    `tokens`: how many are set aside for it, and None where a row is the document's own.
    """

    source: int
    number: int
    start: int = 0
    tokens: int | None = None


Row = tuple[Slot, ...]


class Position(NamedTuple):
    """Where a run stands: the document that opens the window in use, the rows of it that are done, and the batches."""

    documents: int = 0
    row: int = 0
    batches: int = 0


class Recipe(NamedTuple):
    """What one rank reads for one forward pass. `position`: where the run stands after it, where it ends a batch."""

    rows: tuple[Row, ...]
    position: Position | None = None


@dataclass(frozen=True)
class Packing:
    """How documents share rows. `window`: consecutive documents that are packed together; `tokens`: of a row, but
    that a longer document has one to itself. `images`: the most of a row, None without limit.
    """

    window: int
    tokens: int
    images: int | None
    measured: Measured


class Plan:
    """The global batches of a run, from any position. A pure function of the mixture, the seed and the packing.

    `documents`: the run ends after so many of them, in a batch that may be smaller; None: it never ends.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch_size: int,
        packing: Packing | None = None,
        documents: int | None = None,
    ) -> None:
        self.mixture = mixture
        self.batch_size = batch_size
        self.packing = packing
        self.end = documents
        self.window = packing.window if packing else WINDOW
        self._rows = keeping_last(2, self._make_rows)

    def batches(self, position: Position | None = None) -> Iterator[tuple[tuple[Row, ...], Position]]:
        """The rows of each batch from `position` on, and where the run stands after it."""
        first, row, number = position or Position()
        while True:
            taken: list[Row] = []
            while len(taken) < self.batch_size:
                rows = self._rows(first)
                if row == len(rows):
                    if self.end is not None and first + self.window >= self.end:
                        break
                    first, row = first + self.window, 0
                    continue
                more = rows[row : row + self.batch_size - len(taken)]
                taken += more
                row += len(more)
            if not taken:
                return
            number += 1
            yield tuple(taken), Position(first, row, number)

    def count(self) -> int:
        """How many batches a run that ends has. Packing plans all of it, a second for some 50,000 documents."""
        assert self.end is not None
        if self.packing is None:
            return -(-self.end // self.batch_size)
        rows = sum(len(self._rows(first)) for first in range(0, self.end, self.window))
        return -(-rows // self.batch_size)

    def _make_rows(self, first: int) -> list[Row]:
        """The rows of the window that the document at position `first` opens."""
        last = first + self.window if self.end is None else min(first + self.window, self.end)
        sources, numbers = self.mixture.documents(first, last)
        if self.packing is None:
            return [(Slot(*pair),) for pair in zip(sources.tolist(), numbers.tolist(), strict=True)]
        return packed_rows(sources, numbers, self.packing, (self.mixture.seed, first))


def packed_rows(sources: Numbers, numbers: Numbers, packing: Packing, key: tuple[int, int]) -> list[Row]:
    """The documents of a window in rows, the rows in an order that `key` decides.

    A document with more images than a row may have, like one that cannot be used, keeps a slot of no tokens: whoever
    reads it finds out, and counts it.
    """
    tokens, images = packing.measured(sources, numbers)
    if packing.images is not None:
        tokens = np.where(images > packing.images, 0, tokens)
    images = np.where(tokens == 0, 0, images)
    places = pack(tokens, images, packing.tokens, packing.images)
    rows: list[list[Slot]] = [[] for _ in range(1 + max(row for row, _ in places))]
    planned = zip(sources.tolist(), numbers.tolist(), tokens.tolist(), places, strict=True)
    for source, number, length, (row, start) in planned:
        rows[row].append(Slot(source, number, start, length))
    return [tuple(rows[i]) for i in permutation(len(rows), key[0], ROWS, key[1])]


def share(
    rows: tuple[Row, ...], micro: int, rank: int, ranks: int, accumulate: int, position: Position
) -> Iterator[Recipe]:
    """What one rank reads of a batch: one recipe for each forward pass, of `micro` rows (fewer where a run ends)."""
    for turn in range(accumulate):
        first = (turn * ranks + rank) * micro
        yield Recipe(rows[first : first + micro], position if turn == accumulate - 1 else None)


def rows_each(batch_size: int, ranks: int, accumulate: int) -> int:
    """The rows of one forward pass on one rank. Errors: `FlamingoError` with the nearest sizes that divide."""
    parts = ranks * accumulate
    if batch_size % parts == 0:
        return batch_size // parts
    below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
    choices = f"{below} or {above}" if below else str(above)
    raise FlamingoError(
        f"stage.batch_size={batch_size} does not divide among {ranks} ranks and trainer.accumulate={accumulate}; "
        f"the nearest that do: {choices}"
    )
