"""A teacher that is a rule: it reads what any teacher is shown of a synthetic scene, and writes all three kinds offline.

Whatever it says follows from the captions and boxes in its prompt, so that every sentence can be checked for truth.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence

from flamingo_lite.data.instruct.kinds import KINDS, Pair, prompt
from flamingo_lite.data.instruct.scene_facts import BESIDE, Facts, named, read_facts
from flamingo_lite.data.synthetic.questions import Question, Scene, ask
from flamingo_lite.data.synthetic.scenes import COLOURS, Thing, plural
from flamingo_lite.errors import SampleError
from flamingo_lite.teacher import Message, Rule

ASKED = ("existence", "count", "comparison", "colour", "shape")
MAX_TURNS = 4


def scene_teacher() -> Rule:
    """The teacher `rule`. It refuses (`SampleError`) all but the packaged prompts of the three kinds, about scenes."""
    return Rule("rule", _answer)


def _answer(messages: Sequence[Message]) -> str:
    kind = next((kind for kind in KINDS if messages[0].text == prompt(kind).system), None)
    facts = read_facts(messages[-1].text)
    if kind is None or not facts.things:
        raise SampleError(
            "the rule teacher knows synthetic scenes only; expected --from scenes, or another --teacher",
            "refused",
        )
    generator = random.Random(hashlib.sha256(f"{kind}\n{messages[-1].text}".encode()).hexdigest())
    return re.sub(r"\ba (?=orange)", "an ", _WRITERS[kind](facts, generator))


def _conversation(facts: Facts, generator: random.Random) -> str:
    """Two to four questions, each of another kind, with answers in sentences."""
    colour, shape = generator.choice(facts.things)
    subject = generator.choice(
        ((colour, shape), (colour, ""), ("", shape), (generator.choice(list(COLOURS)), ""))
    )
    shown = Scene(facts.things, subject)
    drawn = [ask(kind, shown, generator) for kind in generator.sample(ASKED, len(ASKED))]
    questions = [question for question in drawn if question is not None][: generator.randint(2, MAX_TURNS)]
    return _written([(_capital(question.text), _sentence(question, facts)) for question in questions])


def _sentence(question: Question, facts: Facts) -> str:
    answer = question.answer(facts.things)
    first, *rest = question.about
    match question.kind:
        case "existence":
            return (
                f"Yes, there is a {named(first)}." if answer == "yes" else f"No, there is no {named(first)}."
            )
        case "count":
            return f"{_capital(_there(facts.number(first), first))}."
        case "comparison":
            is_more = "Yes, there are more" if answer == "yes" else "No, there are not more"
            return f"{is_more} {plural(first)} than {plural(rest[0])}."
        case "colour":
            return f"The {named(first)} is {answer}."
        case _:
            return f"The {named(first)} is a {answer}."


def _detail(facts: Facts, generator: random.Random) -> str:
    """How many things there are, then each kind of thing at each place, from the top left on."""
    _need_boxes(facts)
    number = len(facts.things)
    sentences = [f"The picture shows {number} {'thing' if number == 1 else 'things'}."]
    order = sorted(range(number), key=lambda i: (facts.place(i).split()[0] == "bottom", facts.centres[i][0]))
    spots = list(dict.fromkeys((facts.things[i], facts.place(i)) for i in order))
    for thing, place in spots:
        sentences.append(f"{_capital(_there(facts.number(thing, place), thing))} at the {place}.")
    if (pair := _apart(facts, generator)) is not None:
        first, relation, second = pair
        sentences.append(f"The {_name(facts, first)} is {relation} the {_name(facts, second)}.")
    return " ".join(sentences)


def _reasoning(facts: Facts, generator: random.Random) -> str:
    """One question whose answer takes a step beyond naming what is there."""
    _need_boxes(facts)
    writers = [_left_over, _comparison, _relation]
    pairs = (write(facts, generator) for write in generator.sample(writers, len(writers)))
    return _written([next(pair for pair in pairs if pair is not None)])


def _left_over(facts: Facts, generator: random.Random) -> Pair:
    colour, shape = generator.choice(facts.things)
    what = generator.choice(((colour, ""), ("", shape), (colour, shape)))
    number, total = facts.number(what), len(facts.things)
    left = total - number
    return (
        f"If all {plural(what)} were taken away, how many things would be left?",
        f"{_capital(_there(total, ('', '')))}, and {_there(number, what)}. "
        f"Without them, {total} - {number} = {left}, so the number of things left would be {left}.",
    )


def _comparison(facts: Facts, generator: random.Random) -> Pair | None:
    shapes = sorted({shape for _, shape in facts.things})
    if len(shapes) < 2:
        return None
    first, second = (("", shape) for shape in generator.sample(shapes, 2))
    question = Question("comparison", (first, second))
    counted = f"{_there(facts.number(first), first)}, and {_there(facts.number(second), second)}"
    return (
        f"{_capital(question.text).removesuffix('?')}, and how can one tell?",
        f"{_sentence(question, facts).removesuffix('.')}: {counted}.",
    )


def _relation(facts: Facts, generator: random.Random) -> Pair | None:
    if (pair := _apart(facts, generator)) is None:
        return None
    first, relation, second = pair
    one, other = _name(facts, first), _name(facts, second)
    where = f"the {one} is at the {facts.place(first)}, and the {other} is at the {facts.place(second)}"
    if generator.random() < 0.5:
        said = f"Yes, the {one} is {relation} the {other}: {where}."
        return f"Is the {one} {relation} the {other}, and how can one tell?", said
    axis, sign = BESIDE[relation]
    opposite = next(name for name, value in BESIDE.items() if value == (axis, -sign))
    said = f"No, the {one} is {relation} the {other}: {where}."
    return f"Is the {one} {opposite} the {other}, and how can one tell?", said


def _apart(facts: Facts, generator: random.Random) -> tuple[int, str, int] | None:
    """Two things of which there is one each, in different columns or rows, and how they stand; None where none do."""
    alone = [i for i, thing in enumerate(facts.things) if facts.only(thing) == i]
    found = [
        (first, relation, second)
        for first in alone
        for second in alone
        for relation, (axis, _) in BESIDE.items()
        if _side(facts, first, axis) != _side(facts, second, axis) and facts.stands(first, relation, second)
    ]
    return generator.choice(found) if found else None


def _side(facts: Facts, index: int, axis: int) -> str:
    return facts.place(index).split()[1 - axis]


def _name(facts: Facts, index: int) -> str:
    return named(facts.things[index])


def _there(number: int, what: Thing) -> str:
    """ "there are 2 red circles"."""
    if number == 1:
        return f"there is 1 {named(what)}"
    return f"there are {number or 'no'} {plural(what)}"


def _need_boxes(facts: Facts) -> None:
    if not facts.centres:
        raise SampleError("the scene has no boxes; expected one per thing", "refused")


def _written(pairs: Sequence[Pair]) -> str:
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_WRITERS: dict[str, Callable[[Facts, random.Random], str]] = {
    "conversation": _conversation,
    "detail": _detail,
    "reasoning": _reasoning,
}
