"""Demonstrations that resemble the query (RICES; Yang et al. 2022): by image, by text, or by both.

An example is a vector of length 1: its image's, or the mean of its images'; its question's; or both one after the other,
so that their dot product is the mean of the two similarities. What is computed of an example depends on nothing but the
example and its support, so that every process, batch and run finds the same demonstrations. What cannot be read is like
nothing: in a support it comes last, by id; of a query nothing is told to be alike, and its predictions are failures.
Shape letters: n examples, m images, d width.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from flamingo_lite.data.features import FeatureCache
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.demonstrations import Example, Exclusion, too_few
from flamingo_lite.evaluation.nearest import Search, searcher
from flamingo_lite.evaluation.selection import BY_SIMILARITY, Selection, Wanted
from flamingo_lite.models.similarity import SimilarityEncoder

BLOCK = 64
"""Images, or texts, that are encoded together, and kept on the disk together."""
SUPPORTS = 8
"""Supports whose vectors are kept in memory: that of the split, and those of a few queries where each has its own."""
FEW = 32
"""How many neighbours are asked for at first."""

Say = Callable[[str, int, int], None]
"""Called with (what is encoded, how many are, of how many)."""


@dataclass(frozen=True)
class Ranking:
    """A support, searchable: `examples` by id, of which `search` finds the rows; `unreadable`: the others, by id."""

    examples: Sequence[Example]
    search: Search
    unreadable: Sequence[Example] = ()


@dataclass
class Retrieval:
    """The selectors by similarity. `encoders`: what loads the encoder of "image" and of "text" when it is needed.

    `cache`: opens the cache on the disk of what an encoder of this key gives; `rank` of `number` processes that share it
    begins elsewhere, so that they find what the others have done.
    """

    encoders: Mapping[str, Callable[[], SimilarityEncoder]]
    cache: Callable[[str], FeatureCache] | None = None
    rank: int = 0
    number: int = 1
    say: Say | None = None
    _loaded: dict[str, tuple[SimilarityEncoder, FeatureCache | None]] = field(
        default_factory=dict, init=False
    )
    _rankings: dict[tuple[str, ...], Ranking] = field(default_factory=dict, init=False)
    _nearest: dict[tuple[str, ...], list[int]] = field(default_factory=dict, init=False)
    _unreadable: dict[str, str] = field(default_factory=dict, init=False)

    def selectors(self) -> dict[str, Selection]:
        """By their names, as `evaluate` takes them beside `SELECTORS`."""
        return {
            name: Selection(
                partial(self._select, kinds),
                says,
                is_by_similarity=True,
                refusal=partial(self._refusal, kinds),
            )
            for name, (kinds, says) in BY_SIMILARITY.items()
        }

    def _select(self, kinds: Sequence[str], wanted: Wanted) -> tuple[Example, ...]:
        if not wanted.shots:
            return ()
        exclusion = Exclusion(wanted.query, wanted.excluded)
        found: list[Example] = []
        for example in self._alike(kinds, wanted):
            if exclusion.admits(example):
                found.append(example)
            if len(found) == wanted.shots:
                return tuple(found)
        raise too_few(len(found), wanted.shots)

    def _refusal(self, kinds: Sequence[str], wanted: Wanted) -> str | None:
        if not wanted.shots:
            return None
        self._rows(kinds, wanted, self._ranking(kinds, wanted), FEW)
        return self._why_unreadable(kinds, wanted.query)

    def _why_unreadable(self, kinds: Sequence[str], example: Example) -> str | None:
        """Of an example that was to be encoded."""
        names = (name for kind in kinds for name, _ in _parts(kind, example))
        return next((self._unreadable[name] for name in names if name in self._unreadable), None)

    def _alike(self, kinds: Sequence[str], wanted: Wanted) -> Iterator[Example]:
        """The whole support, what resembles the query most first."""
        ranking = self._ranking(kinds, wanted)
        given, asked = 0, max(FEW, 2 * wanted.shots)
        while given < len(ranking.examples):
            rows = self._rows(kinds, wanted, ranking, asked)
            for row in rows[given:]:
                yield ranking.examples[row]
            given, asked = len(rows), 4 * asked
        yield from ranking.unreadable

    def _rows(self, kinds: Sequence[str], wanted: Wanted, ranking: Ranking, asked: int) -> list[int]:
        """The nearest of the support, `asked` of them or more; all of it, by id, of a query that cannot be read."""
        key = (*kinds, wanted.task, wanted.split, str(wanted.query_id))
        known = self._nearest.get(key)
        if known is None or len(known) < min(asked, len(ranking.examples)):
            # By itself: what is found must not depend on which queries this process has.
            query = together([self._vectors(kind, [wanted.query], is_kept=False) for kind in kinds])
            if not ranking.examples or self._why_unreadable(kinds, wanted.query) is not None:
                known = list(range(len(ranking.examples)))
            else:
                known = ranking.search(query, asked)[1][0].tolist()
            self._nearest[key] = known
        return known

    def _ranking(self, kinds: Sequence[str], wanted: Wanted) -> Ranking:
        key = (*kinds, wanted.task, wanted.split, wanted.support.key)
        if key not in self._rankings:
            # By id, so that the order of a file decides nothing between equals.
            examples = sorted(wanted.support.examples, key=lambda example: example.id)
            vectors = together([self._vectors(kind, examples) for kind in kinds])
            is_readable = torch.tensor([self._why_unreadable(kinds, each) is None for each in examples])
            while len(self._rankings) >= SUPPORTS:
                del self._rankings[next(iter(self._rankings))]
            readable, unreadable = (
                [examples[i] for i in chosen.nonzero().flatten().tolist()]
                for chosen in (is_readable, ~is_readable)
            )
            vectors = vectors[is_readable] if unreadable else vectors
            self._rankings[key] = Ranking(readable, searcher(vectors), unreadable)
        return self._rankings[key]

    def _vectors(self, kind: str, examples: Sequence[Example], is_kept: bool = True) -> Tensor:
        """(n d) of length 1; what cannot be read gives a row that says nothing, and is noted in `_unreadable`."""
        parts = [_parts(kind, example) for example in examples]
        distinct = {name: item for part in parts for name, item in part}
        place = {name: number for number, name in enumerate(distinct)}
        encoded = self._encoded(kind, distinct, is_kept)
        return means(encoded, [[place[name] for name, _ in part] for part in parts])

    def _encoded(self, kind: str, items: Mapping[str, Any], is_kept: bool) -> Tensor:
        """(m d) of the items, which are named by what is in them, in their order."""
        encoder, cache = self._encoder(kind)
        names = list(items)
        blocks = [names[start : start + BLOCK] for start in range(0, len(names), BLOCK)]
        first = self.rank * len(blocks) // self.number
        found: dict[int, Tensor] = {}
        for turn in range(len(blocks)):
            number = (first + turn) % len(blocks)
            block = blocks[number]
            kept = cache if is_kept else None
            found[number], reasons = _block(encoder, kept, block, [items[name] for name in block])
            self._unreadable |= reasons
            if self.say is not None and len(blocks) > 1:
                self.say(f"{kind}s of the support", min(len(names), (turn + 1) * BLOCK), len(names))
        # A block of which nothing can be read has no width of its own.
        width = max(each.shape[1] for each in found.values())
        parts = (found[number] for number in range(len(blocks)))
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])

    def _encoder(self, kind: str) -> tuple[SimilarityEncoder, FeatureCache | None]:
        if kind not in self._loaded:
            encoder = self.encoders[kind]()
            self._loaded[kind] = encoder, self.cache(encoder.key) if self.cache is not None else None
        return self._loaded[kind]


def _block(
    encoder: SimilarityEncoder, cache: FeatureCache | None, names: Sequence[str], items: Sequence[Any]
) -> tuple[Tensor, dict[str, str]]:
    """(m d), and by name why items cannot be read. A block is known by all that is in it: what is computed depends, in
    its last digits, on the company."""
    key = hashlib.sha256("\0".join(names).encode()).hexdigest()
    known = cache.get(key) if cache is not None else None
    if known is not None:
        return known, {}
    try:
        fresh = encoder.encode(items)
    except SampleError:
        return _readable(encoder, names, items)
    if cache is not None:
        cache.put(key, fresh)
    return fresh, {}


def _readable(
    encoder: SimilarityEncoder, names: Sequence[str], items: Sequence[Any]
) -> tuple[Tensor, dict[str, str]]:
    """As `_block`, of items among which some cannot be read: their rows are zeros. It is not kept, for what cannot be
    read may be mended by another library."""
    reasons: dict[str, str] = {}
    for name, item in zip(names, items, strict=True):
        try:
            encoder.encode([item])
        except SampleError as error:
            reasons[name] = str(error)
    left = [i for i, name in enumerate(names) if name not in reasons]
    if not left:
        return torch.zeros(len(items), 0), reasons
    vectors = encoder.encode([items[i] for i in left])
    rows = vectors.new_zeros(len(items), vectors.shape[1])
    rows[left] = vectors
    return rows, reasons


def _parts(kind: str, example: Example) -> list[tuple[str, Any]]:
    """What is encoded of an example, under names that say what is in it."""
    if kind == "text":
        if not example.question.strip():
            raise FlamingoError(
                f"example {example.id} asks nothing in words, so texts cannot be compared; choose rices_image"
            )
        return [(example.question, example.question)]
    if not example.images:
        raise FlamingoError(
            f"example {example.id} has no image, so images cannot be compared; choose rices_text"
        )
    return [(image.id, image) for image in example.images]


def means(encoded: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """(n d): of each example the mean of its rows of `encoded` (m d), brought to length 1."""
    rows = torch.tensor([place for of in places for place in of])
    if len(rows) == len(places):
        return encoded[rows]
    owners = torch.repeat_interleave(torch.arange(len(places)), torch.tensor([len(of) for of in places]))
    sums = encoded.new_zeros(len(places), encoded.shape[1]).index_add_(0, owners, encoded[rows])
    return normalize(sums, dim=-1)


def together(vectors: Sequence[Tensor]) -> Tensor:
    """(n d): several vectors of length 1 as one, whose dot products are the means of theirs."""
    return torch.cat(list(vectors), dim=1) / len(vectors) ** 0.5
