"""Multiple choice by letter: what LLaVA's ScienceQA evaluation accepts as an answer, and what lmms-eval does."""

import re

from flamingo_lite.evaluation.metrics.scored import Scored
from flamingo_lite.names import check_choice

LETTERS = "ABCDE"
# The last "." of the published pattern is no escaped one: it takes any character, but it needs one.
_STATED = re.compile(r"The answer is ([A-Z]).")


def science_qa(text: str, target: int, choices: int, variant: str = "official") -> Scored:
    """Whether the letter that `text` gives is that of choice `target` (from 0), of `choices` in all.

    `official` (LLaVA's eval_science_qa.py): a bare letter, then a letter with ". " behind it at the start,
    then the only "The answer is X." of the text; a letter beyond the choices is wrong. `lmms` (lmms-eval): a
    bare letter in either case, then a capital with a period behind it.
    """
    check_choice("variant of science_qa", variant, VARIANTS)
    letter = VARIANTS[variant](text.strip())
    if letter is None:
        return Scored(extracted=None, score=0.0, status="unparsed")
    wanted = chr(ord("A") + target)
    in_range = variant != "official" or letter in LETTERS[:choices]
    return Scored(letter, float(in_range and letter == wanted), "ok")


def _official(text: str) -> str | None:
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def _lmms(text: str) -> str | None:
    if len(text) == 1 and text.lower() in LETTERS.lower():
        return text.upper()
    # An uppercase letter beyond ASCII is a letter to them too; it matches no choice.
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else None


VARIANTS = {"official": _official, "lmms": _lmms}
