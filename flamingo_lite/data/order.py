"""The order of one source: shards are permuted, cut into windows of a few shards, and samples permuted inside each.

A pure function of (seed, epoch, samples of each shard) that is readable at any position: what is read one after the
other lies in a few shards, and nothing has to be remembered to go on.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Numbers = NDArray[np.int64]

# What a permutation is for is part of its key: orders that share a seed have nothing else in common.
SHARDS, SAMPLES, SOURCES, ROWS = range(4)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permutation(length: int, *key: int) -> Numbers:
    """0 ... length - 1 in an order that the key decides: the same on every machine and under every numpy.

    numpy's own generators may change their streams between versions. Here each number is hashed with the key
    (splitmix64; Steele, Lea, Flood 2014), and the hashes are sorted.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mixed((state ^ np.uint64(word % 2**64)) + _GOLDEN)
    counters = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
    return np.argsort(_mixed(state + counters), kind="stable").astype(np.int64)


class Order:
    """The samples of a source by position, from 0 without end: epoch after epoch, each in an order of its own.

    `sizes`: samples of each shard. `window`: shards whose samples are mixed with each other. `seed` None: the samples
    as they lie in the shards. Time and memory go with the shards and with a window, never with all samples.
    """

    def __init__(self, sizes: Sequence[int], seed: int | None, window: int) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.samples = int(self.starts[-1])
        self.seed = seed
        self.window = window
        self._epoch = keeping_last(2, self._make_epoch)
        self._window = keeping_last(2, self._make_window)

    def numbers(self, start: int, stop: int) -> Numbers:
        """The numbers (in 0 ... samples - 1) of the samples at the positions from `start` to before `stop`."""
        if self.seed is None:
            return np.arange(start, stop, dtype=np.int64) % self.samples
        parts = list(self._parts(start, stop))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _parts(self, start: int, stop: int) -> Iterator[Numbers]:
        while start < stop:
            epoch, within = divmod(start, self.samples)
            _, ends = self._epoch(epoch)
            window = int(np.searchsorted(ends, within, side="right"))
            begin = int(ends[window - 1]) if window else 0
            last = min(int(ends[window]), within + stop - start)
            yield self._window(epoch, window)[within - begin : last - begin]
            start += last - within

    def _make_epoch(self, epoch: int) -> tuple[Numbers, Numbers]:
        """The epoch's order of the shards, and the position at which each window ends."""
        assert self.seed is not None
        shards = permutation(len(self.sizes), self.seed, SHARDS, epoch)
        ends = np.cumsum(self.sizes[shards])
        lasts = np.minimum(np.arange(self.window, len(shards) + self.window, self.window), len(shards)) - 1
        return shards, ends[lasts]

    def _make_window(self, epoch: int, window: int) -> Numbers:
        assert self.seed is not None
        shards, _ = self._epoch(epoch)
        chosen = shards[window * self.window : (window + 1) * self.window]
        numbers = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])
        return numbers[permutation(len(numbers), self.seed, SAMPLES, epoch, window)]


def keeping_last(count: int, make: Callable[..., T]) -> Callable[..., T]:
    """`make`, with the last few results kept. (functools.lru_cache on a method would keep the object alive.)"""
    kept: dict[tuple[int, ...], T] = {}

    def get(*key: int) -> T:
        value = kept.pop(key) if key in kept else make(*key)
        kept[key] = value
        if len(kept) > count:
            del kept[next(iter(kept))]
        return value

    return get


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
