"""Questions about an image with answers of a word or two, in the wordings that results are published in."""

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.strings import exact_match
from flamingo_lite.evaluation.metrics.vqa import vqa_accuracy
from flamingo_lite.evaluation.tasks.files import Wording
from flamingo_lite.evaluation.tasks.task import Score, Style

WORDINGS: Mapping[str, Wording] = {
    # Without blanks, as in OpenFlamingo's own prompt.
    "openflamingo": Wording("Question:{question} Short answer:", "{answer}"),
    # LLaVA-1.5's, and lmms-eval's but for OK-VQA.
    "instruction": Wording("{question}\nAnswer the question using a single word or phrase."),
}

STOPS: Mapping[str, tuple[str, ...]] = {
    "openflamingo": ("Question", "Answer", "Short", ", "),
    "instruction": (),
}
"""Where a text is cut before it is judged: OpenFlamingo's places, in its order."""

MAX_NEW_TOKENS = 16


def styles_of(scores: Mapping[str, Score], metric: str) -> dict[str, Style]:
    """A style for each wording that has a score."""
    return {
        name: Style(score, metric, max_new_tokens=MAX_NEW_TOKENS, stop=STOPS[name])
        for name, score in scores.items()
    }


def vqa_styles(instructed: str) -> dict[str, Style]:
    """VQA accuracy: the challenge's own under `openflamingo`, the variant `instructed` under `instruction`."""
    return styles_of(
        {"openflamingo": vqa_score("official"), "instruction": vqa_score(instructed)}, "vqa_accuracy"
    )


def vqa_score(variant: str) -> Score:
    def score(text: str, example: Example) -> Scored:
        return vqa_accuracy(text, example.right_answers, variant)

    return score


def exact_words(text: str, example: Example) -> Scored:
    """Exact match but for case and punctuation, as lmms-eval has it for GQA."""
    return exact_match(text, example.right_answers, ignore_case=True, ignore_punctuation=True)


def given_answers(answers: Sequence[Any], where: str) -> tuple[str, ...]:
    """What annotators wrote, of records `{"answer": ...}` or plain texts. Errors: `FlamingoError` naming the record."""
    found = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not found or not all(isinstance(answer, str) for answer in found):
        raise FlamingoError(f"{where}: its answers are {list(answers)!r:.60}; expected texts, at least one")
    return tuple(map(str, found))


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most annotators gave, the first of several."""
    return max(answers, key=list(answers).count)
