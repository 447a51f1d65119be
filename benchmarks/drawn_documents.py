"""Interleaved documents, drawn, whose lengths and image counts are like those of MMC4 in OpenFlamingo's training.

Published are means of whole documents (MMC4 1.1: 43B tokens and 571M images in 101.2M documents) and medians of what
OpenFlamingo trains on after filtering and cutting (its report, table 2: 256 tokens, 2 images). Lengths are lognormal, image
counts geometric; the two numbers that are free are set so that the medians come out. What is done to a document is what
`open_flamingo/train/data.py` does.
Shape letters: t positions, m images of a document, c channels, h height, w width.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamingo_lite.batch import IGNORED

MEAN_TOKENS = 43e9 / 101.2e6  # of a whole document
MEAN_IMAGES = 571e6 / 101.2e6
MEDIAN_TOKENS = 320  # of a whole document: free; half of what is left of them is then as long as a row
ALIKE = 0.5  # of images, above the threshold of similarity to a sentence: free; the median is then 2
SENTENCE = 20  # tokens, between places where an image may stand
MAX_TOKENS = 256  # their constants from here on
MAX_IMAGES = 6
SINGLES_KEPT = 0.5


@dataclass(frozen=True)
class Sizes:
    """Of a whole document. `length`: positions, those of images and ends of chunks among them; `marks`: images' alone."""

    length: int
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Special:
    """Ids below `words` are words."""

    words: int
    image: int
    end_of_chunk: int
    end: int


@dataclass(frozen=True)
class Drawn:
    """`labels` by the rule of their `train_one_epoch`: nothing before the first image or after the last end of chunk."""

    ids: Tensor  # (t)
    labels: Tensor  # (t)
    pixels: Tensor  # (m c h w)

    @property
    def trained(self) -> int:
        """How many positions the loss is of."""
        return int((self.labels[1:] != IGNORED).sum())


def draw_sizes(number: int, seed: int = 0) -> list[Sizes]:
    """The first `number` documents that their pipeline keeps: those with an image before the cut, of those with one half."""
    draw = np.random.default_rng(seed)
    spread = math.sqrt(2 * math.log(MEAN_TOKENS / MEDIAN_TOKENS))
    found: list[Sizes] = []
    while len(found) < number:
        tokens = max(SENTENCE, round(MEDIAN_TOKENS * math.exp(spread * draw.standard_normal())))
        alike = int(draw.binomial(draw.geometric(1 / MEAN_IMAGES), ALIKE))
        sentences = tokens // SENTENCE
        places = sorted(draw.permutation(sentences)[: min(alike, MAX_IMAGES)].tolist())
        # Each image has a mark, and before each mark but the first, and behind the last, a chunk ends.
        marks = tuple(SENTENCE * place + 2 * i for i, place in enumerate(places))
        seen = sum(mark < MAX_TOKENS - 1 for mark in marks)
        if seen > 1 or (seen == 1 and draw.random() < SINGLES_KEPT):
            found.append(Sizes(tokens + 2 * len(marks) + 1, marks))
    return found


def draw_documents(sizes: Sequence[Sizes], special: Special, edge: int, seed: int = 0) -> list[Drawn]:
    """Words and pixels at random; images are `edge` pixels high and wide."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        ids = torch.randint(3, special.words, (size.length,), generator=generator)
        marks = torch.tensor(size.marks)
        ids[marks] = special.image
        ids[marks[1:] - 1] = special.end_of_chunk
        labels = ids.masked_fill(ids == special.image, IGNORED)
        labels[: size.marks[0]] = IGNORED
        ids[-2:] = torch.tensor([special.end_of_chunk, special.end])
        labels[-2:] = torch.tensor([special.end_of_chunk, IGNORED])
        pixels = torch.randn(len(size.marks), 3, edge, edge, generator=generator)
        found.append(Drawn(ids, labels, pixels))
    return found


def cut(document: Drawn, length: int, special: Special) -> Drawn:
    """Its first `length` positions, and the images whose marks are among them."""
    ids = document.ids[:length]
    return Drawn(ids, document.labels[:length], document.pixels[: int((ids == special.image).sum())])


def distribution(documents: Sequence[Drawn]) -> dict[str, Any]:
    """Lengths, images and trained-on positions, in numbers."""
    lengths = [len(document.ids) for document in documents]
    counts = [len(document.pixels) for document in documents]
    return {
        "documents": len(documents),
        "lengths": sorted(lengths),
        "length": {"mean": statistics.mean(lengths), "median": statistics.median(lengths)},
        "images": {
            "mean": statistics.mean(counts),
            "median": statistics.median(counts),
            "documents": {n: counts.count(n) for n in range(1, MAX_IMAGES + 1)},
        },
        "trained": statistics.mean(document.trained for document in documents),
    }
