"""VQA accuracy: a mean over annotators, after a normalisation whose slips are part of the metric.

Goyal et al. 2017; equals vqaEval.py of the VQA challenge, and the two ways in which lmms-eval does it.
"""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flamingo_lite.evaluation.metrics.scored import Scored
from flamingo_lite.evaluation.metrics.strings import require_targets
from flamingo_lite.evaluation.metrics.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS
from flamingo_lite.names import check_choice

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The published pattern asks with "(?!<=\d)" for what can never stand before a period, and so for nothing.
_PERIOD = re.compile(r"\.(?!\d)")
# The published call hands `re.UNICODE`, which is 32, to the place of the count.
_MAX_PERIODS = 32


@dataclass(frozen=True)
class VqaVariant:
    """`clean` is done to every answer; `normalise` then too, unless `only_on_disagreement` and all agree."""

    clean: Callable[[str], str]
    normalise: Callable[[str], str]
    mean: Callable[[Sequence[float]], float]
    only_on_disagreement: bool


def vqa_accuracy(text: str, answers: Sequence[str], variant: str = "official") -> Scored:
    """The mean over annotators of min(1, how many of the others said `text` / 3).

    `answers` holds one per annotator, ten in VQA. `official`: the challenge's; answers on which all annotators
    agree are compared as they are. `lmms`: lmms-eval's VQAv2, which normalises always. `lmms_evalai`: its
    TextVQA, OK-VQA and VizWiz, which besides drop commas and question marks first. Errors: `FlamingoError` for
    no answers and an unknown variant.
    """
    check_choice("variant of vqa_accuracy", variant, VARIANTS)
    rule = VARIANTS[variant]
    given, known = rule.clean(text), [rule.clean(answer) for answer in require_targets(answers)]
    if not rule.only_on_disagreement or len(set(known)) > 1:
        given, known = rule.normalise(given), [rule.normalise(answer) for answer in known]
    matches = known.count(given)
    score = rule.mean([min(1.0, (matches - (answer == given)) / 3) for answer in known])
    return Scored(given, float(score), "ok" if text.strip() else "unparsed")


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _clean_evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _clean(text)


def _without_punctuation(text: str, digit_comma: re.Pattern[str]) -> str:
    """Every mark that touches a space somewhere is dropped, and all are where digits hold a comma; the others
    become spaces."""
    kept = text
    drop_all = digit_comma.search(text) is not None
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if drop_all or touches_space else " ")
    return _PERIOD.sub("", kept, count=_MAX_PERIODS)


def _words(text: str) -> str:
    numbers = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbers if word not in ARTICLES)


def _normaliser(digit_comma: str) -> Callable[[str], str]:
    pattern = re.compile(digit_comma)
    return lambda text: _words(_without_punctuation(text, pattern))


def _arithmetic_mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# The means differ in the last digit: lmms-eval's is exact before it is rounded.
VARIANTS = {
    "official": VqaVariant(_clean, _normaliser(r"\d,\d"), _arithmetic_mean, True),
    "lmms": VqaVariant(_clean, _normaliser(r"(?<=\d),+(?=\d)"), statistics.mean, False),
    "lmms_evalai": VqaVariant(_clean_evalai, _normaliser(r"(?<=\d),+(?=\d)"), statistics.mean, False),
}
