"""What a teacher is asked and what it answers. A teacher makes one try; who asks decides on more (`asking.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flamingo_lite.errors import SampleError


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image of the type `mime`, known by the sha256 `id` of its bytes. `most_tokens`: what it may cost."""

    data: bytes = field(repr=False)
    mime: str
    id: str
    most_tokens: int


@dataclass(frozen=True, slots=True)
class Message:
    """`role`: system, user or assistant. `parts`: texts and pictures in their order, in place of `text`."""

    role: str
    text: str
    parts: tuple[str | Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. None: as the model's own settings say. `max_tokens`: of the answer."""

    max_tokens: int = 1024
    temperature: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_cut`: the answer ended at `max_tokens`. `lost_tokens`: what failed tries before it may have cost, at most."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    is_cut: bool = False
    lost_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All that the answer has cost."""
        return self.prompt_tokens + self.answer_tokens + self.lost_tokens


class TryAgain(SampleError):
    """The try has failed; another may not. `after`: seconds that the server wants to be left alone; `may_have_cost`:
    the model may have answered, although nothing of use has arrived."""

    def __init__(
        self, message: str, reason: str, after: float | None = None, may_have_cost: bool = False
    ) -> None:
        super().__init__(message, reason)
        self.after, self.may_have_cost = after, may_have_cost


class Teacher(Protocol):
    """`name`: the model's, part of what answers are cached under. `answer` is called from several threads."""

    @property
    def name(self) -> str: ...

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Errors: `TryAgain`; `SampleError` for a request that this teacher will never answer; `FlamingoError` when it
        will answer none."""
        ...


@dataclass(frozen=True)
class Rule:
    """A teacher that is a function of the messages, at no cost. Errors: `SampleError` for what the rule does not cover."""

    name: str
    function: Callable[[Sequence[Message]], str]

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """What the function says."""
        return Answer(self.function(messages))


def most_tokens(messages: Sequence[Message], sampling: Sampling) -> int:
    """What a request may cost at most: a token of a prompt has at least a byte, and a chat template adds fewer than 64
    tokens to a prompt and 16 to each message."""
    prompt = sum(16 + sum(map(_most, message.parts or (message.text,))) for message in messages)
    return prompt + 64 + sampling.max_tokens


def _most(part: str | Picture) -> int:
    return len(part.encode("utf-8", "replace")) if isinstance(part, str) else part.most_tokens
