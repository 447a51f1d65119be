"""Whether two strings say the same: exact match with what may be ignored, and ANLS, which forgives misspelling."""

import string
from collections.abc import Sequence

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.metrics.scored import Scored

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_DIGITS = str.maketrans("", "", string.digits)


def exact_match(
    text: str,
    targets: Sequence[str],
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> Scored:
    """Whether `text`, without the space around it, is one of `targets`.

    The three switches are those of Hugging Face's `exact_match`: ASCII punctuation and digits are dropped on
    both sides, after lowering.
    """

    def plain(value: str) -> str:
        value = value.strip()
        value = value.lower() if ignore_case else value
        value = value.translate(_NO_PUNCTUATION) if ignore_punctuation else value
        return value.translate(_NO_DIGITS) if ignore_numbers else value

    given = plain(text)
    found = given in {plain(target) for target in require_targets(targets)}
    return Scored(given, float(found), "ok" if text.strip() else "unparsed")


def anls(text: str, targets: Sequence[str], threshold: float = 0.5) -> Scored:
    """1 - the least edit distance to a target over the longer length, and 0 below `threshold`.

    Biten et al. 2019 (ST-VQA), as DocVQA's and InfographicVQA's evaluation has it: case and runs of white
    space do not count in the distance, but the lengths are those of the strings before that.
    """
    given = _squeezed(text)
    distances = []
    for target in require_targets(targets):
        longer = max(len(target.upper()), len(text.upper()))
        distances.append(edit_distance(_squeezed(target), given) / longer if longer else 0.0)
    similarity = 1 - min(distances)
    score = 0.0 if similarity < threshold else float(similarity)
    return Scored(given, score, "ok" if given else "unparsed")


def edit_distance(first: str, second: str) -> int:
    """How many characters must be put in, taken out or replaced (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def require_targets(targets: Sequence[str]) -> Sequence[str]:
    """`targets` as they are. Errors: `FlamingoError` for none, as in a test split without published answers."""
    if not targets:
        raise FlamingoError(
            "a question has no reference answer; expected at least one: choose a split whose answers are public"
        )
    return targets


def _squeezed(text: str) -> str:
    return " ".join(text.strip().lower().split())
