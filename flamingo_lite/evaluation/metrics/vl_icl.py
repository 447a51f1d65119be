"""VL-ICL's scores of one answer: as its own code has them, and mended (Zong et al. 2025).

Its code cuts a text at a newline, or else at a period; takes the first digits of what is left, without their sign;
and takes whatever does not say yes for a no.
"""

import re

from flamingo_lite.evaluation.metrics.scored import Scored, matched

_DIGITS = re.compile(r"\d+")
# A minus is a sign unless it stands behind what it may be subtracted from.
_SIGNED = re.compile(r"(?:(?<![\w)\]])[-\u2212\u2013]\s*)?[0-9]+")
_YES_OR_NO = re.compile(r"\b(yes|no)\b")


def vl_icl_match(text: str, answer: str) -> Scored:
    """Whether the cut text is the answer, but for case. As published."""
    return _compared(_cut(text), answer)


def vl_icl_number(text: str, answer: str) -> Scored:
    """Whether the first digits of the cut text are the answer. As published: a negative answer is never right."""
    found = _DIGITS.search(_cut(text))
    return _compared(found.group() if found else "", answer)


def vl_icl_signed(text: str, answer: str) -> Scored:
    """Whether the first whole number of the cut text is the answer, its sign included."""
    found = _SIGNED.search(_cut(text))
    if found is None:
        return matched(None, answer)
    digits = found.group().lstrip("-\u2212\u2013").strip()
    value = int(digits) * (-1 if found.group()[0] in "-\u2212\u2013" else 1)
    return matched(str(value), answer)


def vl_icl_yes_no(text: str, answer: str) -> Scored:
    """Whether the cut text has "yes" in it, or has not where the answer is no. As published: nothing is a no."""
    given = "yes" if "yes" in _cut(text).lower() else "no"
    return Scored(given, float(given == answer.lower()), "ok" if text.strip() else "unparsed")


def vl_icl_yes_or_no(text: str, answer: str) -> Scored:
    """Whether the only one of the words yes and no in the cut text is the answer."""
    said = set(_YES_OR_NO.findall(_cut(text).lower()))
    return matched(said.pop() if len(said) == 1 else None, answer.lower())


def _compared(given: str, answer: str) -> Scored:
    return Scored(given, float(given.lower() == answer.lower()), "ok" if given else "unparsed")


def _cut(text: str) -> str:
    """Up to the first newline, or where there is none up to the first period, unless the text begins with it."""
    text = text.strip().strip("\n")
    end = text.find("\n")
    if end <= 0:
        end = text.find(".")
    return text[:end] if end > 0 else text
