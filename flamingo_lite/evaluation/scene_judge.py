"""A judge that is a rule: about synthetic scenes it checks what an answer states, and whether that is what was asked."""

import re
from collections.abc import Sequence

from flamingo_lite.data.instruct.scene_facts import Facts, is_right, read_facts, statements
from flamingo_lite.errors import SampleError
from flamingo_lite.evaluation.judge import HIGHEST, LOWEST, system_prompt
from flamingo_lite.teacher import Message, Rule

_PART = re.compile(r"^(Context|Question|First answer|Second answer):\n((?:>.*(?:\n|$))+)", re.MULTILINE)


def scene_judge() -> Rule:
    """The judge `rule`. It refuses (`SampleError`) all but the packaged prompt, about scenes."""
    return Rule("rule", _reply)


def _reply(messages: Sequence[Message]) -> str:
    parts = {
        name: re.sub("^> ?", "", text, flags=re.MULTILINE) for name, text in _PART.findall(messages[-1].text)
    }
    facts = read_facts(parts.get("Context", ""))
    if messages[0].text != system_prompt() or len(parts) != 4 or not facts.things:
        raise SampleError(
            "the rule judge knows synthetic scenes only; expected a bench of scenes, or another --teacher",
            "refused",
        )
    answers = (parts["First answer"], parts["Second answer"])
    scores, reasons = zip(*(_score(parts["Question"], answer, facts) for answer in answers), strict=True)
    return "\n".join([" ".join(f"{score:.1f}" for score in scores), *reasons])


def _score(question: str, answer: str, facts: Facts) -> tuple[float, str]:
    """1 for an answer with nothing right in it, 10 for one without a mistake: half of it for saying what was asked for,
    where that can be told, and half for the share of true statements."""
    stated, right = statements(answer, facts), is_right(question, answer, facts)
    parts = [] if right is None else [float(right)]
    if stated:
        parts.append(sum(stated) / len(stated))
    share = sum(parts) / len(parts) if parts else 0.0
    known = "of another kind" if right is None else "answered" if right else "not answered"
    reason = f"{sum(stated)} of {len(stated)} statements are true; the question is {known}"
    return LOWEST + (HIGHEST - LOWEST) * share, reason
