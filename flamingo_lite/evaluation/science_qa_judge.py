"""ScienceQA with a second model and a judge: a text-only teacher decides where the two answered differently.

LLaVA, section 5.2: the judge sees the question, its options and both answers, and gives an answer of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flamingo_lite.data.convert.scienceqa_prompt import LETTERS, ScienceQaProblem, science_qa_question
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.ensemble import Decide, Sample, judged
from flamingo_lite.evaluation.metrics import GenerationFailure, Scored
from flamingo_lite.evaluation.metrics.choices import science_qa
from flamingo_lite.evaluation.tasks.task import Items
from flamingo_lite.teacher import Answer, Asker, Message, Request, Sampling

SYSTEM = (
    "You settle a multiple-choice question from a school lesson on which two answers differ. Either, both or neither "
    "may be right. Reason in a few sentences, then end with 'The answer is X.', where X is the letter of an option."
)
NOTHING = "(no answer)"


def judge_science_qa(
    ours: Sequence[Sample],
    second: Sequence[Sample],
    items: Items,
    asker: Asker,
    sampling: Sampling | None = None,
) -> list[dict[str, Any]]:
    """Our samples, those on which the second model differs decided by the teacher (see `ensemble.judged`).

    `items`: those of the task, `items_of("science_qa", files)`. Errors: as `ensemble.paired`, and `FlamingoError` for a
    budget that ends before every question is settled, or a teacher that answers nothing.
    """

    def example_of(sample: Sample) -> Any:
        return items.query(sample["split"], sample["query_id"])

    def score(text: str, sample: Sample) -> Scored:
        example = example_of(sample)
        return science_qa(text, LETTERS.index(example.answer), len(example.choices))

    def problem_of(sample: Sample) -> ScienceQaProblem:
        return example_of(sample).facts["problem"]

    return judged(ours, second, teacher_decides(asker, problem_of, sampling or Sampling()), score)


def teacher_decides(
    asker: Asker, problem_of: Callable[[Sample], ScienceQaProblem], sampling: Sampling
) -> Decide:
    def decide(pairs: Sequence[tuple[Sample, Sample]]) -> list[str | GenerationFailure]:
        requests = [
            Request(number, messages(problem_of(mine), mine, theirs), sampling)
            for number, (mine, theirs) in enumerate(pairs)
        ]
        said: dict[int, str | GenerationFailure] = {}
        for number, outcome in asker.ask(requests):
            said[number] = outcome.text if isinstance(outcome, Answer) else GenerationFailure(outcome.message)
        if len(said) < len(pairs):
            raise FlamingoError(
                f"the teacher's budget ended after {len(said)} of {len(pairs)} questions; give it more, what is answered "
                "is kept"
            )
        return [said[number] for number in range(len(pairs))]

    return decide


def messages(problem: ScienceQaProblem, mine: Sample, theirs: Sample) -> list[Message]:
    """What the judge is shown. The picture it never sees: what is in it, only the first answer can say."""
    question = science_qa_question(problem).removesuffix("\nAnswer:")
    answers = [str(sample["raw"] or "").strip() or NOTHING for sample in (mine, theirs)]
    text = f"{question}\n\nFirst answer: {answers[0]}\n\nSecond answer: {answers[1]}"
    return [Message("system", SYSTEM), Message("user", text)]
