"""Self-Instruct (Wang et al., 2023): seed tasks, new instructions, is it classification, instances; with its filters.

In rounds: the requests of a round depend on the rounds before it alone, so a run that was stopped asks the same ones.
"""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from flamingo_lite.data.instruct.kinds import load
from flamingo_lite.data.instruct.outcomes import Outcome, Rejected
from flamingo_lite.data.instruct.rouge import tokens
from flamingo_lite.data.instruct.tasks import (
    Instance,
    SeedTask,
    check_instruction,
    listed,
    read_instances,
    read_list,
    sift,
    written,
)
from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.teacher import Answer, Asker, Failure, Message, Request, Sampling

SHOWN, MAX_GENERATED = 8, 2
"""Tasks in a prompt, and how many of them at most are generated ones."""
LAST_TASK = 16
"""The number to which the list is continued."""
EXAMPLES = 4
"""Seed tasks of each sort that show how classification is told and how instances are written."""
PROMPTS_PER_ROUND = 4
MAX_BARREN_ROUNDS = 5
"""So many rounds without a new instruction, and there is no more to be had."""


@dataclass(frozen=True)
class NewTask:
    key: str
    instruction: str
    labels: bool = False


@functools.cache
def seed_tasks() -> tuple[SeedTask, ...]:
    """The packaged ones."""
    return tuple(
        SeedTask(
            task["instruction"].strip(),
            tuple(Instance(str(each.get("input", "")), str(each["output"])) for each in task["instances"]),
            task.get("labels", False),
        )
        for task in load("seeds")
    )


def self_instruct(asker: Asker, number: int, seed: int, sampling: Sampling) -> Iterator[Outcome]:
    """Conversations of one turn for `number` new instructions (fewer where the budget or the teacher gives no more),
    and what was left out on the way."""
    generated: list[str] = []
    kept = [tokens(task.instruction) for task in seed_tasks()]
    barren = 0
    for round_number in count():
        if len(generated) >= number or barren == MAX_BARREN_ROUNDS or asker.is_spent:
            return
        generator = random.Random(f"{seed}/self_instruct/{round_number}")
        fresh: list[NewTask] = []
        requests = [
            Request(prompt, _more(generated, generator), sampling) for prompt in range(PROMPTS_PER_ROUND)
        ]
        for prompt, answer in asker.ask(requests):
            key = f"round-{round_number:06d}-{prompt}"
            for found in _instructions(key, answer, kept):
                if isinstance(found, Rejected):
                    yield found
                elif len(generated) < number:
                    fresh.append(NewTask(f"task-{len(generated):06d}", found))
                    generated.append(found)
        barren = 0 if fresh else barren + 1
        yield from _with_instances(asker, fresh, sampling)


def _more(generated: Sequence[str], generator: random.Random) -> list[Message]:
    """Asks for instructions beyond eight that are shown."""
    old = generator.sample(generated, min(MAX_GENERATED, len(generated)))
    seeds = generator.sample([task.instruction for task in seed_tasks()], SHOWN - len(old))
    shown = generator.sample([*seeds, *old], SHOWN)
    asked = f"{listed(shown)}\n\nContinue the list with the tasks {SHOWN + 1} to {LAST_TASK}."
    return [Message("system", load("self_instruct")["instructions"]), Message("user", asked)]


def _instructions(key: str, answer: Answer | Failure, kept: list[list[str]]) -> Iterator[str | Rejected]:
    """The new instructions in an answer, whose tokens join `kept`, and those that are left out."""
    if isinstance(answer, Failure):
        yield Rejected(key, answer.reason, answer.message)
        return
    try:
        found, cut = read_list(answer.text, answer.is_cut)
    except SampleError as error:
        yield Rejected(key, error.reason, str(error), answer.text)
        return
    for instruction in found:
        try:
            _check_marks(instruction)
            kept.append(check_instruction(instruction, kept))
        except SampleError as error:
            yield Rejected(key, error.reason, str(error), instruction)
        else:
            yield instruction
    if cut is not None:
        yield Rejected(key, "cut", "the answer was cut at max_tokens", cut)


