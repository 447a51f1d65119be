"""Self-Instruct from end to end, with a teacher that answers by script: what is shown, asked, kept and left out."""

import itertools
from collections.abc import Sequence

from flamingo_lite.data.instruct.outcomes import Rejected
from flamingo_lite.data.instruct.self_instruct import load, seed_tasks, self_instruct
from flamingo_lite.document import Document
from flamingo_lite.teacher import Answer, Asker, Message, Sampling

PROMPTS = load("self_instruct")


class Scripted:
    """Invents instructions from words, calls every other one a classification, and keeps what it was shown."""

    name = "scripted"

    def __init__(self) -> None:
        self.shown: list[list[Message]] = []
        self.numbers = itertools.count()

    def fresh(self) -> str:
        n = next(self.numbers)
        return f"{('Compare', 'Rank')[n % 2]} n{n} with m{n}, o{n} and p{n}."

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        self.shown.append(list(messages))
        sort = next(name for name, text in PROMPTS.items() if text == messages[0].text)
        if sort == "instructions":
            tasks = [first := self.fresh(), "Draw a map.", self.fresh(), first]
            return Answer("\n".join(f"Task {9 + i}: {task}" for i, task in enumerate(tasks)), 90, 10)
        if sort == "classification":
            return Answer("Yes." if messages[-1].text.startswith("Rank") else "no", 50, 1)
        if sort == "outputs_first":
            return Answer("Label: good\nInput: it was fine\n===\nLabel: bad\nInput: bad", 50, 5)
        return Answer("Input: some\nOutput: thing\n===\nInput: none\nOutput: All of them:", 50, 5)


def run(number: int, **options: int) -> tuple[list[tuple[str, Document]], list[Rejected], Scripted]:
    teacher = Scripted()
    # One at a time: the script hands out its instructions in the order in which it is asked.
    outcomes = list(self_instruct(Asker(teacher, concurrency=1, **options), number, 0, Sampling(16)))
    rejects = [each for each in outcomes if isinstance(each, Rejected)]
    return [each for each in outcomes if not isinstance(each, Rejected)], rejects, teacher


def test_as_many_instructions_become_conversations_as_were_wanted() -> None:
    documents, rejects, _ = run(11)
    tasks = {document.meta["instruction"] for _, document in documents}
    assert len(tasks) == 11 and len({key for key, _ in documents}) == len(documents)
    assert {reject.reason for reject in rejects} == {"short", "similar", "echo", "colon"}
    assert all(reject.answer for reject in rejects)


def test_a_conversation_asks_with_the_input_and_trains_on_the_output_alone() -> None:
    documents, _, _ = run(3)
    _, document = documents[0]
    asked, given, said = document.texts
    assert (asked.text, given.text, said.text) == (document.meta["instruction"], "\n\nsome", "thing")
    assert (given.role, given.loss) == ("user", False)
    assert (asked.role, asked.loss, said.role, said.loss, said.ends_chunk) == (
        "user", False, "assistant", True, True,
    )  # fmt: skip
    assert not document.images


def test_a_prompt_shows_eight_tasks_of_which_two_at_most_are_new() -> None:
    documents, _, teacher = run(12)
    seeds = {task.instruction for task in seed_tasks()}
    new = {document.meta["instruction"] for _, document in documents}
    counts = []
    for messages in teacher.shown:
        if messages[0].text != PROMPTS["instructions"]:
            continue
        shown = [
            line.partition(": ")[2] for line in messages[1].text.splitlines() if line.startswith("Task ")
        ]
        assert len(shown) == len(set(shown)) == 8 and set(shown) <= seeds | new
        counts.append(len(set(shown) - seeds))
    assert counts[:4] == [0, 0, 0, 0] and set(counts[4:]) == {2}


def test_labels_come_first_for_classification_and_inputs_for_the_rest() -> None:
    _, _, teacher = run(8)
    for messages in teacher.shown:
        if messages[0].text in (PROMPTS["outputs_first"], PROMPTS["inputs_first"]):
            is_classification = messages[-1].text.startswith("Rank")
            assert (messages[0].text == PROMPTS["outputs_first"]) == is_classification
            first = "Label:" if is_classification else "Input:"
            assert all(turn.text.startswith(first) for turn in messages if turn.role == "assistant")


def test_a_spent_budget_keeps_what_was_made() -> None:
    documents, _, _ = run(1000, budget=9_000)
    assert 0 < len({document.meta["instruction"] for _, document in documents}) < 50


def test_a_teacher_with_nothing_new_to_say_is_not_asked_for_ever() -> None:
    class Stuck(Scripted):
        def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
            self.shown.append(list(messages))
            return Answer("Task 9: Draw a map.")

    teacher = Stuck()
    outcomes = list(self_instruct(Asker(teacher, concurrency=1), 5, 0, Sampling(16)))
    assert len(teacher.shown) == 20 and all(isinstance(each, Rejected) for each in outcomes)
