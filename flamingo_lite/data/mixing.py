"""Mixtures: which source the document at each position of the run comes from, and which of its samples it is.

Weighted sources share blocks of 65,536 positions, each block by the same exact counts in an order of its own. Sources
without weights are one: each of their documents comes exactly once an epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flamingo_lite.data.order import SOURCES, Numbers, Order, keeping_last, permutation
from flamingo_lite.errors import FlamingoError

BLOCK = 65_536


@dataclass
class SourceConfig:
    """Shards that are one part of a mixture: a directory or address.

    `weight`: its share of the documents, relative to the others'; none where no source has one. `loss_weight`: what
    its tokens count in the loss, relative to the others'. `samples`: only the first so many are used. `template`:
    fields of the template in which this source differs.
    """

    directory: str = ""
    weight: float | None = None
    loss_weight: float = 1.0
    samples: int | None = None
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.loss_weight < float("inf"):
            raise FlamingoError(f"a source's loss_weight is {self.loss_weight}; expected a number above 0")
        if self.samples is not None and self.samples < 1:
            raise FlamingoError(f"a source's samples are {self.samples}; expected 1 or more")


class Mixture:
    """The documents of a run by position, from 0 without end. A pure function of its arguments.

    `sizes`: samples of each shard, by source. `weights`: of every source or of none. `window`: see `Order`.
    Errors: `FlamingoError` naming the source that is empty, or whose weight cannot be.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sequence[int]],
        weights: Mapping[str, float | None],
        seed: int,
        window: int,
    ) -> None:
        for name, samples in sizes.items():
            if sum(samples) == 0:
                raise FlamingoError(f"source {name}: the shards hold no documents; expected at least one")
        self.names = list(sizes)
        self.seed = seed
        self.counts = apportion({name: weights.get(name) for name in sizes})
        groups = [list(sizes.values())] if self.counts is None else [[one] for one in sizes.values()]
        self.orders = [Order([n for one in group for n in one], seed, window) for group in groups]
        # Where the samples of each source begin among those of all.
        self.starts = np.cumsum([0, *(sum(samples) for samples in sizes.values())])
        self._block = keeping_last(2, self._make_block)

    @property
    def samples(self) -> int:
        """The documents of all sources together: those of an epoch, where there are no weights."""
        return int(self.starts[-1])

    def documents(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """(source, number of the sample in it) of the documents at the positions from `start` to before `stop`."""
        if self.counts is None:
            numbers = self.orders[0].numbers(start, stop)
            sources = np.searchsorted(self.starts, numbers, side="right") - 1
            return sources, numbers - self.starts[sources]
        sources, numbers = np.zeros(stop - start, np.int64), np.zeros(stop - start, np.int64)
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
            self._fill(block, first, last, sources[first - start :], numbers[first - start :])
        return sources, numbers

    def _fill(self, block: int, first: int, last: int, sources: Numbers, numbers: Numbers) -> None:
        assert self.counts is not None
        within = slice(first - block * BLOCK, last - block * BLOCK)
        owners, ranks = (values[within] for values in self._block(block))
        sources[: len(owners)] = owners
        for source, order in enumerate(self.orders):
            places = np.flatnonzero(owners == source)
            if len(places):
                begin = block * int(self.counts[source]) + int(ranks[places[0]])
                numbers[places] = order.numbers(begin, begin + len(places))

    def _make_block(self, block: int) -> tuple[Numbers, Numbers]:
        """Of each position: its source, and how many positions of the block before it are that source's."""
        assert self.counts is not None
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        owners = owners[permutation(BLOCK, self.seed, SOURCES, block)]
        ranks = np.empty(BLOCK, np.int64)
        ranks[np.argsort(owners, kind="stable")] = np.concatenate([np.arange(count) for count in self.counts])
        return owners, ranks


def apportion(weights: Mapping[str, float | None]) -> Numbers | None:
    """How many positions of a block each source has, by the largest remainder; None where no source has a weight.

    Errors: `FlamingoError` naming the source whose weight is missing, no number above 0, or too small for one place.
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return None
    if missing := [name for name in weights if name not in given]:
        raise FlamingoError(
            f"source {missing[0]} has no weight, but {next(iter(given))} has; give all of them one, or none"
        )
    for name, weight in given.items():
        if not 0 < weight < float("inf"):
            raise FlamingoError(
                f"source {name}: weight is {weight}; expected a number above 0 (leave out a source to go without)"
            )
    shares = np.array(list(given.values())) / sum(given.values()) * BLOCK
    counts = np.floor(shares).astype(np.int64)
    largest = np.argsort(counts - shares, kind="stable")
    counts[largest[: BLOCK - int(counts.sum())]] += 1
    for name, count in zip(given, counts, strict=True):
        if count == 0:
            raise FlamingoError(
                f"source {name}: weight {given[name]} is less than one place in {BLOCK:,} documents; "
                "raise it, or leave the source out"
            )
    return counts