def _with_instances(asker: Asker, tasks: Sequence[NewTask], sampling: Sampling) -> Iterator[Outcome]:
    """Asks of each task whether it is classification, then for its instances in the order that this calls for."""
    sorted_out: list[NewTask] = []
    for task, answer in asker.ask([Request(task, _is_it_classification(task), sampling) for task in tasks]):
        if isinstance(answer, Failure):
            yield Rejected(task.key, answer.reason, answer.message)
        elif (word := answer.text.strip().lower().rstrip(".")) in ("yes", "no"):
            sorted_out.append(NewTask(task.key, task.instruction, word == "yes"))
        else:
            yield Rejected(
                task.key, "format", "expected yes or no to whether it is classification", answer.text
            )
    for task, answer in asker.ask([Request(task, _instances(task), sampling) for task in sorted_out]):
        yield from _documents(task, answer, asker.teacher.name)


def _documents(task: NewTask, answer: Answer | Failure, teacher: str) -> Iterator[Outcome]:
    if isinstance(answer, Failure):
        yield Rejected(task.key, answer.reason, answer.message)
        return
    try:
        if answer.is_cut:
            raise SampleError("the answer was cut at max_tokens; raise max_tokens", "cut")
        found = read_instances(answer.text, task.labels)
    except SampleError as error:
        yield Rejected(task.key, error.reason, str(error), answer.text)
        return
    for number, (each, sifted) in enumerate(zip(found, sift(found), strict=True)):
        key = f"{task.key}-{number}"
        try:
            if isinstance(sifted, SampleError):
                raise sifted
            _check_marks(f"{each.input}\n{each.output}")
        except SampleError as error:
            yield Rejected(key, error.reason, str(error), f"{each.input}\n===\n{each.output}")
        else:
            yield key, _document(task, each, teacher)


def _document(task: NewTask, each: Instance, teacher: str) -> Document:
    # The input is a text of its own: templates that tell it from the instruction can (Alpaca).
    asked = [task.instruction, *([f"\n\n{each.input}"] if each.input else [])]
    meta = {
        "kind": "self_instruct", "teacher": teacher, "instruction": task.instruction, "labels": task.labels,
    }  # fmt: skip
    return Document(
        [
            *(Text(words, loss=False, role="user") for words in asked),
            Text(each.output, role="assistant", ends_chunk=True),
        ],
        meta,
    )


def _is_it_classification(task: NewTask) -> list[Message]:
    shown = [each for pair in zip(_seeds(True), _seeds(False), strict=True) for each in pair]
    return _shown("classification", [(t.instruction, "yes" if t.labels else "no") for t in shown], task)


def _instances(task: NewTask) -> list[Message]:
    name = "outputs_first" if task.labels else "inputs_first"
    examples = [(each.instruction, written(each.instances, task.labels)) for each in _seeds(task.labels)]
    return _shown(name, examples, task)


def _shown(name: str, examples: Sequence[tuple[str, str]], task: NewTask) -> list[Message]:
    turns = [
        Message(role, text)
        for example in examples
        for role, text in zip(("user", "assistant"), example, strict=True)
    ]
    return [
        Message("system", load("self_instruct")[name]), *turns, Message("user", task.instruction)
    ]  # fmt: skip


def _seeds(labels: bool) -> list[SeedTask]:
    """The first of their sort with most instances, so that the examples show several."""
    found = [task for task in seed_tasks() if task.labels is labels]
    return sorted(found, key=lambda task: -len(task.instances))[:EXAMPLES]


def _check_marks(text: str) -> None:
    if any(mark in text for mark in (IMAGE_TOKEN, END_OF_CHUNK)):
        raise SampleError(f"holds {IMAGE_TOKEN} or {END_OF_CHUNK}; expected plain text", "marks")
