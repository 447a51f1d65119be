"""ROUGE-L between two token sequences: the F-measure of their longest common subsequence (Lin, 2004)."""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"[a-z0-9]+")


def tokens(text: str) -> list[str]:
    """Runs of letters and digits, lower case, as the rouge_score package cuts a text."""
    return _TOKEN.findall(text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """0 to 1; equal to rouge_score's `rougeL` without a stemmer."""
    common = common_length(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one number (Hyyro, 2004):
    every new instruction is compared with all that are kept."""
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    row = (1 << len(first)) - 1
    for token in second:
        match = row & places.get(token, 0)
        row = (row + match) | (row - match)
    return len(first) - (row & ((1 << len(first)) - 1)).bit_count()
