"""MathVista's rules: how an answer is taken from a response and made comparable (Lu et al. 2024).

The leaderboard has a language model extract what the rules do not; here that is an extraction failure, which is
wrong and counted: a score by these rules is not the leaderboard's, and is to be reported with its failures.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flamingo_lite.evaluation.metrics.scored import Scored
from flamingo_lite.evaluation.metrics.strings import edit_distance

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_LETTER = re.compile(r"\(([a-zA-Z])\)")


@dataclass(frozen=True)
class MathVistaQuestion:
    """`question_type`: "multi_choice" or "free_form"; `answer_type`: "text", "integer", "float" or "list"."""

    question_type: str
    answer_type: str
    choices: Sequence[str] = ()
    precision: int | None = None


def mathvista(response: str, answer: str, question: MathVistaQuestion) -> Scored:
    """Whether what the rules take from `response` equals `answer`.

    Beyond the published rules a bare option letter ("B", "b.", "(B) 8/11") is taken, which the leaderboard's
    model would do: models are asked for the letter.
    """
    extraction = mathvista_extract(response, question)
    if extraction is None and question.question_type == "multi_choice":
        extraction = _option_letter(response, len(question.choices))
    normalised = None if extraction is None else mathvista_normalise(extraction, question)
    if normalised is None:
        return Scored(extracted=None, score=0.0, status="unparsed")
    return Scored(normalised, float(normalised.strip() == answer.strip()), "ok")


def mathvista_extract(response: str, question: MathVistaQuestion) -> str | None:
    """By the published order: a choice word for word, an integer, a float, 'The answer is "..."'; else None."""
    if not response:
        return None
    if question.question_type == "multi_choice" and response in question.choices:
        return response
    if question.answer_type == "integer" and (whole := _converted(int, response)) is not None:
        return whole
    if question.answer_type == "float" and (value := _converted(float, response)) is not None:
        return value
    found = _QUOTED.search(response)
    return found.group(1) if found else None


def mathvista_normalise(extraction: str, question: MathVistaQuestion) -> str | None:
    """The extraction as the answer is written; None where it is no number and one is asked for.

    Multiple choice: a letter in parentheses, or alone, names its choice; anything else is the choice at the
    least edit distance, the first of equals. Integers lose their decimals; floats are rounded to the
    question's precision.
    """
    if question.question_type == "multi_choice":
        extraction = extraction.strip()
        if letter := _LETTER.search(extraction):
            extraction = letter.group(1).upper()
        options = [chr(ord("A") + i) for i in range(len(question.choices))]
        if extraction in options:
            return question.choices[options.index(extraction)]
        return min(question.choices, key=lambda choice: edit_distance(extraction, choice))
    if question.answer_type == "integer":
        return _converted(lambda text: int(float(text)), extraction)
    if question.answer_type == "float":
        return _converted(lambda text: round(float(text), question.precision), extraction)
    return extraction


def _converted(convert: Callable[[str], int | float], text: str) -> str | None:
    try:
        return str(convert(text))
    except (ValueError, OverflowError):
        return None


def _option_letter(response: str, choices: int) -> str | None:
    match = re.match(r"\(([a-zA-Z])\)|([a-zA-Z])(?=[.:)]?$|[.:)]\s)", response.strip())
    if match is None:
        return None
    letter = (match.group(1) or match.group(2)).upper()
    return letter if ord(letter) - ord("A") < choices else None
