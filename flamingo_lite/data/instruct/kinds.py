"""LLaVA's three kinds of instruction data: what the teacher is asked for each, and how its answer becomes a conversation.

The prompts and their examples are ours, in `prompts/`. The conversation is asked for from captions alone, the others from
captions and boxes (LLaVA's published recipe).
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from flamingo_lite.data.instruct.described import Described, context
from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.teacher import Answer, Message

PROMPTS = Path(__file__).parent / "prompts"
KINDS = ("conversation", "detail", "reasoning")
HAS_BOXES = {"conversation": False, "detail": True, "reasoning": True}

_SEPARATOR = re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)
_BETRAYS = re.compile(r"\b(captions?|bounding box(es)?|coordinates?)\b", re.IGNORECASE)
Pair = tuple[str, str]
"""(question, answer)"""


@dataclass(frozen=True)
class Prompt:
    """`examples`: contexts and the answers that are wanted to them; `questions`: what a detailed description answers."""

    system: str
    examples: tuple[Pair, ...]
    questions: tuple[str, ...] = ()


@functools.cache
def prompt(kind: str) -> Prompt:
    """The packaged prompt of a kind."""
    content = load(kind)
    examples = tuple((each["context"].strip(), each["answer"].strip()) for each in content["examples"])
    return Prompt(content["system"].strip(), examples, tuple(content.get("questions", ())))


def load(name: str) -> Any:
    """A packaged file of prompts."""
    return yaml.safe_load((PROMPTS / f"{name}.yaml").read_text(encoding="utf-8"))


def messages(kind: str, described: Described) -> list[Message]:
    """What the teacher is asked: the system message, the examples as turns, and the image in words."""
    asked = prompt(kind)
    turns = [
        Message(role, text)
        for example in asked.examples
        for role, text in zip(("user", "assistant"), example, strict=True)
    ]
    shown = context(described.captions, described.boxes if HAS_BOXES[kind] else ())
    return [Message("system", asked.system), *turns, Message("user", shown)]


def document(kind: str, described: Described, answer: Answer, teacher: str) -> Document:
    """The conversation that the answer holds, the image in front of its first question.

    Errors: `SampleError`: "cut" for an answer that was not finished, "format" for one in another form than was asked
    for, "source" for one that speaks of captions or boxes, which whoever sees the image knows nothing of, and "marks".
    """
    if answer.is_cut:
        raise SampleError("the answer was cut at max_tokens; raise max_tokens", "cut")
    pairs = read_pairs(answer.text) if kind != "detail" else [(_question(described), answer.text.strip())]
    if kind == "reasoning" and len(pairs) > 1:
        raise SampleError(f"{len(pairs)} questions; expected one", "format")
    segments: list[Image | Text] = [described.image]
    for asked, said in pairs:
        _check(asked, said)
        segments += [Text(asked, loss=False, role="user"), Text(said, role="assistant", ends_chunk=True)]
    return Document(segments, {"kind": kind, "teacher": teacher, **described.meta()})


def read_pairs(text: str) -> list[Pair]:
    """The pairs of an answer in the form

        Question:
        ...
        ===
        Answer:
        ...

    in which `===` also stands between pairs. Errors: `SampleError` ("format") for any other form.
    """
    blocks = [block.strip() for block in _SEPARATOR.split(text.strip())]
    if len(blocks) % 2:
        raise SampleError(
            f"{len(blocks)} blocks between === lines; expected questions and answers by turns", "format"
        )
    heads: tuple[Literal["Question:"], Literal["Answer:"]] = ("Question:", "Answer:")
    for number, block in enumerate(blocks):
        head = heads[number % 2]
        if not block.startswith(head) or not block.removeprefix(head).strip():
            raise SampleError(f"block {number} is {block[:40]!r}; expected {head} and a text", "format")
        if any(line.strip() in heads for line in block.splitlines()[1:]):
            raise SampleError(f"block {number} holds a second head; expected === between them", "format")
    bodies = [block.removeprefix(heads[i % 2]).strip() for i, block in enumerate(blocks)]
    return list(zip(bodies[::2], bodies[1::2], strict=True))


def _question(described: Described) -> str:
    """One of the requests for a description, by the image's key."""
    questions = prompt("detail").questions
    return questions[int.from_bytes(hashlib.sha256(described.key.encode()).digest()[:4]) % len(questions)]


def _check(asked: str, said: str) -> None:
    if not said:
        raise SampleError("the answer is empty; expected a text", "format")
    if found := _BETRAYS.search(f"{asked}\n{said}"):
        raise SampleError(
            f"speaks of {found.group()!r}; expected words of somebody who sees the image", "source"
        )
    if any(mark in text for mark in (IMAGE_TOKEN, END_OF_CHUNK) for text in (asked, said)):
        raise SampleError(f"holds {IMAGE_TOKEN} or {END_OF_CHUNK}; expected plain text", "marks")
