"""From a generated text to a score. Pure functions; a failed generation is a status and never a wrong
answer."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Extract = Callable[[str], str | None]

# The official VL-ICL pattern `\d+` loses the minus sign, so a negative answer could never match. Signs that
# models write: hyphen-minus, minus sign, en dash. 18 digits: int() of a longer run may raise, and no answer
# is that long.
_NUMBER = re.compile(r"([-\u2212\u2013+])?\s*([0-9]{1,18})\.?")


@dataclass(frozen=True)
class GenerationFailure:
    """What a text generator returns instead of a text when it could not make one. `reason`: one line."""

    reason: str


@dataclass(frozen=True)
class Scored:
    """`status`: "ok", "unparsed" (a text without an answer in it: wrong) or "failed" (no text: no score)."""

    extracted: str | None
    score: float | None
    status: str


def extract_number(text: str) -> str | None:
    """The number that the first line of `text` is, in canonical form ("-3"); None when it is anything
    else."""
    lines = text.strip().splitlines()
    match = _NUMBER.fullmatch(lines[0].strip()) if lines else None
    if match is None:
        return None
    sign, digits = match.groups()
    value = int(digits)
    return str(value if sign in (None, "+") else -value)


def extract_after_equals(text: str) -> str | None:
    """The number after the last "=" of the first line ("3 ? 5 = 8" gives "8"); None when there is none."""
    lines = text.strip().splitlines()
    _, equals, answer = lines[0].rpartition("=") if lines else ("", "", "")
    return extract_number(answer) if equals else None


def score(raw: str | GenerationFailure, target: str, extract: Extract) -> Scored:
    """Exact match of what `extract` finds in `raw`."""
    if isinstance(raw, GenerationFailure):
        return Scored(extracted=None, score=None, status="failed")
    extracted = extract(raw)
    if extracted is None:
        return Scored(extracted=None, score=0.0, status="unparsed")
    return Scored(extracted, float(extracted == target), "ok")


def copy_rate(answers: Iterable[tuple[str | None, str, Sequence[str]]]) -> float | None:
    """Of the wrong answers among (extracted, target, demonstrations' answers), the share that a demonstration
    had.

    None when no answer was wrong. Texts without an answer count neither way.
    """
    wrong = [(given, shown) for given, target, shown in answers if given is not None and given != target]
    return sum(given in shown for given, shown in wrong) / len(wrong) if wrong else None


def majority_baseline(targets: Sequence[str]) -> float | None:
    """The accuracy of always giving the commonest target; None without targets."""
    return max(Counter(targets).values()) / len(targets) if targets else None
