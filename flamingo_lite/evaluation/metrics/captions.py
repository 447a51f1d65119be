"""Captions against several references: CIDEr-D, BLEU and ROUGE-L, equal to COCO's evaluation (pycocoevalcap).

All take sentences whose tokens are separated by spaces (`ptb.py` makes them) and score a whole evaluation: the
n-gram weights of CIDEr-D come from its references, so that figures of different subsets are not comparable.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_lite.evaluation.metrics.strings import require_targets

Ngram = tuple[str, ...]
_ORDERS = 4


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram occurs, of how many images. Keep it to score a resample."""

    images: Counter[Ngram]
    total: int


@dataclass(frozen=True)
class Bleu:
    """BLEU-1 to BLEU-4 of the corpus, and of each sentence alone."""

    corpus: tuple[float, ...]
    sentences: list[tuple[float, ...]]


@dataclass(frozen=True)
class _Weights:
    by_order: list[dict[Ngram, float]]
    norms: list[float]
    bigrams: int


def document_frequency(references: Sequence[Sequence[str]]) -> DocumentFrequency:
    """Of the references of each image, all of them."""
    images: Counter[Ngram] = Counter()
    for captions in references:
        images.update({ngram for caption in captions for ngram in _ngrams(caption)})
    return DocumentFrequency(images, len(references))


def cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    frequency: DocumentFrequency | None = None,
    sigma: float = 6.0,
) -> list[float]:
    """CIDEr-D of each candidate, 0 to 10; a corpus's figure is their mean (Vedantam et al. 2015, section 4).

    `frequency` defaults to that of `references`. n-grams of orders 1 to 4, clipped counts, a Gaussian penalty
    on the difference of lengths (counted in bigrams, as published). Errors: `ValueError` for unequal lengths,
    `FlamingoError` for a candidate without a reference.
    """
    known = frequency or document_frequency(references)
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        weights = _weights(candidate, known)
        total = np.zeros(_ORDERS)
        for caption in require_targets(captions):
            total += _similarity(weights, _weights(caption, known), sigma)
        scores.append(float(np.mean(total) / len(captions) * 10.0))
    return scores


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU with the reference length that is closest to each candidate's, the shorter of two (Papineni 2002).

    Errors as `cider_d`.
    """
    correct, guessed = np.zeros(_ORDERS, dtype=np.int64), np.zeros(_ORDERS, dtype=np.int64)
    length, reference_length = 0, 0
    sentences = []
    for candidate, captions in zip(candidates, references, strict=True):
        own = len(candidate.split())
        closest = min((abs(len(c.split()) - own), len(c.split())) for c in require_targets(captions))[1]
        limits: Counter[Ngram] = Counter()
        for caption in captions:
            limits |= _ngrams(caption)
        hits = np.zeros(_ORDERS, dtype=np.int64)
        for ngram, count in (_ngrams(candidate) & limits).items():
            hits[len(ngram) - 1] += count
        guesses = np.maximum(0, own - np.arange(_ORDERS))
        sentences.append(_bleu(hits, guesses, own, closest))
        correct, guessed = correct + hits, guessed + guesses
        length, reference_length = length + own, reference_length + closest
    return Bleu(_bleu(correct, guessed, length, reference_length), sentences)


def rouge_l(candidate: str, references: Sequence[str], beta: float = 1.2) -> float:
    """ROUGE-L of COCO's evaluation: an F-measure of the best precision and the best recall over references."""
    given = candidate.split(" ")
    longest = [
        (common_subsequence(given, words), len(words))
        for r in require_targets(references)
        for words in [r.split(" ")]
    ]
    precision = max(common / len(given) for common, _ in longest)
    recall = max(common / length for common, length in longest)
    if not precision or not recall:
        return 0.0
    return ((1 + beta**2) * precision * recall) / (recall + beta**2 * precision)


def _ngrams(sentence: str) -> Counter[Ngram]:
    words = sentence.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, _ORDERS + 1) for i in range(len(words) - n + 1))


def _weights(sentence: str, frequency: DocumentFrequency) -> _Weights:
    # numpy's logarithm, as published: `math.log` differs from it in the last digit of some scores.
    log_total = np.log(float(frequency.total))
    by_order: list[dict[Ngram, float]] = [{} for _ in range(_ORDERS)]
    squares, bigrams = [0.0] * _ORDERS, 0
    for ngram, count in _ngrams(sentence).items():
        order = len(ngram) - 1
        weight = count * (log_total - np.log(max(1.0, frequency.images[ngram])))
        by_order[order][ngram] = weight
        squares[order] += pow(weight, 2)
        bigrams += count if order == 1 else 0
    return _Weights(by_order, [np.sqrt(square) for square in squares], bigrams)


def _similarity(candidate: _Weights, reference: _Weights, sigma: float) -> np.ndarray:
    penalty = np.e ** (-((candidate.bigrams - reference.bigrams) ** 2) / (2 * sigma**2))
    found = np.zeros(_ORDERS)
    for order in range(_ORDERS):
        known = reference.by_order[order]
        for ngram, weight in candidate.by_order[order].items():
            other = known.get(ngram, 0.0)
            found[order] += min(weight, other) * other
        norm = candidate.norms[order] * reference.norms[order]
        found[order] = found[order] / norm * penalty if norm else found[order] * penalty
    return found


def _bleu(correct: np.ndarray, guessed: np.ndarray, length: int, reference_length: int) -> tuple[float, ...]:
    # The published constants: nothing guessed gives 0 and not an error.
    tiny, small = 1e-15, 1e-9
    product, scores = 1.0, []
    for order in range(_ORDERS):
        product *= (float(correct[order]) + tiny) / (float(guessed[order]) + small)
        scores.append(product ** (1.0 / (order + 1)))
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return tuple(score * brevity for score in scores)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
