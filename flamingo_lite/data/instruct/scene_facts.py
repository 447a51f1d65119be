"""What is true of a scene of coloured shapes, and whether sentences about it are: a rule can teach it, another can judge.

The sentences are those of `scene_teacher.py`, and what a model that has learned from them would say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from flamingo_lite.data.synthetic.questions import Question
from flamingo_lite.data.synthetic.scenes import COLOURS, SHAPES, Thing, matches, plural

COLUMNS, ROWS = ("left", "middle", "right"), ("top", "bottom")
BESIDE: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
"""A relation: the axis on which two centres are compared, and the sign of the difference."""

_NOUNS = {noun: shape for shape in ("", *SHAPES) for noun in (shape or "thing", plural(("", shape)))}
_COLOUR = f"(?:{'|'.join(COLOURS)})"
_WHAT = rf"((?:{_COLOUR} )?(?:{'|'.join(sorted(_NOUNS, key=len, reverse=True))}))\b"
_PLACE = rf"((?:{'|'.join(ROWS)}) (?:{'|'.join(COLUMNS)}))"
_BOX = re.compile(rf"^({_COLOUR}) ({'|'.join(SHAPES)}): \[([\d., ]+)\]$", re.MULTILINE)
_CAPTION = re.compile(rf"({_COLOUR}) ({'|'.join(SHAPES)})\b")
_NUMBERS = dict(zip(["no", "one", "two", "three", "four", "five", "six"], range(7), strict=True)) | {
    "zero": 0
}


@dataclass(frozen=True)
class Facts:
    """The things of a scene, and their centres (x, y) in shares of the picture; no centres where only words are known."""

    things: tuple[Thing, ...]
    centres: tuple[tuple[float, float], ...] = ()

    def number(self, what: Thing, place: str | None = None) -> int:
        return sum(
            matches(thing, what) and (place is None or self.place(i) == place)
            for i, thing in enumerate(self.things)
        )

    def place(self, index: int) -> str:
        """Of six, in words: "top left"."""
        x, y = self.centres[index]
        return f"{ROWS[y >= 0.5]} {COLUMNS[min(2, int(x * 3))]}"

    def only(self, what: Thing) -> int | None:
        """The index of the one thing that is `what`; None where there is none, or are several."""
        found = [i for i, thing in enumerate(self.things) if matches(thing, what)]
        return found[0] if len(found) == 1 else None

    def stands(self, first: int, relation: str, second: int) -> bool:
        axis, sign = BESIDE[relation]
        return sign * (self.centres[first][axis] - self.centres[second][axis]) > 0


def read_facts(context: str) -> Facts:
    """The facts in a context as a teacher or a judge is shown it: by its boxes, or by its caption where it has none."""
    boxes = _BOX.findall(context)
    if not boxes:
        return Facts(tuple(_CAPTION.findall(context)))
    corners = [[float(number) for number in numbers.split(",")] for *_, numbers in boxes]
    centres = tuple(((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in corners)
    return Facts(tuple((colour, shape) for colour, shape, _ in boxes), centres)


def what_of(words: str) -> Thing:
    """ "red circles" as (red, circle); "things" as ("", "")."""
    *colour, noun = words.split()
    return (colour[0] if colour else "", _NOUNS[noun])


def named(what: Thing) -> str:
    """A single one in words: "red circle", "red thing"."""
    return f"{what[0]} {what[1] or 'thing'}".strip()


def statements(text: str, facts: Facts) -> list[bool]:
    """For every statement about the scene that is recognized in the text, whether it is true."""
    lowered = " ".join(text.lower().split())
    return [
        is_true(facts, *found.groups())
        for pattern, is_true in _STATEMENTS
        for found in pattern.finditer(lowered)
    ]


def is_right(question: str, text: str, facts: Facts) -> bool | None:
    """Whether the text gives the answer that the scene gives to the question; None for a question of another kind."""
    asked, said = " ".join(question.lower().split()), " ".join(text.lower().split())
    for pattern, check in _QUESTIONS:
        if found := pattern.search(asked):
            return check(facts, said, *found.groups())
    return None


def _there_are(facts: Facts, number: str, what: str, place: str | None) -> bool:
    if place is not None and not facts.centres:
        return False
    found = facts.number(what_of(what), place)
    return found > 0 if number in ("a", "an") else found == _number(number)


def _stands(facts: Facts, first: str, relation: str, second: str) -> bool:
    one, other = facts.only(what_of(first)), facts.only(what_of(second))
    return (
        bool(facts.centres) and one is not None and other is not None and facts.stands(one, relation, other)
    )


def _is_at(facts: Facts, what: str, place: str) -> bool:
    return bool(facts.centres) and facts.number(what_of(what), place) > 0


def _is_coloured(facts: Facts, what: str, colour: str) -> bool:
    found = [thing for thing in facts.things if matches(thing, what_of(what))]
    return bool(found) and all(thing[0] == colour for thing in found)


def _is_shaped(facts: Facts, what: str, shape: str) -> bool:
    found = [thing for thing in facts.things if matches(thing, what_of(what))]
    return bool(found) and all(thing[1] == shape for thing in found)


def _are_more(facts: Facts, negation: str | None, first: str, second: str) -> bool:
    return (facts.number(what_of(first)) > facts.number(what_of(second))) == (negation is None)


_N = rf"(no|an?|\d+|{'|'.join(_NUMBERS)})"
_RELATION = f"({'|'.join(BESIDE)})"
_STATEMENTS: list[tuple[re.Pattern[str], Callable[..., bool]]] = [
    (re.compile(rf"there (?:is|are) {_N} {_WHAT}(?: at the {_PLACE})?"), _there_are),
    (
        re.compile(rf"(?:picture|image) shows {_N} {_WHAT}"),
        lambda facts, number, what: _there_are(facts, number, what, None),
    ),
    (re.compile(rf"the {_WHAT} is {_RELATION} the {_WHAT}"), _stands),
    (re.compile(rf"the {_WHAT} is at the {_PLACE}"), _is_at),
    (re.compile(rf"the {_WHAT} is ({'|'.join(COLOURS)})\b"), _is_coloured),
    (re.compile(rf"the {_WHAT} is an? ({'|'.join(SHAPES)})\b"), _is_shaped),
    (re.compile(rf"there are (not )?more {_WHAT} than {_WHAT}"), _are_more),
]


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else _NUMBERS[word]


def _numbers(said: str) -> list[int]:
    """ "no" is a number before a noun alone: as the whole of an answer it is none."""
    words = "|".join(word for word in _NUMBERS if word != "no")
    return [_number(word) for word in re.findall(rf"\b(?:\d+|{words}|no(?= \w))\b", said)]


def _says_yes(said: str) -> bool | None:
    found = re.match(r"(yes|no)\b", said)
    return None if found is None else found.group() == "yes"


def _simple(kind: str, read: Callable[[str, str], str | None]) -> Callable[..., bool]:
    """Checks against the answer that the question itself has (`synthetic/questions.py`)."""

    def check(facts: Facts, said: str, *about: str) -> bool:
        answer = Question(kind, tuple(what_of(words) for words in about)).answer(facts.things)
        return answer is not None and read(said, " ".join(about)) == answer

    return check


def _yes_or_no(said: str, asked: str) -> str | None:
    return {True: "yes", False: "no", None: None}[_says_yes(said)]


def _first_number(said: str, asked: str) -> str | None:
    return str(numbers[0]) if (numbers := _numbers(said)) else None


def _one_of(words: tuple[str, ...]) -> Callable[[str, str], str | None]:
    """The only one of these words that is said and was not asked with."""

    def read(said: str, asked: str) -> str | None:
        found = [word for word in words if re.search(rf"\b{word}\b", said) and word not in asked.split()]
        return found[0] if len(found) == 1 else None

    return read


def _stands_or_not(facts: Facts, said: str, first: str, relation: str, second: str) -> bool:
    return _says_yes(said) == _stands(facts, first, relation, second)


def _left_over(facts: Facts, said: str, what: str) -> bool:
    return _numbers(said)[-1:] == [len(facts.things) - facts.number(what_of(what))]


_QUESTIONS: list[tuple[re.Pattern[str], Callable[..., bool]]] = [
    (re.compile(rf"if all {_WHAT} were taken away, how many"), _left_over),
    (re.compile(rf"is the {_WHAT} {_RELATION} the {_WHAT}"), _stands_or_not),
    (re.compile(rf"are there more {_WHAT} than {_WHAT}"), _simple("comparison", _yes_or_no)),
    (re.compile(rf"how many {_WHAT} are there"), _simple("count", _first_number)),
    (re.compile(rf"is there an? {_WHAT}"), _simple("existence", _yes_or_no)),
    (re.compile(rf"what colour is the {_WHAT}"), _simple("colour", _one_of(tuple(COLOURS)))),
    (re.compile(rf"what shape is the {_WHAT}"), _simple("shape", _one_of(SHAPES))),
]
