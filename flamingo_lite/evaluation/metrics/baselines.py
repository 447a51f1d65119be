"""What a score is to be held against: copying a demonstration's answer, and always giving the commonest one."""

from collections import Counter
from collections.abc import Iterable, Sequence


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
